// What the report's charts need of ECharts, and no more: every further part makes each report larger.
import { init, use } from "echarts/core";
import { BarChart, CustomChart, LineChart } from "echarts/charts";
import { AxisPointerComponent, GridComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, CustomChart, LineChart, AxisPointerComponent, GridComponent, SVGRenderer]);

export { init };

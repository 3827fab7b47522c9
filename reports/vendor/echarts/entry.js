// What the report's charts need of ECharts, and no more: every further part makes each report larger.
import { init, use } from "echarts/core";
import { BarChart, CustomChart, HeatmapChart, LineChart, ScatterChart } from "echarts/charts";
import { AxisPointerComponent, GridComponent, VisualMapComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, CustomChart, HeatmapChart, LineChart, ScatterChart]);
use([AxisPointerComponent, GridComponent, VisualMapComponent, SVGRenderer]);

export { init };

// How many runs lie in each of some ranges: bars in the methods' colours, one upon the other.

import { AXIS, CHART, methodColour, register } from "./charts.js";

// data: { ranges: [name, …], counts: { METHOD: [count, …] } }
const total = (data, place) => Object.values(data.counts).reduce((sum, counts) => sum + counts[place], 0);

register("distribution", {
  height: () => 240,

  option(data, { hidden, width }) {
    return {
      ...CHART,
      grid: { left: 4, right: 8, top: 12, bottom: 26, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      xAxis: {
        ...AXIS,
        type: "category",
        data: data.ranges,
        name: "estimated less measured, of measured",
        nameLocation: "middle",
        nameGap: 26,
        axisLabel: { ...AXIS.axisLabel, hideOverlap: true, interval: width >= 700 ? 0 : "auto" },
      },
      yAxis: { ...AXIS, type: "value", minInterval: 1, splitNumber: 4 },
      series: Object.entries(data.counts)
        .filter(([method]) => !hidden.has(method))
        .map(([method, counts]) => ({
          type: "bar",
          stack: "runs",
          barCategoryGap: "12%",
          barMaxWidth: 90,
          data: counts,
          itemStyle: { color: methodColour(method) },
          emphasis: { disabled: true },
        })),
    };
  },

  tip(data, [place]) {
    if (!data.ranges[place]) return null;
    const rows = Object.entries(data.counts).map(([method, counts]) => [method, String(counts[place])]);
    return { caption: data.ranges[place], columns: ["", "runs"], rows };
  },

  table(data) {
    const rows = data.ranges.map((range, place) => [range, ...Object.values(data.counts).map((counts) => String(counts[place])), String(total(data, place))]);
    return { columns: ["Error", ...Object.keys(data.counts), "all"], rows };
  },
});

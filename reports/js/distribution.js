// Histogram of runs: stacked bars in the methods' colours.

import { AXIS, CHART, methodColour, NAMED_ABOVE, register } from "./charts.js";

const LABEL_WIDTH = 110;

// data: { ranges: [name, …], counts: { METHOD: [count, …] } }
const total = (data, place) => Object.values(data.counts).reduce((sum, counts) => sum + counts[place], 0);

register("distribution", {
  height: (data, width) => Math.min(440, Math.max(240, width * 0.8)),

  option(data, { hidden, width }) {
    const slanted = width < LABEL_WIDTH * data.ranges.length;
    return {
      ...CHART,
      grid: { left: 4, right: 8, top: 30, bottom: 30, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      xAxis: {
        ...AXIS,
        type: "category",
        data: data.ranges,
        name: "(estimated − measured) / measured",
        nameLocation: "middle",
        nameGap: slanted ? 58 : 26,
        axisLabel: { ...AXIS.axisLabel, interval: 0, rotate: slanted ? 35 : 0 },
      },
      yAxis: { ...AXIS, type: "value", ...NAMED_ABOVE, name: "runs", minInterval: 1, splitNumber: 4 },
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

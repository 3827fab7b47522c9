// Loss by step: one curve for each run, in its method's colour and with a stroke of its own.

import { AXIS, CHART, register } from "./charts.js";
import { lossesOf } from "./store.js";

register("losses", {
  height: (data, width) => (width >= 560 ? 320 : 260),

  option(data, { width, hidden }) {
    const shown = data.curves.filter((curve) => !hidden.has(String(curve.run)));
    const margin = (data.highest - data.lowest) * 0.05 || 0.05;
    return {
      ...CHART,
      grid: { left: 4, right: 16, top: 12, bottom: 26, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      xAxis: {
        ...AXIS,
        type: "value",
        name: "step",
        nameLocation: "middle",
        nameGap: 26,
        min: 1,
        max: Math.max(2, ...data.curves.map((curve) => lossesOf(curve.run).length)),
        minInterval: 1,
        splitNumber: width >= 560 ? 8 : 4,
        axisLabel: { ...AXIS.axisLabel, showMaxLabel: true, hideOverlap: true },
        splitLine: { show: false },
        axisPointer: {
          show: true,
          type: "line",
          snap: true,
          triggerTooltip: false,
          lineStyle: { color: "var(--muted)", type: "dashed" },
          label: { show: false },
        },
      },
      yAxis: {
        ...AXIS,
        type: "value",
        scale: true,
        splitLine: { ...AXIS.splitLine, showMinLine: false, showMaxLine: false },
        min: data.lowest - margin,
        max: data.highest + margin,
        axisLabel: { ...AXIS.axisLabel, showMinLabel: false, showMaxLabel: false, formatter: (loss) => String(+loss.toPrecision(3)) },
      },
      series: shown.map((curve) => {
        const losses = lossesOf(curve.run);
        const alone = (place) => losses[place - 1] == null && losses[place + 1] == null;
        return {
          type: "line",
          name: curve.name,
          data: losses.map((loss, place) => [place + 1, loss]),
          symbol: "circle",
          symbolSize: (value, { dataIndex }) => (alone(dataIndex) ? 6 : 0),
          itemStyle: { color: `var(--${curve.method})` },
          lineStyle: { color: `var(--${curve.method})`, width: 2, type: curve.dash ? curve.dash.split(" ").map(Number) : "solid" },
          emphasis: { disabled: true },
        };
      }),
    };
  },

  tip(data, [x], hidden) {
    const step = Math.round(x);
    const rows = data.curves
      .filter(({ run }) => !hidden.has(String(run)) && step >= 1 && step <= lossesOf(run).length)
      .map(({ run, name }) => [name, lossText(lossesOf(run)[step - 1])]);
    return rows.length ? { caption: `step ${step}`, columns: ["", "loss"], rows } : null;
  },

  table(data) {
    const columns = data.curves.map((curve) => lossesOf(curve.run));
    const steps = Math.max(...columns.map((losses) => losses.length));
    const rows = Array.from({ length: steps }, (_, place) => [
      String(place + 1),
      ...columns.map((losses) => (place < losses.length ? lossText(losses[place]) : "")),
    ]);
    return { columns: ["Step", ...data.curves.map((curve) => curve.name)], rows };
  },
});

const lossText = (loss) => loss?.toFixed(4) ?? "not finite";

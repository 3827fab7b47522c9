// Loss by step: one curve per run, in its method's colour and with its own stroke; optionally smoothed.

import { AXIS, CHART, chartIn, methodColour, NAMED_ABOVE, register } from "./charts.js";
import { formatLoss } from "./quantities.js";
import { entryOf } from "./store.js";

const lossesOf = (run) => entryOf(run).record.measurement.losses;
const everyOf = (run) => entryOf(run).every;
const lastStepOf = (run) => (lossesOf(run).length - 1) * everyOf(run) + 1;
const lossText = (loss) => (loss == null ? "not finite" : formatLoss(loss));

// Exponential moving average with `weight` on the past, with bias correction as in Adam; gaps stay gaps.
function smoothed(losses, weight) {
  let mean = 0;
  let sum = 0;
  return losses.map((loss) => {
    if (loss === null) return null;
    mean = weight * mean + (1 - weight) * loss;
    sum = weight * sum + (1 - weight);
    return mean / sum;
  });
}

function curve(losses, { run, name, method, dash }, faint) {
  const alone = (place) => losses[place - 1] == null && losses[place + 1] == null;
  const type = dash && !faint ? dash.split(" ").map(Number) : "solid";
  return {
    type: "line",
    name,
    silent: true,
    data: losses.map((loss, place) => [place * everyOf(run) + 1, loss]),
    symbol: "circle",
    symbolSize: (value, { dataIndex }) => (alone(dataIndex) ? 6 : 0),
    itemStyle: { color: methodColour(method) },
    lineStyle: { color: methodColour(method), width: faint ? 1 : 2, opacity: faint ? 0.3 : 1, type },
    emphasis: { disabled: true },
  };
}

// data: { curves: [{ run, name, method, dash }], lowest, highest, smoothing }
register("learning", {
  height: (data, width) => (width >= 560 ? 320 : 260),

  runs: (data) => data.curves.map(({ run }) => run),

  option(data, { width, hidden }) {
    const shown = data.curves.filter(({ run }) => !hidden.has(String(run)));
    const margin = (data.highest - data.lowest) * 0.05 || 0.05;
    const raw = shown.map((one) => curve(lossesOf(one.run), one, data.smoothing > 0));
    const smooth = data.smoothing ? shown.map((one) => curve(smoothed(lossesOf(one.run), data.smoothing), one, false)) : [];
    return {
      ...CHART,
      grid: { left: 4, right: 16, top: 30, bottom: 26, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      xAxis: {
        ...AXIS,
        type: "value",
        name: "step",
        nameLocation: "middle",
        nameGap: 26,
        min: 1,
        max: Math.max(2, ...data.curves.map(({ run }) => lastStepOf(run))),
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
        ...NAMED_ABOVE,
        type: "value",
        name: "loss, nats",
        scale: true,
        splitLine: { ...AXIS.splitLine, showMinLine: false, showMaxLine: false },
        min: data.lowest - margin,
        max: data.highest + margin,
        axisLabel: { ...AXIS.axisLabel, showMinLabel: false, showMaxLabel: false, formatter: (loss) => String(+loss.toPrecision(3)) },
      },
      series: [...raw, ...smooth],
    };
  },

  tip(data, [x], hidden) {
    const step = Math.round(x);
    const rows = data.curves
      .filter(({ run }) => !hidden.has(String(run)) && step >= 1 && step <= lastStepOf(run))
      .map(({ run, name }) => {
        const place = Math.round((step - 1) / everyOf(run));
        const cells = [name, lossText(lossesOf(run)[place])];
        return data.smoothing ? [...cells, lossText(smoothed(lossesOf(run), data.smoothing)[place])] : cells;
      });
    return rows.length ? { caption: `step ${step}`, columns: data.smoothing ? ["", "loss", "smoothed"] : ["", "loss"], rows } : null;
  },

  table(data) {
    const columns = data.curves.map(({ run }) => new Map(lossesOf(run).map((loss, place) => [place * everyOf(run) + 1, loss])));
    const steps = [...new Set(columns.flatMap((losses) => [...losses.keys()]))].sort((one, other) => one - other);
    const rows = steps.map((step) => [String(step), ...columns.map((losses) => (losses.has(step) ? lossText(losses.get(step)) : ""))]);
    return { columns: ["Step", ...data.curves.map(({ name }) => name)], rows };
  },
});

const smoothing = document.getElementById("smoothing");
smoothing?.addEventListener("change", () => {
  for (const element of document.querySelectorAll('[data-chart="learning"]')) {
    const chart = chartIn(element);
    chart.data.smoothing = Number(smoothing.value);
    chart.redraw();
  }
});

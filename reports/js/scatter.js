// Scatter plot of two quantities, coloured by method, with a diagonal and bands, or with a Pareto front.

import { AXIS, CHART, methodColour, NAMED_ABOVE, onAxis, QUANTITIES, register } from "./charts.js";
import { fullName } from "./store.js";

const REACH = 30;
const DECADE = 20;
const SYMBOLS = { full: "circle", lora: "triangle", qlora: "diamond", ia3: "rect" };

// data: { x, y: { label, kind, zero }, points: { METHOD: [[run, x, y], …] }, bands: [share, …] | null, front: [run, …] | null }
const shownMethods = (data, hidden) => Object.keys(data.points).filter((method) => !hidden.has(method));
const everyPoint = (data, methods = Object.keys(data.points)) => methods.flatMap((method) => data.points[method]);

function span(values, { zero }) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low > 0 && high > DECADE * low) return { type: "log", min: low / 1.3, max: high * 1.3 };
  const margin = (high - low) * 0.06 || high * 0.06 || 1;
  return { type: "value", min: zero ? 0 : low - margin, max: high + margin };
}

// The ranges of both axes; equal if a diagonal is drawn.
function spans(data) {
  const points = everyPoint(data);
  const [xs, ys] = [points.map((point) => point[1]), points.map((point) => point[2])];
  if (!data.bands) return [span(xs, data.x), span(ys, data.y)];
  const both = span([...xs, ...ys], data.x);
  return [both, both];
}

const unitOf = ({ kind }, { max }) => QUANTITIES[kind].unit(max);

function axis(quantity, reach, width) {
  const unit = unitOf(quantity, reach);
  const { label } = quantity;
  const named = unit.name && !label.includes(unit.name) ? `${label}, ${unit.name}` : label;
  return {
    ...AXIS,
    type: reach.type,
    min: reach.min / unit.size,
    max: reach.max / unit.size,
    name: reach.type === "log" ? `${named}, log scale` : named,
    nameTruncate: { maxWidth: width * 0.75 },
    splitNumber: width >= 560 ? 5 : 3,
    splitLine: { ...AXIS.splitLine, showMinLine: false, showMaxLine: false },
    axisLabel: {
      ...AXIS.axisLabel,
      hideOverlap: true,
      showMinLabel: reach.min === 0,
      showMaxLabel: false,
      formatter: onAxis,
    },
  };
}

const line = (from, to, dashed) => ({
  type: "line",
  silent: true,
  symbol: "none",
  data: [from, to],
  lineStyle: { color: dashed ? "var(--muted)" : "var(--text)", width: 1, type: dashed ? [4, 4] : "solid" },
});

register("scatter", {
  height: (data, width) => Math.min(440, Math.max(300, width * (data.bands ? 0.8 : 0.6))),

  runs: () => [],

  option(data, { width, hidden }) {
    const [x, y] = spans(data);
    const scaled = (across, up) => [across / unitOf(data.x, x).size, up / unitOf(data.y, y).size];
    const guides = (data.bands ? [0, ...data.bands, ...data.bands.map((share) => -share)] : []).map((share) => {
      const from = Math.max(x.min, 0);
      return line(scaled(from, from * (1 + share)), scaled(x.max, x.max * (1 + share)), share !== 0);
    });
    const byRun = new Map(everyPoint(data).map((point) => [point[0], point]));
    if (data.front)
      guides.push({
        type: "line",
        silent: true,
        symbol: "none",
        step: "end",
        data: data.front.map((run) => scaled(...byRun.get(run).slice(1))),
        lineStyle: { color: "var(--text)", width: 1.5 },
      });
    return {
      ...CHART,
      grid: { left: 4, right: 16, top: 30, bottom: 30, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      xAxis: { ...axis(data.x, x, width), nameLocation: "middle", nameGap: 26 },
      yAxis: { ...axis(data.y, y, width), ...NAMED_ABOVE },
      series: [
        ...guides.map((guide) => ({ ...guide, clip: true, z: 1 })),
        ...shownMethods(data, hidden).map((method) => ({
          type: "scatter",
          data: data.points[method].map(([, across, up]) => scaled(across, up)),
          symbol: SYMBOLS[method],
          symbolSize: data.points[method].length > 500 ? 5 : 10,
          large: true,
          largeThreshold: 1500,
          itemStyle: { color: methodColour(method), opacity: 0.8 },
          emphasis: { disabled: true },
          z: 2,
        })),
      ],
    };
  },

  tip(data, place, hidden, chart) {
    const [left, top] = chart.pixel(place);
    const [across, up] = spans(data);
    const sizes = [unitOf(data.x, across).size, unitOf(data.y, up).size];
    let nearest = null;
    let least = REACH;
    for (const point of everyPoint(data, shownMethods(data, hidden))) {
      const [x, y] = chart.pixel([point[1] / sizes[0], point[2] / sizes[1]]);
      const distance = Math.hypot(x - left, y - top);
      if (distance < least) [nearest, least] = [point, distance];
    }
    if (!nearest) return null;
    const [run, x, y] = nearest;
    const rows = [
      [data.x.label, QUANTITIES[data.x.kind].write(x)],
      [data.y.label, QUANTITIES[data.y.kind].write(y)],
    ];
    return { caption: fullName(run), columns: ["", ""], rows };
  },

  table(data) {
    const onFront = new Set(data.front ?? []);
    const rows = everyPoint(data).map(([run, x, y]) => [
      fullName(run),
      QUANTITIES[data.x.kind].write(x),
      QUANTITIES[data.y.kind].write(y),
      ...(data.front ? [onFront.has(run) ? "yes" : "no"] : []),
    ]);
    return { columns: ["Recipe", data.x.label, data.y.label, ...(data.front ? ["on the front"] : [])], rows };
  },
});

// A chart in its element, and code that all charts share.

import { byteScale, formatBytes, formatLoss, formatNumber, formatSeconds, formatShare } from "./quantities.js";
import { load } from "./store.js";
import { asTable } from "./tables.js";

export const FONT = "system-ui, sans-serif";
export const AXIS_HEIGHT = 34;
const PRINT_WIDTH = 820;

// The colour of a method's mark in a chart.
export const methodColour = (method) => `var(--${method})`;

export const CHART = { animation: false, textStyle: { fontFamily: FONT, color: "var(--text)" } };
export const AXIS = {
  axisLine: { show: false },
  axisTick: { show: false },
  axisLabel: { color: "var(--muted)", fontSize: 12 },
  nameTextStyle: { color: "var(--muted)", fontSize: 12 },
  splitLine: { lineStyle: { color: "var(--line)" } },
};
// The name of a vertical axis, above it.
export const NAMED_ABOVE = { nameLocation: "end", nameGap: 12, nameTextStyle: { ...AXIS.nameTextStyle, align: "left" } };

// Quantities on an axis: how to write them, and the unit of the scale.
export const QUANTITIES = {
  bytes: { write: formatBytes, unit: (longest) => byteScale(longest) },
  rate: { write: (rate) => `${formatNumber(rate)} tokens/s`, unit: () => ({ name: "tokens/s", size: 1 }) },
  seconds: { write: formatSeconds, unit: (longest) => (longest >= 1 ? { name: "s", size: 1 } : { name: "ms", size: 0.001 }) },
  loss: { write: formatLoss, unit: () => ({ name: "nats", size: 1 }) },
  share: { write: formatShare, unit: () => ({ name: "", size: 1 }) },
};

// Numbers on axes: few digits, with thousands separators.
export const onAxis = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 6 });

// Options that bar charts share, with room at the right for the figures at the ends of the bars.
export function base(names, { right }) {
  return {
    ...CHART,
    grid: { left: 1, right, top: 2, bottom: AXIS_HEIGHT - 8 },
    yAxis: {
      ...AXIS,
      type: "category",
      inverse: true,
      data: names,
      axisLabel: { show: false },
    },
  };
}

// The names of the runs, `above` the middle of their bars, where long names have the full width.
export function namesAbove(names, { width, above }) {
  return {
    type: "custom",
    silent: true,
    data: names.map((name, place) => [0, place]),
    renderItem: (params, api) => {
      const [x, y] = api.coord([0, api.value(1)]);
      const style = { text: names[api.value(1)], width: width - 8, overflow: "truncate", fill: "var(--text)", fontSize: 13 };
      return { type: "text", x, y: y - above, style: { ...style, fontFamily: FONT, verticalAlign: "middle" } };
    },
  };
}

// Text to the right of stacked bars: a series at the end of the stack.
export function barEnds(bar, names, write, { color = "var(--text)", fontSize = 12 } = {}) {
  const label = { show: true, position: "right", color, fontSize, formatter: ({ dataIndex }) => write(dataIndex) };
  return { ...bar, silent: true, data: names.map(() => 0), label };
}

// The readable name of a component.
export const spaced = (component) => component.replaceAll("_", " ");

export function valueAxis({ max, unit, width }) {
  return {
    ...AXIS,
    type: "value",
    min: 0,
    max,
    splitNumber: width >= 560 ? 5 : 2,
    splitLine: { ...AXIS.splitLine, showMaxLine: false },
    axisLabel: {
      ...AXIS.axisLabel,
      hideOverlap: true,
      showMaxLabel: false,
      alignMinLabel: "left",
      formatter: (value) => `${onAxis(value)} ${unit}`,
    },
  };
}

const tip = document.getElementById("tip");
const KINDS = {};

// Registers `kind` for data-chart="NAME". It has
// - height(data, width) and option(data, { width, hidden }), which draw it; `hidden` has keys of legend buttons;
// - optionally runs(data): the runs whose full records it needs;
// - optionally tip(data, place, hidden, chart): the tooltip at the pointer, and table(data): all data, both in the format
//   of asTable; `place` is in the axes' units, and chart.pixel(place) is its position in the element.
export function register(name, kind) {
  KINDS[name] = kind;
}

const CHARTS = new Map();

// The chart in an element with data-chart.
export function chartIn(element) {
  if (!CHARTS.has(element)) CHARTS.set(element, new Chart(element));
  return CHARTS.get(element);
}

class Chart {
  constructor(element) {
    this.element = element;
    this.kind = KINDS[element.dataset.chart];
    this.data = JSON.parse(element.querySelector("script").textContent);
    this.hidden = new Set();
    this.width = 0;
    const width = element.clientWidth;
    if (width) element.style.height = `${this.kind.height(this.data, width)}px`;
    element.addEventListener("pointermove", (event) => this.point(event));
    element.addEventListener("pointerleave", () => tip.replaceChildren());
  }

  // Resolves when all data for drawing is loaded.
  ready() {
    return this.kind.runs ? load(this.kind.runs(this.data)) : Promise.resolve();
  }

  draw(width = this.element.clientWidth) {
    if (!width) return;
    const height = this.kind.height(this.data, width);
    this.width = width;
    this.element.style.height = `${height}px`;
    this.drawn ??= echarts.init(this.element, null, { renderer: "svg", width, height });
    this.drawn.resize({ width, height, silent: true });
    this.drawn.setOption(this.kind.option(this.data, { width, hidden: this.hidden }), { notMerge: true });
    this.drawn.getZr().flush();
  }

  // Redraws a drawn chart after its data or the hidden keys changed.
  async redraw() {
    await this.ready();
    if (this.drawn) this.draw();
  }

  toggle(key, shown) {
    if (shown) this.hidden.delete(key);
    else this.hidden.add(key);
    this.redraw();
  }

  pixel(place) {
    return this.drawn.convertToPixel("grid", place);
  }

  // Shows a tooltip for the place under the pointer.
  point({ clientX, clientY }) {
    const { left, top } = this.element.getBoundingClientRect();
    const place = this.drawn?.convertFromPixel("grid", [clientX - left, clientY - top]);
    const table = place && this.kind.tip?.(this.data, place, this.hidden, this);
    tip.replaceChildren(...(table ? [asTable(table)] : []));
    const { width, height } = tip.getBoundingClientRect();
    const fit = (at, size, room) => Math.max(0, at + 14 + size < room ? at + 14 : at - 14 - size);
    tip.style.left = `${fit(clientX, width, document.documentElement.clientWidth)}px`;
    tip.style.top = `${fit(clientY, height, innerHeight)}px`;
  }

  // Paper is narrower than most windows and would cut the chart off: draw for its width and let it scale.
  enterPrint() {
    this.draw(this.element.closest(".side-by-side") ? PRINT_WIDTH / 2 : PRINT_WIDTH);
    const svg = this.element.querySelector("svg");
    svg?.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
  }

  leavePrint() {
    this.element.querySelector("svg")?.removeAttribute("viewBox");
    this.draw();
  }
}

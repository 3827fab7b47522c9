"use strict";
// Draws each chart when it comes near the window, again when its width changes, and all of them for print.

const FONT = "system-ui, sans-serif";
const AXIS_HEIGHT = 34;
const PRINT_WIDTH = 680;

const CHART = { animation: false, textStyle: { fontFamily: FONT, color: "var(--text)" } };
const AXIS = {
  axisLine: { show: false },
  axisTick: { show: false },
  axisLabel: { color: "var(--muted)", fontSize: 12 },
  nameTextStyle: { color: "var(--muted)", fontSize: 12 },
  splitLine: { lineStyle: { color: "var(--line)" } },
};
// Tooltips are drawn, not written as HTML: the content security policy allows no style attributes.
const TOOLTIP = {
  renderMode: "richText",
  confine: true,
  transitionDuration: 0,
  backgroundColor: "var(--raised)",
  borderColor: "var(--line)",
  padding: 10,
  textStyle: { color: "var(--text)", fontSize: 12, fontFamily: FONT },
};

// What bar charts share, with room at the right for the figures at the bars' ends.
function base(names, { right }) {
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

// The names of the runs, `above` the middle of their bars: there even long ones have the whole width.
function namesAbove(names, { width, above }) {
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

function valueAxis({ max, unit, width }) {
  return {
    ...AXIS,
    type: "value",
    min: 0,
    max: max || 1,
    splitNumber: width >= 560 ? 5 : 2,
    splitLine: { ...AXIS.splitLine, showMaxLine: false },
    axisLabel: {
      ...AXIS.axisLabel,
      hideOverlap: true,
      showMaxLabel: false,
      alignMinLabel: "left",
      formatter: (value) => `${value.toLocaleString("en-US", { maximumSignificantDigits: 6 })} ${unit}`,
    },
  };
}

// A title, a line of column titles and lines of cells, as the tooltip's rich text.
function tooltipTable(title, columns, lines) {
  const plain = (text) => String(text).replaceAll("{", "(").replaceAll("}", ")").replaceAll("|", "/").replaceAll("\n", " ");
  const shorten = (text) => (text.length > 48 ? `${text.slice(0, 47)}…` : text);
  const line = (cells) => cells.map((cell, place) => `{${place ? "figure" : "name"}|${shorten(plain(cell))}}`).join("");
  return [`{title|${shorten(plain(title))}}`, line(columns), ...lines.map(line)].join("\n");
}

const KINDS = { memory: memoryChart, throughput: throughputChart, losses: lossesChart };

class Chart {
  constructor(element) {
    this.element = element;
    this.kind = KINDS[element.dataset.chart];
    this.data = JSON.parse(element.querySelector("script").textContent);
    this.hidden = new Set();
    this.width = 0;
    element.style.height = `${this.kind.height(this.data, element.clientWidth)}px`;
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

  toggle(key, shown) {
    if (shown) this.hidden.delete(key);
    else this.hidden.add(key);
    if (this.drawn) this.draw();
  }

  // Paper is narrower than most windows, and what does not fit is cut off: draw for its width and let it scale.
  enterPrint() {
    this.draw(PRINT_WIDTH);
    const svg = this.element.querySelector("svg");
    svg?.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
  }

  leavePrint() {
    this.element.querySelector("svg")?.removeAttribute("viewBox");
    this.draw();
  }
}

const CHARTS = new Map([...document.querySelectorAll(".chart")].map((element) => [element, new Chart(element)]));

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting && !CHARTS.get(target).drawn) CHARTS.get(target).draw();
  },
  { rootMargin: "600px" },
);
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const chart = CHARTS.get(target);
    if (chart.drawn && target.clientWidth !== chart.width && !printing) chart.draw();
  }
});
let printing = false;
for (const element of CHARTS.keys()) {
  near.observe(element);
  resized.observe(element);
}
addEventListener("beforeprint", () => {
  printing = true;
  for (const chart of CHARTS.values()) chart.enterPrint();
});
addEventListener("afterprint", () => {
  for (const chart of CHARTS.values()) chart.leavePrint();
  printing = false;
});

for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const element of button.closest(".charts").querySelectorAll(".chart"))
      CHARTS.get(element).toggle(button.dataset.key, shown);
  });

for (const details of document.querySelectorAll("details.data")) {
  const { kind, data } = CHARTS.get(details.closest("figure").querySelector(".chart"));
  details.addEventListener("toggle", () => details.querySelector("table").replaceWith(asTable(kind.table(data))), {
    once: true,
  });
}

// One run in detail: the peak of each phase, and the memory over a step.

import { AXIS, CHART, chartIn, onAxis, register } from "./charts.js";
import { byteScale, formatBytes, formatNumber } from "./quantities.js";
import { breakdownsOf, entryOf, fullName } from "./store.js";

const axisOfBytes = (scale) => ({
  ...AXIS,
  type: "value",
  min: 0,
  splitNumber: 4,
  axisLabel: { ...AXIS.axisLabel, formatter: (value) => `${onAxis(value)} ${scale.name}` },
});
const plot = { left: 4, right: 16, top: 12, bottom: 4, outerBoundsMode: "same", outerBoundsContain: "axisLabel" };

const phasePeak = (memory, phase) => (memory && Object.hasOwn(memory.phase_peaks_bytes, phase) ? memory.phase_peaks_bytes[phase] : null);

// data: { run, answers, phases }
register("phases", {
  height: () => 260,

  runs: ({ run }) => [run],

  option(data, { width }) {
    const all = breakdownsOf(data.run);
    const peaks = data.answers.flatMap((answer) => data.phases.map((phase) => phasePeak(all[answer], phase) ?? 0));
    const scale = byteScale(Math.max(...peaks));
    return {
      ...CHART,
      grid: plot,
      xAxis: { ...AXIS, type: "category", data: data.phases, axisLabel: { ...AXIS.axisLabel, interval: 0, rotate: width >= 480 ? 0 : 35 } },
      yAxis: axisOfBytes(scale),
      series: data.answers.map((answer) => ({
        type: "bar",
        barMaxWidth: 34,
        barGap: "12%",
        barCategoryGap: "40%",
        data: data.phases.map((phase) => (phasePeak(all[answer], phase) ?? 0) / scale.size),
        itemStyle: { color: `var(--${answer})` },
        emphasis: { disabled: true },
      })),
    };
  },

  tip(data, [place]) {
    const phase = data.phases[place];
    if (phase === undefined) return null;
    const all = breakdownsOf(data.run);
    const rows = data.answers.filter((answer) => all[answer]).map((answer) => [answer, written(phasePeak(all[answer], phase))]);
    return { caption: phase, columns: ["", "peak"], rows };
  },

  table(data) {
    const all = breakdownsOf(data.run);
    const rows = data.phases.map((phase) => [phase, ...data.answers.map((answer) => written(phasePeak(all[answer], phase)))]);
    return { columns: ["Phase", ...data.answers], rows };
  },
});

const written = (bytes) => (bytes === null ? "–" : formatBytes(bytes));

// [moment, bytes of each column] over a step: measured if available, else traced; null without both.
function timelineOf(run) {
  const { record, traced } = entryOf(run);
  const measured = record.measurement?.timeline;
  if (measured) {
    const seconds = record.device.kind === "cuda";
    return { answer: "measured", moment: seconds ? "seconds" : "allocations and frees", columns: ["live bytes"], points: measured };
  }
  if (!traced) return null;
  const blocks = traced.kernels === "cuda";
  const points = traced.timeline.map(({ event, allocated_bytes, reserved_bytes }) => (blocks ? [event, allocated_bytes, reserved_bytes] : [event, allocated_bytes]));
  return { answer: "traced", moment: "allocations and frees", columns: blocks ? ["allocated", "reserved"] : ["live bytes"], points };
}

// data: { run }
register("timeline", {
  height: () => 260,

  runs: ({ run }) => [run],

  option({ run }, { width }) {
    const timeline = timelineOf(run);
    if (!timeline) return CHART;
    const scale = byteScale(Math.max(...timeline.points.map((point) => point.at(-1))));
    const line = { type: "line", step: "end", symbol: "none", sampling: "minmax", emphasis: { disabled: true } };
    const data = (column) => timeline.points.map((point) => [point[0], point[column] / scale.size]);
    return {
      ...CHART,
      grid: { ...plot, bottom: 26 },
      xAxis: {
        ...AXIS,
        type: "value",
        min: "dataMin",
        max: "dataMax",
        name: width >= 480 ? `${timeline.moment} since the start of the step` : timeline.moment,
        nameLocation: "middle",
        nameGap: 26,
        splitLine: { show: false },
        axisLabel: { ...AXIS.axisLabel, hideOverlap: true, showMaxLabel: false, formatter: onAxis },
      },
      yAxis: axisOfBytes(scale),
      series: [
        {
          ...line,
          data: data(1),
          lineStyle: { color: "var(--measured)", width: 1.5 },
          areaStyle: { color: "var(--measured)", opacity: 0.15 },
        },
        ...(timeline.columns.length > 1 ? [{ ...line, data: data(2), lineStyle: { color: "var(--measured)", width: 1.5, type: "dashed" } }] : []),
      ],
    };
  },

  tip({ run }, [moment]) {
    const timeline = timelineOf(run);
    const before = timeline?.points.findLast(([at]) => at <= moment);
    if (!before) return null;
    const [at, ...bytes] = before;
    return { caption: `${formatNumber(at)} ${timeline.moment}`, columns: ["", ...timeline.columns], rows: [[timeline.answer, ...bytes.map(formatBytes)]] };
  },

  table({ run }) {
    const timeline = timelineOf(run);
    if (!timeline) return { columns: ["moment", "live bytes"], rows: [] };
    return { columns: [timeline.moment, ...timeline.columns], rows: timeline.points.map(([moment, ...bytes]) => [String(moment), ...bytes.map(formatBytes)]) };
  },
});

// Writes the captions of the charts.
function sayDetail(part, run) {
  const answers = Object.entries(breakdownsOf(run)).filter(([, memory]) => memory);
  const peaks = answers.map(([answer, memory]) => `${answer} ${formatBytes(memory.peak_allocated_bytes)}, in ${memory.phase}`);
  part.querySelector(".phases figcaption").textContent = `Peak of ${fullName(run)}: ${peaks.join("; ")}.`;
  const figure = part.querySelector(".timeline");
  if (!figure) return;
  const timeline = timelineOf(run);
  figure.querySelector("figcaption").textContent = timeline
    ? `Memory of ${fullName(run)} over one step, ${timeline.answer}: ${timeline.columns.map((what, place) => `${what} at most ${formatBytes(Math.max(...timeline.points.map((point) => point[place + 1])))}`).join(", ")}${timeline.columns.length > 1 ? " (dashed)" : ""}.`
    : `${fullName(run)} has no timeline.`;
  for (const element of figure.querySelectorAll(".chart, details")) element.hidden = !timeline;
}

for (const part of document.querySelectorAll(".detail")) {
  const choice = part.querySelector("select");
  for (const run of JSON.parse(choice.dataset.runs)) {
    const option = choice.appendChild(document.createElement("option"));
    option.value = run;
    option.textContent = fullName(run);
  }
  choice.value = choice.dataset.run;
  const show = async () => {
    const run = Number(choice.value);
    const charts = [...part.querySelectorAll(".chart")].map(chartIn);
    for (const chart of charts) chart.data.run = run;
    await charts[0].ready();
    sayDetail(part, run);
    for (const chart of charts) {
      chart.element.setAttribute("aria-label", chart.element.closest("figure").querySelector("figcaption").textContent);
      await chart.redraw();
    }
    for (const details of part.querySelectorAll("details")) details.open = false;
  };
  choice.addEventListener("change", show);
  show();
}

// One run in detail: the peak of each phase, and the live bytes over a step.

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

// [moment, bytes] over a step: measured if available, else traced; null without both.
function timelineOf(run) {
  const { record, traced } = entryOf(run);
  const measured = record.measurement?.timeline;
  if (measured) {
    const seconds = record.device.kind === "cuda";
    return { answer: "measured", moment: seconds ? "seconds" : "allocations and frees", points: measured };
  }
  return traced && { answer: "traced", moment: "allocations and frees", points: traced.timeline.map((point) => [point.event, point.bytes]) };
}

// data: { run }
register("timeline", {
  height: () => 260,

  runs: ({ run }) => [run],

  option({ run }, { width }) {
    const timeline = timelineOf(run);
    if (!timeline) return CHART;
    const scale = byteScale(Math.max(...timeline.points.map(([, bytes]) => bytes)));
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
          type: "line",
          step: "end",
          symbol: "none",
          sampling: "minmax",
          data: timeline.points.map(([moment, bytes]) => [moment, bytes / scale.size]),
          lineStyle: { color: "var(--measured)", width: 1.5 },
          areaStyle: { color: "var(--measured)", opacity: 0.15 },
          emphasis: { disabled: true },
        },
      ],
    };
  },

  tip({ run }, [moment]) {
    const timeline = timelineOf(run);
    const before = timeline?.points.findLast(([at]) => at <= moment);
    return before ? { caption: `${formatNumber(before[0])} ${timeline.moment}`, columns: ["", "live bytes"], rows: [[timeline.answer, formatBytes(before[1])]] } : null;
  },

  table({ run }) {
    const timeline = timelineOf(run);
    return { columns: [timeline?.moment ?? "moment", "live bytes"], rows: (timeline?.points ?? []).map(([moment, bytes]) => [String(moment), formatBytes(bytes)]) };
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
    ? `Live bytes of ${fullName(run)} over one step, ${timeline.answer}: maximum ${formatBytes(Math.max(...timeline.points.map(([, bytes]) => bytes)))}.`
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

// Estimated against measured memory: two stacked bars for each run, below its name.

import { AXIS_HEIGHT, base, namesAbove, register, valueAxis } from "./charts.js";
import { byteScale, formatBytes, formatShare } from "./quantities.js";
import { breakdownsOf, STORE } from "./store.js";

const FAILED = { oom: "out of memory", error: "failed", timeout: "timed out" };
const COLOURED = [
  "weights",
  "quantized_weights",
  "adapters",
  "gradients",
  "optimizer_states",
  "activations",
  "logits",
  "temporaries",
  "buffers",
];

register("memory", {
  height: (data) => 64 * data.rows.length + AXIS_HEIGHT,

  option(data, { width, hidden }) {
    const scale = byteScale(data.longestBytes);
    const wordy = width >= 560;
    const names = data.rows.map((row) => row.name);
    const shown = data.components.filter((component) => !hidden.has(component));
    const bars = (answer, barWidth) =>
      shown.map((component) => ({
        type: "bar",
        stack: answer,
        barWidth,
        barGap: "30%",
        itemStyle: { color: `var(--${COLOURED.includes(component) ? component : "other"})` },
        emphasis: { disabled: true },
        data: data.rows.map(({ run }) => componentBytes(breakdownsOf(run)[answer], component) / scale.bytes),
      }));
    // A bar without length carries what is written at the end of its stack.
    const end = (answer, barWidth, text) => ({
      type: "bar",
      stack: answer,
      barWidth,
      barGap: "30%",
      silent: true,
      data: names.map(() => 0),
      label: {
        show: true,
        position: "right",
        color: answer === "measured" ? "var(--text)" : "var(--muted)",
        fontSize: 12,
        formatter: ({ dataIndex }) => text(data.rows[dataIndex]),
      },
    });
    const estimated = ({ run }) => peakText(breakdownsOf(run).estimated, wordy ? "estimated " : "");
    const measured = ({ run, error }) =>
      FAILED[STORE.records[run].outcome] ??
      peakText(breakdownsOf(run).measured, wordy ? "measured " : "") +
        (wordy && error !== null ? `, estimate ${formatShare(error)}` : "");
    return {
      ...base(names, { right: wordy ? 250 : 84 }),
      xAxis: valueAxis({ max: hidden.size ? "dataMax" : data.longestBytes / scale.bytes, unit: scale.unit, width }),
      series: [
        namesAbove(names, { width, above: 23 }),
        ...bars("estimated", 8),
        end("estimated", 8, estimated),
        ...bars("measured", 15),
        end("measured", 15, measured),
      ],
    };
  },

  tip(data, [, place], hidden) {
    if (!data.rows[place]) return null;
    const { run, name } = data.rows[place];
    const answers = Object.values(breakdownsOf(run));
    const line = (title, bytesOf) => [title, ...answers.map((memory) => (memory ? formatBytes(bytesOf(memory)) : "–"))];
    const rows = data.components
      .filter((component) => !hidden.has(component) && answers.some((memory) => componentBytes(memory, component)))
      .map((component) => line(spaced(component), (memory) => componentBytes(memory, component)));
    rows.push(line("peak", (memory) => memory.peak_allocated_bytes));
    return { caption: name, columns: ["", "estimated", "measured"], rows };
  },

  table(data) {
    const rows = data.rows.flatMap(({ run, name }) =>
      Object.entries(breakdownsOf(run)).flatMap(([answer, memory]) =>
        memory
          ? [
              [
                `${name}, ${answer}`,
                ...data.components.map((component) => formatBytes(componentBytes(memory, component))),
                formatBytes(memory.peak_allocated_bytes),
                memory.phase,
              ],
            ]
          : [],
      ),
    );
    return { columns: ["Recipe", ...data.components.map(spaced), "peak", "in phase"], rows };
  },
});

const spaced = (component) => component.replaceAll("_", " ");

function componentBytes(memory, component) {
  return memory && Object.hasOwn(memory.components, component) ? memory.components[component] : 0;
}

function peakText(memory, word) {
  return memory ? word + formatBytes(memory.peak_allocated_bytes) : "";
}

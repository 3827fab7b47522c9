// Memory by component: a stacked bar for each answer (estimated, traced, rehearsed, measured) of each run.

import { AXIS_HEIGHT, barEnds, base, namesAbove, register, spaced, valueAxis } from "./charts.js";
import { byteScale, formatBytes, formatShare } from "./quantities.js";
import { breakdownsOf, entryOf } from "./store.js";

const FAILED = { oom: "out of memory", error: "failed", timeout: "timed out", skipped: "skipped" };
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
  "workspaces",
  "rounding",
];
const THICKNESS = { estimated: 8, traced: 8, rehearsed: 8, measured: 15 };
const GAP = "30%";
const NAME = 24;

const barsHeight = ({ answers }) => answers.reduce((sum, answer) => sum + THICKNESS[answer] * 1.3, 0);
const rowHeight = (data) => barsHeight(data) + NAME + 12;

function componentBytes(memory, component) {
  return memory && Object.hasOwn(memory.components, component) ? memory.components[component] : 0;
}

// Peak reserved bytes; a CPU has none.
const reserved = (memory) => (memory?.peak_reserved_bytes == null ? "–" : formatBytes(memory.peak_reserved_bytes));

// Text at the end of a bar.
function endText(answer, { run, error }, wordy) {
  const { outcome, rehearsed } = entryOf(run).record;
  const memory = breakdownsOf(run)[answer];
  if (answer === (rehearsed ? "rehearsed" : "measured") && !memory) return FAILED[outcome] ?? "";
  if (!memory) return "";
  const peak = `${wordy ? `${answer} ` : ""}${formatBytes(memory.peak_allocated_bytes)}`;
  return answer === "measured" && wordy && error !== null ? `${peak}, estimate ${formatShare(error)} off` : peak;
}

register("memory", {
  height: (data) => rowHeight(data) * data.rows.length + AXIS_HEIGHT,

  runs: (data) => data.rows.map((row) => row.run),

  option(data, { width, hidden }) {
    const scale = byteScale(data.longestBytes);
    const wordy = width >= 700;
    const names = data.rows.map((row) => row.name);
    const shown = data.components.filter((component) => !hidden.has(component));
    const stacks = data.answers.flatMap((answer) => {
      const bar = { type: "bar", stack: answer, barWidth: THICKNESS[answer], barGap: GAP, emphasis: { disabled: true } };
      const faint = answer === "measured" ? {} : { color: "var(--muted)", fontSize: 11 };
      return [
        ...shown.map((component) => ({
          ...bar,
          itemStyle: { color: `var(--${COLOURED.includes(component) ? component : "other"})` },
          data: data.rows.map(({ run }) => componentBytes(breakdownsOf(run)[answer], component) / scale.size),
        })),
        barEnds(bar, names, (place) => endText(answer, data.rows[place], wordy), faint),
      ];
    });
    const options = base(names, { right: wordy ? 290 : 84 });
    return {
      ...options,
      grid: { ...options.grid, top: NAME / 2 },
      xAxis: valueAxis({ max: hidden.size ? "dataMax" : data.longestBytes / scale.size, unit: scale.name, width }),
      series: [namesAbove(names, { width, above: barsHeight(data) / 2 + NAME / 2 }), ...stacks],
    };
  },

  tip(data, [, place], hidden) {
    if (!data.rows[place]) return null;
    const { run, name } = data.rows[place];
    const all = breakdownsOf(run);
    const answers = data.answers.map((answer) => all[answer]);
    const line = (title, bytesOf) => [title, ...answers.map((memory) => (memory ? formatBytes(bytesOf(memory)) : "–"))];
    const rows = data.components
      .filter((component) => !hidden.has(component) && answers.some((memory) => componentBytes(memory, component)))
      .map((component) => line(spaced(component), (memory) => componentBytes(memory, component)));
    rows.push(line("peak", (memory) => memory.peak_allocated_bytes));
    rows.push(["reserved", ...answers.map((memory) => reserved(memory))]);
    return { caption: name, columns: ["", ...data.answers], rows };
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
                reserved(memory),
                memory.phase,
              ],
            ]
          : [],
      ),
    );
    return { columns: ["Recipe", ...data.components.map(spaced), "peak", "reserved", "in phase"], rows };
  },
});

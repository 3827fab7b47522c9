// What fits: a map of length and batch size for each method on the chosen GPU.

import { AXIS, CHART, FONT, register } from "./charts.js";
import { Controls, estimateOf, MARKS, modelNamed, showChosen } from "./estimates.js";
import { formatBytes, GIB } from "./quantities.js";

const section = document.getElementById("fits");
const COLOURS = { fits: "var(--fits)", tight: "var(--tight)", "does not fit": "var(--too-much)" };
const CELL = 30;
const TOP = 26;
const DIGIT = 7; // width of a digit in pixels, with some margin

function lengthsOf({ lengths, chosen }) {
  if (!chosen) return [];
  const { longest } = modelNamed(chosen.model);
  const shown = lengths.filter((length) => length <= longest);
  return shown.length ? shown : [longest];
}

function cell({ method, chosen }, seqLen, batchSize) {
  return estimateOf({ ...chosen, method, seqLen, batchSize });
}

// In GiB, with as many digits as fit a cell.
const brief = (bytes) => {
  const gib = bytes / GIB;
  return gib < 9.95 ? gib.toFixed(1) : String(Math.round(gib));
};

register("fits", {
  height: (data) => CELL * Math.max(1, lengthsOf(data).length) + TOP + 4,

  option(data, { width }) {
    const lengths = lengthsOf(data);
    const cells = lengths.flatMap((length, row) =>
      data.batchSizes.map((size, column) => ({ column, row, estimate: cell(data, length, size) })),
    );
    const axis = { ...AXIS, type: "category", splitLine: { show: false } };
    return {
      ...CHART,
      grid: { left: 62, right: 2, top: TOP, bottom: 2 },
      xAxis: { ...axis, position: "top", data: data.batchSizes.map(String), axisLabel: { ...AXIS.axisLabel, interval: 0 } },
      yAxis: { ...axis, inverse: true, data: lengths.map(String), axisLabel: { ...AXIS.axisLabel, interval: 0 } },
      series: [
        {
          type: "custom",
          data: cells.map(({ column, row }) => [column, row]),
          renderItem: (params, api) => {
            const { column, row, estimate } = cells[params.dataIndex];
            if (!estimate) return null;
            const [x, y] = api.coord([column, row]);
            const [across, down] = api.size([1, 1]);
            const mark = MARKS[estimate.verdict];
            const wordy = `${mark} ${brief(estimate.totalBytes[1])}`;
            const text = wordy.length * DIGIT < across ? wordy : mark;
            return {
              type: "group",
              children: [
                {
                  type: "rect",
                  shape: { x: x - across / 2 + 1, y: y - down / 2 + 1, width: across - 2, height: down - 2, r: 2 },
                  style: { fill: COLOURS[estimate.verdict] },
                },
                {
                  type: "text",
                  x,
                  y,
                  style: { text, fill: "var(--text)", fontSize: 10.5, fontFamily: FONT, align: "center", verticalAlign: "middle" },
                },
              ],
            };
          },
        },
      ],
    };
  },

  tip(data, [column, row]) {
    const seqLen = lengthsOf(data)[row];
    const batchSize = data.batchSizes[column];
    const estimate = seqLen && batchSize && cell(data, seqLen, batchSize);
    if (!estimate) return null;
    return {
      caption: `${data.method}, ${batchSize}×${seqLen}: ${estimate.verdict}`,
      columns: ["", "estimated"],
      rows: [
        ["peak allocated", formatBytes(estimate.peakBytes)],
        ["worst case on the GPU", formatBytes(estimate.totalBytes[1])],
        ["usable", formatBytes(estimate.usableBytes)],
        [estimate.marginBytes < 0 ? "too large by" : "to spare", formatBytes(Math.abs(estimate.marginBytes))],
      ],
    };
  },

  table(data) {
    const rows = lengthsOf(data).map((length) => [
      String(length),
      ...data.batchSizes.map((size) => {
        const estimate = cell(data, length, size);
        return estimate ? `${formatBytes(estimate.totalBytes[1])}, ${estimate.verdict}` : "–";
      }),
    ]);
    return { columns: ["Length", ...data.batchSizes.map((size) => `batch ${size}`)], rows };
  },
});

// Caption: the longest sequence that fits.
function caption(data) {
  const { model, gpu, rank, checkpointing } = data.chosen;
  const lengths = lengthsOf(data);
  if (!cell(data, lengths[0], 1)) return `${model} cannot be trained with ${data.method}.`;
  const fitting = lengths.filter((length) => cell(data, length, 1).verdict === "fits");
  const recipe = `${data.method}${data.method === "full" ? "" : ` r${rank}`}, checkpointing ${checkpointing}`;
  if (!fitting.length) return `${model}, ${recipe}: nothing shown fits ${gpu}.`;
  const longest = fitting.at(-1);
  const most = data.batchSizes.filter((size) => cell(data, longest, size).verdict === "fits").at(-1);
  const sizes = most === 1 ? "batch size 1" : `batch sizes up to ${most}`;
  return `${model}, ${recipe}: the longest sequence shown that fits ${gpu} is ${longest}, at ${sizes}.`;
}

const map = (chosen) => Promise.all([...section.querySelectorAll(".chart")].map((element) => showChosen(element, chosen, caption)));

if (section) {
  const controls = new Controls(section, map);
  map(controls.chosen());
}

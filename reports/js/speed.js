// Tokens per second: one bar per run below its name, with the interval of its median step.

import { AXIS_HEIGHT, base, FONT, methodColour, namesAbove, register, valueAxis } from "./charts.js";
import { formatNumber, formatSeconds } from "./quantities.js";

const between = (ends) => (ends ? ends.map(formatNumber).join(" to ") : "–");
const utilisation = (share) => (share === null ? "–" : `${formatNumber(100 * share)}%`);

register("speed", {
  height: (data) => 48 * data.rows.length + AXIS_HEIGHT,

  option(data, { width }) {
    const names = data.rows.map((row) => (row.unstable.length ? `${row.name}, unstable` : row.name));
    const wordy = width >= 560;
    return {
      ...base(names, { right: wordy ? 190 : 64 }),
      xAxis: valueAxis({ max: data.longest, unit: "tokens/s", width }),
      series: [
        namesAbove(names, { width, above: 17 }),
        {
          type: "bar",
          barWidth: 15,
          emphasis: { disabled: true },
          data: data.rows.map((row) => ({
            value: row.tokensPerSecond,
            itemStyle: { color: methodColour(row.method), opacity: row.unstable.length ? 0.5 : 1 },
          })),
        },
        {
          type: "custom",
          silent: true,
          encode: { x: [0, 1], y: 3 },
          data: data.rows.map((row, place) => [
            ...(row.interval ?? [row.tokensPerSecond, row.tokensPerSecond]),
            row.tokensPerSecond,
            place,
          ]),
          renderItem: (params, api) => barEnd(api, data.rows[api.value(3)], wordy),
        },
      ],
    };
  },

  tip(data, [, place]) {
    if (!data.rows[place]) return null;
    const row = data.rows[place];
    const rows = [["at the median step", formatNumber(row.tokensPerSecond)]];
    if (row.interval) rows.push(["95 % interval", between(row.interval)]);
    if (row.estimated) rows.push(["estimated", between(row.estimated)]);
    if (row.mfu !== null) rows.push(["MFU", utilisation(row.mfu)]);
    rows.push(...row.unstable.map((reason) => ["unstable", reason]));
    return { caption: row.name, columns: ["", "tokens/s"], rows };
  },

  table(data) {
    const rows = data.rows.map((row) => [
      row.name,
      formatNumber(row.tokensPerSecond),
      between(row.interval),
      between(row.estimated),
      formatSeconds(row.stepSeconds),
      String(row.steps),
      utilisation(row.mfu),
      utilisation(row.hfu),
      row.unstable.join("; ") || "–",
    ]);
    return {
      columns: ["Recipe", "tokens/s", "95 % interval", "estimated", "median step", "timed steps", "MFU", "HFU", "unstable"],
      rows,
    };
  },
});

// The interval as a line, and the figure to the right of interval and bar.
function barEnd(api, row, wordy) {
  const place = api.value(3);
  const [low, y] = api.coord([api.value(0), place]);
  const [high] = api.coord([api.value(1), place]);
  const [end] = api.coord([api.value(2), place]);
  const line = (x1, y1, x2, y2) => ({
    type: "line",
    shape: { x1, y1, x2, y2 },
    style: { stroke: "var(--text)", lineWidth: 1.5 },
  });
  const figure = formatNumber(row.tokensPerSecond);
  const used = row.mfu === null ? "" : `, MFU ${utilisation(row.mfu)}`;
  const text = {
    type: "text",
    x: Math.max(end, high) + 6,
    y,
    style: {
      text: wordy ? `${figure} tokens/s${used}` : figure,
      fill: "var(--text)",
      fontSize: 12,
      fontFamily: FONT,
      verticalAlign: "middle",
    },
  };
  const lines = row.interval ? [line(low, y, high, y), line(low, y - 4, low, y + 4), line(high, y - 4, high, y + 4)] : [];
  return { type: "group", children: [...lines, text] };
}

// Tokens per second: one bar for each run below its name, with a line across the middle half of its steps.

import { AXIS_HEIGHT, base, FONT, namesAbove, register, valueAxis } from "./charts.js";
import { formatNumber } from "./quantities.js";
import { STORE } from "./store.js";

register("throughput", {
  height: (data) => 48 * data.rows.length + AXIS_HEIGHT,

  option(data, { width }) {
    const names = data.rows.map((row) => row.name);
    const unit = width >= 560 ? " tokens/s" : "";
    return {
      ...base(names, { right: unit ? 120 : 64 }),
      xAxis: valueAxis({ max: data.longest, unit: "tokens/s", width }),
      series: [
        namesAbove(names, { width, above: 17 }),
        {
          type: "bar",
          barWidth: 15,
          emphasis: { disabled: true },
          data: data.rows.map((row) => ({
            value: row.tokensPerSecond,
            itemStyle: { color: `var(--${row.method})` },
          })),
        },
        {
          type: "custom",
          silent: true,
          encode: { x: [0, 1], y: 3 },
          data: data.rows.map((row, place) => [
            ...(row.quartiles ?? [row.tokensPerSecond, row.tokensPerSecond]),
            row.tokensPerSecond,
            place,
          ]),
          renderItem: (params, api) => throughputEnd(api, data.rows[api.value(3)], unit),
        },
      ],
    };
  },

  tip(data, [, place]) {
    if (!data.rows[place]) return null;
    const { name, tokensPerSecond, quartiles } = data.rows[place];
    const rows = [["median step", formatNumber(tokensPerSecond)]];
    if (quartiles) rows.push(["middle half", quartiles.map(formatNumber).join(" to ")]);
    return { caption: name, columns: ["", "tokens/s"], rows };
  },

  table(data) {
    const rows = data.rows.map(({ run, name, tokensPerSecond, quartiles }) => {
      const { step_seconds: seconds, tokens_per_step: tokens } = STORE.records[run].measurement;
      const half = quartiles ? quartiles.map(formatNumber).join(" to ") : "–";
      return [name, formatNumber(tokensPerSecond), half, String(seconds.length), formatNumber(tokens)];
    });
    return { columns: ["Recipe", "tokens/s", "middle half", "timed steps", "tokens per step"], rows };
  },
});

// The line across the middle half of the steps, and the figure to the right of it and of the bar.
function throughputEnd(api, row, unit) {
  const place = api.value(3);
  const [low, y] = api.coord([api.value(0), place]);
  const [high] = api.coord([api.value(1), place]);
  const [end] = api.coord([api.value(2), place]);
  const line = (x1, y1, x2, y2) => ({
    type: "line",
    shape: { x1, y1, x2, y2 },
    style: { stroke: "var(--text)", lineWidth: 1.5 },
  });
  const text = {
    type: "text",
    x: Math.max(end, high) + 6,
    y,
    style: {
      text: `${formatNumber(row.tokensPerSecond)}${unit}`,
      fill: "var(--text)",
      fontSize: 12,
      fontFamily: FONT,
      verticalAlign: "middle",
    },
  };
  const lines = row.quartiles ? [line(low, y, high, y), line(low, y - 4, low, y + 4), line(high, y - 4, high, y + 4)] : [];
  return { type: "group", children: [...lines, text] };
}

// What if: estimates of the chosen recipe, and of the other methods for comparison.

import { AXIS_HEIGHT, barEnds, base, namesAbove, register, spaced, valueAxis } from "./charts.js";
import { Controls, estimateOf, MARKS, PLANNING, showChosen, speedOf } from "./estimates.js";
import { byteScale, formatBytes, formatNumber } from "./quantities.js";

const section = document.getElementById("what_if");
const VERDICTS = Object.fromEntries(Object.entries(MARKS).map(([verdict, mark]) => [verdict, `${mark} ${verdict}`]));
const THICK = 18;
const NAME_HEIGHT = 24;

const recipesOf = ({ methods, chosen }) =>
  methods.flatMap((method) => {
    const estimate = chosen && estimateOf({ ...chosen, method });
    return estimate ? [{ method, estimate }] : [];
  });

register("what_if", {
  height: (data) => data.methods.length * (THICK + NAME_HEIGHT + 12) + AXIS_HEIGHT,

  option(data, { width, hidden }) {
    const recipes = recipesOf(data);
    const longest = Math.max(...recipes.map(({ estimate }) => estimate.peakBytes));
    const scale = byteScale(longest);
    const wordy = width >= 560;
    const names = recipes.map(({ method }) => method);
    const bar = { type: "bar", stack: "estimate", barWidth: THICK, emphasis: { disabled: true } };
    const stack = PLANNING.components
      .filter((component) => !hidden.has(component))
      .map((component) => ({
        ...bar,
        itemStyle: { color: `var(--${component})` },
        data: recipes.map(({ estimate }) => estimate.components[component] / scale.size),
      }));
    const ends = barEnds(bar, names, (place) => {
      const { estimate } = recipes[place];
      return `${formatBytes(estimate.peakBytes)}, ${wordy ? VERDICTS[estimate.verdict] : MARKS[estimate.verdict]}`;
    });
    const options = base(names, { right: wordy ? 190 : 96 });
    return {
      ...options,
      grid: { ...options.grid, top: NAME_HEIGHT / 2 },
      xAxis: valueAxis({ max: hidden.size ? "dataMax" : longest / scale.size, unit: scale.name, width }),
      series: [namesAbove(names, { width, above: THICK / 2 + NAME_HEIGHT / 2 }), ...stack, ends],
    };
  },

  tip(data, [, place], hidden) {
    const recipe = recipesOf(data)[place];
    if (!recipe) return null;
    const { method, estimate } = recipe;
    const shown = PLANNING.components.filter((component) => !hidden.has(component) && estimate.components[component]);
    const rows = shown.map((component) => [spaced(component), formatBytes(estimate.components[component])]);
    return { caption: method, columns: ["", "estimated"], rows: [...rows, ["peak", formatBytes(estimate.peakBytes)]] };
  },

  table(data) {
    const recipes = recipesOf(data);
    const line = (title, write) => [title, ...recipes.map(({ estimate }) => write(estimate))];
    return {
      columns: ["Bytes", ...recipes.map(({ method }) => method)],
      rows: [
        ...PLANNING.components.map((component) => line(spaced(component), (one) => String(one.components[component]))),
        line("peak", (one) => String(one.peakBytes)),
        line("reserved, low", (one) => String(one.reservedBytes[0])),
        line("reserved, high", (one) => String(one.reservedBytes[1])),
        line("on the GPU, low", (one) => String(one.totalBytes[0])),
        line("on the GPU, high", (one) => String(one.totalBytes[1])),
        line("in phase", (one) => one.phase),
        line("verdict", (one) => one.verdict),
      ],
    };
  },
});

function say(name, text) {
  section.querySelector(name).textContent = text;
}

// Two sizes with a word between them; an equal unit is written once.
function both([first, second], word) {
  const [from, to] = [formatBytes(first), formatBytes(second)];
  if (from === to) return from;
  const [number, unit] = from.split(" ");
  return `${to.endsWith(unit) ? number : from} ${word} ${to}`;
}

function sayChosen(chosen, estimate) {
  const { model, method, checkpointing, rank, batchSize, seqLen, gpu } = chosen;
  const adapters = method === "full" ? "" : ` r${rank}`;
  const recipe = `${model}, ${method}${adapters}, ${batchSize}×${seqLen}, checkpointing ${checkpointing}`;
  const verdict = section.querySelector(".answer .verdict");
  verdict.textContent = `${recipe} on ${gpu}: ${VERDICTS[estimate.verdict]}`;
  verdict.dataset.verdict = estimate.verdict;
  say(".peak", formatBytes(estimate.peakBytes));
  say(".phase", `In ${estimate.phase}.`);
  say(".total", both(estimate.totalBytes, "to"));
  const margin = formatBytes(Math.abs(estimate.marginBytes));
  const left = estimate.marginBytes < 0 ? `up to ${margin} too large` : `at least ${margin} to spare`;
  say(".margin", `${both([estimate.usableBytes, estimate.memoryBytes], "of")} usable: ${left}.`);
  const speed = speedOf(chosen);
  say(".answer .speed", speed ? `${formatNumber(speed.likely)} tokens/s` : "unknown");
  say(
    ".rates",
    speed
      ? `${formatNumber(speed.least)} to ${formatNumber(speed.most)}, from the datasheet${estimate.verdict === "does not fit" ? ", with enough memory" : ""}.`
      : `Only the memory of ${gpu} is known.`,
  );
  say(".trainable", estimate.trainable.toLocaleString("en-US"));
  const settings = Object.entries(estimate.settings).map(([name, value]) => `${name} ${value}`);
  say(".settings", settings.join(", ") + (method === "full" ? "" : `, lora_alpha ${2 * rank}`));
  say(".assumptions", estimate.assumptions.map((assumption) => `Assumed: ${assumption}.`).join(" "));
}

function caption(data) {
  const { chosen } = data;
  const peaks = recipesOf(data).map(({ method, estimate }) => `${method} ${formatBytes(estimate.peakBytes)}`);
  return `Peaks of ${chosen.model} at ${chosen.batchSize}×${chosen.seqLen}: ${peaks.join(", ")}.`;
}

async function answer(chosen) {
  const status = section.querySelector(".answer");
  const estimate = chosen && estimateOf(chosen);
  status.classList.toggle("without", !estimate);
  if (!estimate) {
    const { batchSize, seqLen } = controls.fields;
    const numbers = `Enter a whole batch size up to ${batchSize.max} and a length from ${seqLen.min} to ${seqLen.max}.`;
    say(".answer .verdict", chosen ? `${chosen.model} cannot be trained with ${chosen.method}.` : numbers);
    return;
  }
  sayChosen(chosen, estimate);
  await showChosen(section.querySelector(".chart"), chosen, caption);
}

const controls = section && new Controls(section, answer);
if (controls) answer(controls.chosen());

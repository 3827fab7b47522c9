// Estimates of the choices on the page, computed from the data of reports/planning.py.

import { chartIn } from "./charts.js";
import { decided, runSteps } from "./expressions.js";
import { unpack } from "./store.js";
import { asTable } from "./tables.js";

const element = document.getElementById("planning");

// Models with their methods, GPUs and selectable ranks; null on a page without estimates.
export const PLANNING = element && (await unpack(element));

// Marks of the verdicts, besides their colours.
export const MARKS = { fits: "✓", tight: "~", "does not fit": "✗" };

export const modelNamed = (name) => PLANNING.models.find((model) => model.name === name);
const gpuNamed = (name) => PLANNING.gpus.find((gpu) => gpu.name === name);

const rankPlace = (rank) => (rank ? PLANNING.ranks.indexOf(rank) : 0);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

// The peak of a step: the first of the peak candidates with the most bytes. Each is a list of [component, place of
// a monomial's value, bytes for each unit of it].
function peakOf(forms, held, workspaces, values) {
  const ofWorkspaces = PLANNING.components.indexOf("workspaces");
  let peak = { bytes: -1 };
  for (const { phase, candidates } of forms)
    for (const live of candidates) {
      const components = [...held[phase]];
      components[ofWorkspaces] *= workspaces;
      for (const [component, place, bytes] of live) components[component] += bytes * values[place];
      const bytes = sum(components);
      if (bytes > peak.bytes) peak = { bytes, components, phase };
    }
  return peak;
}

// What the chosen sizes come to: the recipe that they are of, the values of monomials, the numbers of what runs, and the
// place of the rank.
// Null where the model cannot be trained with the method.
// Chosen are { model, method, checkpointing: "yes" or "no", rank, batchSize, seqLen, gpu }.
function sized({ model, method, checkpointing, rank, batchSize, seqLen }) {
  const { sizes: program, recipes, speed } = modelNamed(model);
  const recipe = recipes[method]?.[checkpointing];
  if (!recipe) return null;
  const adapted = recipe.held.length > 1;
  const sizes = { batch_size: batchSize, seq_len: seqLen, rank: adapted ? rank : 0 };
  const values = runSteps(program.steps, sizes);
  const [many, filled] = program.branches.map((place) => values[place]);
  return { recipe, sizes, values, many, filled, speed, place: adapted ? rankPlace(rank) : 0 };
}

// The estimate of the chosen recipe on the chosen GPU; null as in `sized`.
export function estimateOf(chosen) {
  const found = sized(chosen);
  if (!found) return null;
  const { recipe, values, many, filled, place } = found;
  const { memoryBytes, usableBytes, architecture, assumptions } = gpuNamed(chosen.gpu);
  const { workspaces, reserved } = PLANNING.architectures[architecture];
  const peak = peakOf(recipe.forms[many][filled], recipe.held[place], workspaces, values);
  const components = Object.fromEntries(PLANNING.components.map((name, at) => [name, peak.components[at]]));
  const taken = runSteps(reserved.steps, components);
  const [low, high, total, totalLow, totalHigh] = ["reservedLow", "reservedHigh", "total", "totalLow", "totalHigh"].map(
    (name) => taken[reserved.answers[name]],
  );
  const judged = runSteps(PLANNING.verdict.steps, { total, totalLow, totalHigh, memoryBytes });
  return {
    components,
    phase: peak.phase,
    peakBytes: peak.bytes,
    reservedBytes: [low, high],
    totalBytes: [totalLow, totalHigh],
    memoryBytes,
    usableBytes,
    verdict: decided(PLANNING.verdict.answer, judged),
    marginBytes: judged[PLANNING.verdict.margin],
    trainable: recipe.trainable[place],
    settings: recipe.settings,
    assumptions: [...recipe.assumptions, ...assumptions],
  };
}

// Tokens per second of the chosen recipe: { least, likely, most }; null as in `sized`, or if the GPU's rates are unknown.
export function speedOf(chosen) {
  const found = sized(chosen);
  const { rates } = gpuNamed(chosen.gpu);
  if (!found || !rates) return null;
  const { recipe, sizes, many, filled, speed, place } = found;
  const variables = { ...sizes, optimizer_bytes: recipe.optimizerBytes[place] };
  const answer = recipe.tokensPerSecond[many][filled];
  return Object.fromEntries(Object.entries(rates).map(([bound, of]) => [bound, runSteps(speed, { ...variables, ...of })[answer]]));
}

// The controls of a section: selects and number inputs by name. Calls `changed` on each change.
export class Controls {
  constructor(section, changed) {
    this.fields = Object.fromEntries([...section.querySelectorAll("[name]")].map((field) => [field.name, field]));
    for (const field of Object.values(this.fields))
      field.addEventListener(field.type === "number" ? "input" : "change", () => {
        if (field === this.fields.model) this.bringWithinModel();
        changed(this.chosen());
      });
    this.bringWithinModel();
  }

  bringWithinModel() {
    const { model, seqLen } = this.fields;
    if (!seqLen) return;
    const { shortest, longest } = modelNamed(model.value);
    Object.assign(seqLen, { min: shortest, max: longest });
    if (seqLen.value) seqLen.value = Math.min(Math.max(seqLen.value, shortest), longest);
  }

  // The current choice; null if a number is out of range.
  chosen() {
    const fields = Object.values(this.fields);
    if (!fields.every((field) => field.checkValidity())) return null;
    const number = ({ name }) => ["rank", "batchSize", "seqLen"].includes(name);
    return Object.fromEntries(fields.map((field) => [field.name, number(field) ? Number(field.value) : field.value]));
  }
}

// Draws a chart for the choice, sets its caption, and refreshes its table if that is open.
export async function showChosen(element, chosen, captionOf) {
  const chart = chartIn(element);
  chart.data.chosen = chosen;
  const caption = captionOf(chart.data);
  const figure = element.closest("figure");
  figure.querySelector("figcaption").textContent = caption;
  element.setAttribute("aria-label", caption);
  element.style.height = `${chart.kind.height(chart.data)}px`;
  const details = figure.querySelector("details.data");
  if (details.open) details.querySelector("table").replaceWith(asTable(chart.kind.table(chart.data)));
  await chart.redraw();
}

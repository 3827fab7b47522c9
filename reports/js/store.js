// The page's data about its runs. The table is unpacked at once; full records are unpacked on demand.

// Unpacks data that `reports/packing.py` packed into an element.
export async function unpack(element) {
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(inflated).text());
}

const table = document.getElementById("runs");
const blocks = [...document.querySelectorAll("script.block")];
const inABlock = Number(table?.dataset.inABlock);
const unpacked = new Map();
const loaded = [];

// Names, models and methods of the runs, and the columns of the table with their values.
export const RUNS = table ? await unpack(table) : { names: [], models: [], methods: [], columns: [], values: [] };

const severalModels = new Set(RUNS.models).size > 1;

// The name of a run, with its model if there are several.
export function fullName(run) {
  return severalModels ? `${RUNS.models[run].split("/").at(-1)} ${RUNS.names[run]}` : RUNS.names[run];
}

// Unpacks the full data of `runs`; afterwards entryOf returns it.
export async function load(runs) {
  const places = new Set(runs.map((run) => Math.floor(run / inABlock)));
  for (const place of places) {
    if (!unpacked.has(place)) unpacked.set(place, unpack(blocks[place]));
    const entries = await unpacked.get(place);
    for (const [offset, entry] of entries.entries()) loaded[place * inABlock + offset] = entry;
  }
}

// The { record, every, traced, rehearsed, derivation } of a loaded run. Its record has the values of every so many steps.
export function entryOf(run) {
  return loaded[run];
}

// The breakdowns of a loaded run by answer; undefined if missing.
export function breakdownsOf(run) {
  const { record, traced, rehearsed } = loaded[run];
  return {
    estimated: record.prediction?.memory,
    traced: traced?.memory,
    rehearsed: rehearsed?.memory,
    measured: record.measurement?.memory,
  };
}

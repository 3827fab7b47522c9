// Shows a run's full record, its environment and the derivation of its estimate.

import { formatBytes } from "./quantities.js";
import { entryOf, load, RUNS } from "./store.js";
import { asTable } from "./tables.js";

const dialog = document.getElementById("record");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const isFact = (value) => value !== null && typeof value !== "object";

function environmentTable({ device, environment }) {
  const { packages, ...facts } = environment;
  const known = Object.entries(facts).map(([name, value]) => [name.replaceAll("_", " "), value]);
  const rows = [["device", device.name], ["memory", formatBytes(device.memory_bytes)], ...known, ...Object.entries(packages)];
  return asTable({ columns: ["fact", "value"], rows: rows.filter(([, value]) => isFact(value)).map(([name, value]) => [name, String(value)]) });
}

// The terms of the derivation: name, formula = numbers = bytes, source.
function derivationOf({ record, derivation }) {
  const made = element("div", undefined, "derivation");
  if (derivation === null || typeof derivation === "string") {
    made.append(element("p", derivation ?? "This page has too many runs for derivations: use lorabench estimate --explain."));
    return made;
  }
  const predicted = record.prediction?.memory.peak_allocated_bytes;
  const terms = derivation.sections.filter((part) => part.component);
  const sum = terms.flatMap((part) => part.lines).reduce((total, line) => total + line.bytes, 0);
  if (predicted !== undefined && sum !== predicted)
    made.append(element("p", `At the time of the run, lorabench ${record.environment.lorabench} estimated ${formatBytes(predicted)}.`, "note"));
  made.append(element("p", derivation.symbols.map(({ name, value, meaning }) => `${name} = ${value.toLocaleString("en-US")} (${meaning})`).join(", ")));
  for (const { title, lines, remark, component } of derivation.sections) {
    const total = lines.reduce((bytes, line) => bytes + line.bytes, 0);
    made.append(element("h3", component ? `${title}: ${formatBytes(total)}` : title));
    if (remark) made.append(element("p", remark));
    for (const line of lines) {
      const term = element("p", line.what, "term");
      term.append(
        element("code", `${line.formula} = ${line.values} = ${line.bytes.toLocaleString("en-US")} B`),
        element("span", line.source, "source"),
      );
      made.append(term);
    }
  }
  return made;
}

export async function openRecord(run) {
  await load([run]);
  const entry = entryOf(run);
  dialog.querySelector("h2").textContent = `${RUNS.models[run]}: ${RUNS.names[run]}`;
  dialog.querySelector(".derived").replaceChildren(derivationOf(entry));
  dialog.querySelector(".environment").replaceChildren(environmentTable(entry.record));
  dialog.querySelector("pre").textContent = JSON.stringify(entry.record, null, 2);
  dialog.showModal();
  dialog.querySelector(".body").scrollTop = 0;
}

dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

for (const row of document.querySelectorAll("main tr[data-run]"))
  row.addEventListener("click", (event) => {
    if (!event.target.closest("details") && getSelection().isCollapsed) openRecord(Number(row.dataset.run));
  });

for (const details of document.querySelectorAll("details.traceback"))
  details.addEventListener(
    "toggle",
    async () => {
      const run = Number(details.closest("tr").dataset.run);
      await load([run]);
      details.querySelector("pre").textContent = entryOf(run).record.traceback;
    },
    { once: true },
  );

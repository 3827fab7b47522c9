// The table of all runs: page by page, sorted and filtered, with selectable columns.

import { formatBytes, formatLoss, formatNumber, formatSeconds, formatShare } from "./quantities.js";
import { openRecord } from "./record.js";
import { entryOf, load, RUNS } from "./store.js";

const IN_A_PAGE = 50;
const ON_PAPER = 500;
const WRITE = {
  text: String,
  bytes: formatBytes,
  share: formatShare,
  fraction: (fraction) => `${formatNumber(100 * fraction)}%`,
  number: formatNumber,
  seconds: formatSeconds,
  loss: formatLoss,
  count: (count) => count.toLocaleString("en-US"),
};

const section = document.getElementById("records");
const columns = RUNS.columns.map((column, place) => ({ ...column, values: RUNS.values[place] }));
const collator = new Intl.Collator("en", { numeric: true });
let sorted = null;
let ascending = true;
let first = 0;
let printed = false;

const write = (column, run) => {
  const value = column.values[run];
  return value == null ? "–" : WRITE[column.kind](value);
};

// Runs that match the filter's words (in visible columns) and the selects, in the chosen order.
function chosenRuns() {
  const words = section.querySelector("input.filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = columns.filter((column) => column.shown);
  let runs = [...RUNS.names.keys()];
  for (const choice of section.querySelectorAll("select[data-column]")) {
    const { values } = columns.find((column) => column.key === choice.dataset.column);
    if (choice.value) runs = runs.filter((run) => values[run] === choice.value);
  }
  if (words.length)
    runs = runs.filter((run) => {
      const text = shown.map((column) => write(column, run)).join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  if (!sorted) return runs;
  const { kind, values } = sorted;
  const order = kind === "text" ? (a, b) => collator.compare(values[a], values[b]) : (a, b) => values[a] - values[b];
  const missing = (run) => values[run] == null;
  return runs.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : ascending ? order(a, b) : order(b, a)));
}

function drawTable() {
  const shown = columns.filter((column) => column.shown);
  const runs = chosenRuns();
  const room = printed ? ON_PAPER : IN_A_PAGE;
  if (first >= runs.length) first = Math.max(0, Math.floor((runs.length - 1) / IN_A_PAGE) * IN_A_PAGE);
  const from = printed ? 0 : first;
  const head = document.createElement("tr");
  for (const column of shown) {
    const header = head.appendChild(document.createElement("th"));
    header.scope = "col";
    header.dataset.key = column.key;
    if (column.kind !== "text") header.className = "number";
    if (column === sorted) header.ariaSort = ascending ? "ascending" : "descending";
    const button = header.appendChild(document.createElement("button"));
    button.className = "sort";
    button.textContent = column.title;
  }
  const rows = runs.slice(from, from + room).map((run) => {
    const row = document.createElement("tr");
    row.dataset.run = run;
    for (const column of shown) {
      const named = column.key === "recipe";
      const cell = row.appendChild(document.createElement(named ? "th" : "td"));
      if (named) {
        cell.scope = "row";
        cell.className = `run ${RUNS.methods[run]}`;
        const button = cell.appendChild(document.createElement("button"));
        button.className = "open";
        button.textContent = write(column, run);
      } else {
        cell.textContent = write(column, run);
        if (column.kind !== "text") cell.className = "number";
        if (column.key === "model" || column.key === "message") cell.className = "model";
      }
    }
    return row;
  });
  const table = section.querySelector("table");
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows);
  const until = Math.min(runs.length, from + room);
  section.querySelector(".shown").textContent = runs.length
    ? `${(from + 1).toLocaleString("en-US")} to ${until.toLocaleString("en-US")} of ${runs.length.toLocaleString("en-US")}`
    : "No run matches.";
  section.querySelector("button.previous").disabled = from === 0;
  section.querySelector("button.next").disabled = until === runs.length;
  section.querySelector(".pages").hidden = runs.length <= IN_A_PAGE && first === 0 && runs.length === RUNS.names.length;
}

// Spreadsheets run a text that looks like a formula; an apostrophe prevents that.
function asCell(value) {
  if (value == null) return "";
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv(runs) {
  const shown = columns.filter((column) => column.shown);
  const lines = [shown.map((column) => column.key), ...runs.map((run) => shown.map((column) => column.values[run]))];
  return lines.map((line) => line.map(asCell).join(",") + "\r\n").join("");
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function listen() {
  const again = () => {
    first = 0;
    drawTable();
  };
  section.querySelector("input.filter").addEventListener("input", again);
  for (const choice of section.querySelectorAll("select[data-column]")) choice.addEventListener("change", again);
  section.querySelector("thead").addEventListener("click", ({ target }) => {
    const key = target.closest(".sort") && target.closest("th").dataset.key;
    if (!key) return;
    const column = columns.find((one) => one.key === key);
    ascending = column === sorted ? !ascending : true;
    sorted = column;
    again();
    section.querySelector(`th[data-key="${key}"] .sort`).focus();
  });
  for (const [name, by] of [["previous", -IN_A_PAGE], ["next", IN_A_PAGE]])
    section.querySelector(`button.${name}`).addEventListener("click", () => {
      first += by;
      drawTable();
    });
  const choices = section.querySelector(".columns");
  for (const column of columns) {
    if (column.key === "recipe") continue;
    const label = choices.appendChild(document.createElement("label"));
    const box = label.appendChild(document.createElement("input"));
    box.type = "checkbox";
    box.checked = column.shown;
    box.dataset.key = column.key;
    label.append(column.title);
    box.addEventListener("change", () => {
      column.shown = box.checked;
      drawTable();
    });
  }
  section.querySelector("button.csv").addEventListener("click", () => download("runs.csv", "text/csv", asCsv(chosenRuns())));
  section.querySelector("button.json").addEventListener("click", async () => {
    const runs = chosenRuns();
    await load(runs);
    download("runs.json", "application/json", JSON.stringify(runs.map((run) => entryOf(run).record), null, 1));
  });
  section.querySelector("tbody").addEventListener("click", ({ target }) => {
    const row = target.closest("tr");
    if (row && getSelection().isCollapsed) openRecord(Number(row.dataset.run));
  });
  for (const [event, paper] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => {
      printed = paper;
      drawTable();
    });
}

listen();
drawTable();

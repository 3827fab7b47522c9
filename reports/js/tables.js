// Makes the data tables of charts when they are first opened, so the page holds each figure only once.

export function asTable({ caption, columns, rows }) {
  const table = document.createElement("table");
  if (caption) table.createCaption().textContent = caption;
  const add = (parent, texts, scopes) => {
    const line = parent.insertRow();
    for (const [place, text] of texts.entries()) {
      const cell = document.createElement(scopes[place] ? "th" : "td");
      if (scopes[place]) cell.scope = scopes[place];
      if (place > 0) cell.className = "number";
      cell.textContent = text;
      line.append(cell);
    }
  };
  add(table.createTHead(), columns, columns.map(() => "col"));
  const body = table.createTBody();
  for (const row of rows) add(body, row, ["row"]);
  return table;
}

// Sorts a table by the clicked column title; a second click reverses the order. Empty cells stay last.

function sortBy(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const order = new Intl.Collator("en", { numeric: true });
  const rows = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    const numeric = header.classList.contains("number");
    return { row, value: numeric ? Number(cell.dataset.value ?? NaN) : text, empty: numeric ? !("value" in cell.dataset) : text === "–" };
  });
  rows.sort((a, b) => {
    if (a.empty || b.empty) return a.empty - b.empty;
    const difference = typeof a.value === "number" ? a.value - b.value : order.compare(a.value, b.value);
    return ascending ? difference : -difference;
  });
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

for (const button of document.querySelectorAll("button.sort"))
  button.addEventListener("click", () => sortBy(button.closest("th")));

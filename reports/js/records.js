// Shows a run's whole record, and tracebacks of failed runs, as text from the page's one copy of the records.

import { recordOf, STORE } from "./store.js";

const dialog = document.getElementById("record");

function openRecord(run, title) {
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("pre").textContent = JSON.stringify(recordOf(run), null, 2);
  dialog.showModal();
  dialog.querySelector("pre").scrollTop = 0;
}

for (const row of document.querySelectorAll("tr[data-run]"))
  row.addEventListener("click", (event) => {
    if (event.target.closest("details") || !getSelection().isCollapsed) return;
    const { recipe } = STORE.records[row.dataset.run];
    openRecord(row.dataset.run, `${recipe.model}: ${row.querySelector(".open").textContent}`);
  });

dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

for (const details of document.querySelectorAll("details.traceback"))
  details.addEventListener(
    "toggle",
    () => {
      details.querySelector("pre").textContent = recordOf(details.closest("tr").dataset.run).traceback;
    },
    { once: true },
  );

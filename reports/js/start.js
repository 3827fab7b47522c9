// Draws each chart when it comes near the window, again when its width changes, and all of them for print.

import { Chart } from "./charts.js";
import { asTable } from "./tables.js";

const CHARTS = new Map([...document.querySelectorAll(".chart")].map((element) => [element, new Chart(element)]));

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting && !CHARTS.get(target).drawn) CHARTS.get(target).draw();
  },
  { rootMargin: "600px" },
);
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const chart = CHARTS.get(target);
    if (chart.drawn && target.clientWidth !== chart.width && !printing) chart.draw();
  }
});
let printing = false;
for (const element of CHARTS.keys()) {
  near.observe(element);
  resized.observe(element);
}
addEventListener("beforeprint", () => {
  printing = true;
  for (const chart of CHARTS.values()) chart.enterPrint();
});
addEventListener("afterprint", () => {
  for (const chart of CHARTS.values()) chart.leavePrint();
  printing = false;
});

for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const element of button.closest(".charts").querySelectorAll(".chart"))
      CHARTS.get(element).toggle(button.dataset.key, shown);
  });

for (const details of document.querySelectorAll("details.data")) {
  const { kind, data } = CHARTS.get(details.closest("figure").querySelector(".chart"));
  details.addEventListener("toggle", () => details.querySelector("table").replaceWith(asTable(kind.table(data))), {
    once: true,
  });
}

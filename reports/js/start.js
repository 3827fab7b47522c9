// Draws each chart when it comes near the viewport, again when its width changes, and all visible ones for print.

import { chartIn } from "./charts.js";
import { asTable } from "./tables.js";

const ELEMENTS = [...document.querySelectorAll(".chart")];
const isShown = (element) => element.clientWidth > 0;

// Galleries show one figure at a time: a select names them, and buttons go to the previous and the next.
for (const gallery of document.querySelectorAll(".gallery")) {
  const figures = [...gallery.querySelectorAll(":scope > figure")];
  const choice = gallery.querySelector("select.figure");
  const [previous, next] = gallery.querySelectorAll(".steps button");
  const show = (place) => {
    choice.selectedIndex = place;
    for (const [other, figure] of figures.entries()) figure.hidden = other !== place;
    previous.disabled = place === 0;
    next.disabled = place === figures.length - 1;
  };
  choice.addEventListener("change", () => show(choice.selectedIndex));
  previous.addEventListener("click", () => show(choice.selectedIndex - 1));
  next.addEventListener("click", () => show(choice.selectedIndex + 1));
}

// Load records before anybody can print. Records of hidden figures are loaded when these are shown.
await Promise.all(ELEMENTS.filter(isShown).map((element) => chartIn(element).ready()));

let printing = false;
const near = new IntersectionObserver(
  async (entries) => {
    for (const { target } of entries.filter(({ isIntersecting }) => isIntersecting)) {
      const chart = chartIn(target);
      await chart.ready();
      if (!chart.drawn) chart.draw();
      resized.observe(target);
    }
  },
  { rootMargin: "600px" },
);
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const chart = chartIn(target);
    if (chart.drawn && target.clientWidth !== chart.width && !printing) chart.draw();
  }
});
for (const element of ELEMENTS) near.observe(element);
addEventListener("beforeprint", () => {
  printing = true;
  for (const element of ELEMENTS) if (isShown(element)) chartIn(element).enterPrint();
});
addEventListener("afterprint", () => {
  for (const element of ELEMENTS) if (isShown(element)) chartIn(element).leavePrint();
  printing = false;
});

for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const element of button.closest(".charts").querySelectorAll(".chart"))
      chartIn(element).toggle(button.dataset.key, shown);
  });

for (const details of document.querySelectorAll("details.data"))
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    const chart = chartIn(details.closest("figure").querySelector(".chart"));
    await chart.ready();
    details.querySelector("table").replaceWith(asTable(chart.kind.table(chart.data)));
  });

document.documentElement.dataset.ready = Math.round(performance.now());

"use strict";
// Sorting: a click on a heading, a second one turns it round. Cells say by data-value what they are worth.
for (const table of document.querySelectorAll("table.sorted")) {
  const body = table.tBodies[0];
  const worth = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    return value === undefined ? cell.textContent : value === "" ? -Infinity : Number(value);
  };
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const column = heading.cellIndex;
      const number = heading.classList.contains("number");
      const first = number ? "descending" : "ascending";
      const second = number ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const x = worth(a, column), y = worth(b, column);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
      body.append(...rows);
    });
  }
}
// Searching: rows and layers whose text holds every word.
for (const field of document.querySelectorAll("input[data-of]")) {
  const shown = field.parentElement.querySelector(".count");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...document.querySelectorAll(field.dataset.of)];
    for (const item of all) {
      const text = (item.dataset.search || item.textContent).toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
    }
    const left = all.filter((item) => !item.hidden).length;
    shown.textContent = words.length ? `${left} of ${all.length}` : "";
  });
}
// A link to a layer opens it, and what it stands in.
const open = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (!target) return;
  target.hidden = false;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.scrollIntoView({ block: "start" });
};
addEventListener("hashchange", open);
open();

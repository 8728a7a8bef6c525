"use strict";
// Headings of tables become buttons: ascending, descending, and as it was.
(() => {
  const collator = new Intl.Collator("en", { numeric: true });
  const number = (cell) => (cell.dataset.value === undefined ? NaN : Number(cell.dataset.value));
  const sort = (table, rows, place, way) => {
    const numeric = rows.some((row) => row.cells[place].dataset.value !== undefined);
    const compare = (one, other) => {
      const [a, b] = [one.cells[place], other.cells[place]];
      if (!numeric) return way * collator.compare(a.textContent.trim(), b.textContent.trim());
      const [x, y] = [number(a), number(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return way * (x - y);
    };
    table.tBodies[0].append(...(way ? [...rows].sort(compare) : rows));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells];
    if (rows.length < 2) continue;
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = { ascending: "descending", descending: null }[now];
        const told = next === undefined ? "ascending" : next;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (told) head.setAttribute("aria-sort", told);
        sort(table, rows, place, { ascending: 1, descending: -1 }[told] || 0);
      });
    });
  }
})();

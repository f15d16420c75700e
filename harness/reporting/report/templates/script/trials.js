// The table of all trials: sorted by any column, filtered by text and by axis, ticked trials compared.

const trials = (() => {
  const table = byId("trials");
  if (!table) return { init() {} };
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, order) => ({
    row, order, text: row.querySelector("th").textContent.toLowerCase(),
    values: [...row.cells].map((cell) => {
      const given = cell.dataset.value;
      return given === undefined ? cell.textContent.trim().toLowerCase() : given === "" ? null : Number(given);
    }),
  }));
  const words = new Intl.Collator("en", { numeric: true }); // much faster than localeCompare, which makes one each
  let most = 200; // rows in the document
  let sorted = { column: -1, down: false };

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing stands last, either way
    const order = typeof a === "number" && typeof b === "number" ? a - b : words.compare(String(a), String(b));
    return sorted.down ? -order : order;
  }

  function fits() {
    const wanted = byId("trials-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const picked = [...document.querySelectorAll("#trials-filter select")].map((select) => [Number(select.dataset.column), select.value]);
    return ({ row, text }) => wanted.every((word) => text.includes(word)) &&
      picked.every(([column, value]) => value === "" || row.cells[column].textContent.trim() === value);
  }

  /** Sort and filter. Of many rows the first are in the document alone: a browser lays out thousands slowly. */
  function apply() {
    const found = rows.filter(fits());
    if (sorted.column >= 0) found.sort((a, b) => compare(a.values[sorted.column], b.values[sorted.column]) || a.order - b.order);
    const shown = found.slice(0, most);
    body.replaceChildren(...shown.map(({ row }) => row));
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (column === sorted.column) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const cut = shown.length < found.length ? `, the first ${shown.length} shown` : "";
    byId("trials-count").textContent = (found.length === rows.length ? `${rows.length} trials` : `${found.length} of ${rows.length} trials`) + cut;
    byId("trials-all").hidden = !cut;
  }

  function showAll() {
    most = Infinity;
    apply();
  }

  function save() {
    const names = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
    state.write({ sort: sorted.column < 0 ? null : `${sorted.down ? "-" : ""}${names[sorted.column]}`, find: byId("trials-text").value || null });
  }

  function init() {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (head.classList.contains("tick")) return;
      const button = el("button", { type: "button", class: "sort", click: () => {
        const numeric = head.classList.contains("n");
        sorted = { column, down: sorted.column === column ? !sorted.down : numeric };
        apply();
        save();
      } }, ...head.childNodes);
      head.replaceChildren(button);
    });
    const selects = heads.flatMap((head, column) => {
      if (!head.classList.contains("axis")) return [];
      const values = [...new Set(rows.map(({ row }) => row.cells[column].textContent.trim()))];
      if (values.length > 40) return [];
      values.sort(words.compare);
      const name = head.textContent.trim();
      return [el("label", {}, el("span", {}, name), el("select", { "data-column": column, change: apply },
        el("option", { value: "" }, "any"), values.map((value) => el("option", { value }, value))))];
    });
    const given = state.read();
    byId("trials-filter").replaceChildren(
      el("label", {}, el("span", {}, "find"), el("input", { type: "search", id: "trials-text", value: given.find ?? "", input: () => { apply(); save(); } })),
      ...selects,
      el("button", { type: "button", id: "trials-compare", click: () => {
        const ticked = rows.filter(({ row }) => row.cells[0].firstChild.checked).map(({ row }) => Number(row.dataset.trial));
        if (ticked.length) grid.compareTrials(ticked);
      } }, "Compare the ticked"),
      el("button", { type: "button", id: "trials-all", click: showAll }, "Show all"),
      el("output", { id: "trials-count" }));
    for (const { row } of rows) {
      const cell = row.cells[0];
      cell.replaceChildren(el("input", { type: "checkbox", value: row.dataset.trial, "aria-label": `tick ${row.cells[1].textContent.trim()}` }));
    }
    if (given.sort) {
      const column = heads.findIndex((head) => head.textContent.trim() === given.sort.replace(/^-/, ""));
      if (column >= 0) sorted = { column, down: given.sort.startsWith("-") };
    }
    if (location.hash.startsWith("#trial-")) most = Infinity;
    apply();
    addEventListener("beforeprint", showAll);
  }

  return { init };
})();

"use strict";
(() => {
  // A heading sorts its column; once more turns the order around.
  for (const head of document.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const body = head.closest("table").tBodies[0];
      const column = head.cellIndex;
      const falling = head.getAttribute("aria-sort") === "ascending";
      const keyOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const numeric = head.dataset.sort === "number";
      const rows = [...body.rows].sort((a, b) =>
        numeric ? Number(keyOf(a)) - Number(keyOf(b))
                : keyOf(a).localeCompare(keyOf(b), undefined, { numeric: true }));
      if (falling) rows.reverse();
      body.append(...rows);
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  }
  // A link to a layer opens it.
  const show = () => {
    const target = location.hash ? document.getElementById(location.hash.slice(1)) : null;
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", show);
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a[href^='#']") : null;
    if (link && link.hash === location.hash) show();
  });
  show();
})();

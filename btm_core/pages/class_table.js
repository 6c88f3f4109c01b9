// Tables of classes: see btm_core/pages/class_table.py. Names of classes are data: they only ever become text.
"use strict";
for (const section of document.querySelectorAll(".class-table")) {
  const data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const find = (name) => section.querySelector(`[data-part="${name}"]`);
  const body = section.querySelector("tbody"), status = find("status");
  // Where the value of a column is in a row; the interval has two and sorts by its lower end. One model has no change.
  const place = Object.fromEntries(data.columns.map((column, number) => [column.key, number + 1]));
  const CLASS = 0, NAME = 1, GROUP = 2, AFTER = place.after, CHANGE = place.change, CLEAR = place.interval + 2;
  const lower = data.rows.map((row) => row[NAME].toLocaleLowerCase());
  const order = new Intl.Collator(undefined, { numeric: true });
  let sort = { key: "after", down: false }, page = 0, shown = [];

  const percent = (value) => value.toFixed(1);
  const points = (value) => (value > 0 ? "+" : "") + value.toFixed(1);
  const keep = {
    all: () => true,
    better: (row) => row[CHANGE] > 0,
    worse: (row) => row[CHANGE] < 0,
    "clearly-better": (row) => row[CLEAR] && row[CHANGE] > 0,
    "clearly-worse": (row) => row[CLEAR] && row[CHANGE] < 0,
    zero: (row) => row[AFTER] === 0,
  };

  function select() {
    const text = find("search").value.trim().toLocaleLowerCase();
    const group = find("group").value, changed = keep[find("change").value];
    const at = place[sort.key], sign = sort.down ? -1 : 1;
    const compare = at <= GROUP ? (a, b) => order.compare(a[at], b[at]) : (a, b) => a[at] - b[at];
    shown = data.rows.filter((row, number) =>
      lower[number].includes(text) && (group === "" || row[GROUP] === group) && changed(row));
    shown.sort((a, b) => sign * compare(a, b) || a[CLASS] - b[CLASS]);
  }

  const shownAs = {
    text: (row, at) => row[at],
    count: (row, at) => row[at].toLocaleString("en"),
    percent: (row, at) => percent(row[at]),
    points: (row, at) => points(row[at]),
    interval: (row, at) => `${points(row[at])} to ${points(row[at + 1])}`,
  };

  function cell(row, column, verdict) {
    const made = document.createElement("td");
    made.textContent = shownAs[column.kind](row, place[column.key]);
    const kind = column.kind === "points" ? verdict : column.kind === "text" ? "text" : "";
    if (kind) made.className = kind;
    return made;
  }

  function line(row) {
    const made = document.createElement("tr"), name = document.createElement("th");
    made.id = `${data.prefix}-${row[CLASS]}`;
    name.scope = "row";
    name.className = "name";
    name.textContent = row[NAME];
    const verdict = !row[CLEAR] ? "" : row[CHANGE] < 0 ? "worse" : "better";
    if (verdict === "worse") made.className = "clear";
    made.append(name, ...data.columns.slice(1).map((column) => cell(row, column, verdict)));
    return made;
  }

  function show() {
    const pages = Math.max(1, Math.ceil(shown.length / data.page));
    page = Math.min(Math.max(page, 0), pages - 1);
    const start = page * data.page, rows = shown.slice(start, start + data.page);
    body.replaceChildren(...rows.map(line));
    const all = data.rows.length.toLocaleString("en"), some = shown.length.toLocaleString("en");
    const range = `${(start + 1).toLocaleString("en")} to ${(start + rows.length).toLocaleString("en")}`;
    const of = shown.length < data.rows.length ? `${some} that match, of ${all}` : `${all} classes`;
    status.textContent = shown.length ? `${range} of ${of}` : `No class of ${all} matches.`;
    for (const [name, last] of [["previous", page === 0], ["next", page === pages - 1]]) {
      find(name).setAttribute("aria-disabled", String(last)); // not `disabled`, which would drop the focus
    }
    for (const head of section.querySelectorAll("thead th")) {
      const sorted = head.dataset.key === sort.key;
      if (sorted) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  function refresh() { page = 0; select(); show(); }

  function turn(by, button) {
    if (button.getAttribute("aria-disabled") === "true") return;
    page += by;
    show();
  }

  // Show the class that the address names, wherever it is in the table.
  function follow() {
    const [prefix, number] = [location.hash.slice(1, location.hash.lastIndexOf("-")), location.hash.split("-").pop()];
    if (prefix !== data.prefix) return;
    const wanted = (row) => String(row[CLASS]) === number;
    if (!shown.some(wanted)) {
      find("search").value = find("group").value = "";
      find("change").value = "all";
      select();
    }
    const at = shown.findIndex(wanted);
    if (at < 0) return;
    page = Math.floor(at / data.page);
    show();
    const row = document.getElementById(location.hash.slice(1));
    row.classList.add("target");
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "center" });
  }

  function csv() {
    // A name that begins like a formula would be one to a spreadsheet.
    const text = (value) => typeof value === "number" ? String(value)
      : `"${(/^[=+\-@\t\r]/.test(value) ? "'" + value : value).replaceAll('"', '""')}"`;
    const lines = [data.csv, ...data.rows].map((row) => row.map(text).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff" + lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = "classes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const head of section.querySelectorAll("thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const key = head.dataset.key;
      sort = { key, down: key === sort.key && !sort.down };
      refresh();
    });
    head.replaceChildren(button);
  }
  find("form").addEventListener("submit", (event) => event.preventDefault());
  find("search").addEventListener("input", refresh);
  find("group").addEventListener("change", refresh);
  find("change").addEventListener("change", refresh);
  find("previous").addEventListener("click", (event) => turn(-1, event.currentTarget));
  find("next").addEventListener("click", (event) => turn(1, event.currentTarget));
  find("csv").addEventListener("click", csv);
  addEventListener("hashchange", follow);
  for (const part of section.querySelectorAll("[data-script]")) part.hidden = false;
  refresh();
  follow();
}

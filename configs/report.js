(() => {
  "use strict";
  const find = (selector, root = document) => root.querySelector(selector);
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const number = (value) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    if (size === Infinity) return value > 0 ? "∞" : "-∞";
    if (size > 0 && size < 1e-3) return value.toExponential(2);
    return value.toFixed(size >= 10 ? 2 : 3);
  };
  // What is unknown comes last, whichever way the others go.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a < b ? -1 : a > b);
  };

  const value = (cell) => {
    // A row whose only cell spans all columns has no more cells.
    if (!cell) return null;
    if (!("value" in cell.dataset)) return cell.textContent;
    const found = cell.dataset.value === "" ? NaN : Number(cell.dataset.value.replace("inf", "Infinity"));
    return Number.isNaN(found) ? null : found;
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement, column = head.cellIndex, body = head.closest("table").tBodies[0];
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
      rows.sort((a, b) => compare(a[0], b[0], up ? 1 : -1));
      body.append(...rows.map((row) => row[1]));
    });
  }

  // A table that is wider than its place is stacked: a card for each row, with the headings inside.
  const roles = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TH: "columnheader", TD: "cell" };
  const fit = (scroll) => {
    const table = scroll.firstElementChild;
    if (scroll.clientWidth === table.fitted) return;
    table.fitted = scroll.clientWidth;
    table.classList.remove("stacked");
    table.classList.toggle("stacked", table.offsetWidth > scroll.clientWidth);
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => fit(entry.target)));
  for (const scroll of document.querySelectorAll(".scroll")) {
    const heads = [...find("thead", scroll).rows[0].cells].map((head) => head.textContent);
    // What is not laid out as a table is one for screen readers nevertheless.
    for (const part of scroll.querySelectorAll("table, thead, tbody, tr, th, td")) part.setAttribute("role", roles[part.tagName]);
    for (const cell of scroll.querySelectorAll("td")) cell.dataset.label = cell.colSpan > 1 ? "" : heads[cell.cellIndex];
    sizes.observe(scroll);
  }

  const content = find("#gallery-data");
  if (!content) return;
  const { columns, items, scores } = JSON.parse(content.textContent);
  for (const score of scores) score.values = score.values.map((v) => (v === null ? null : Number(v)));
  // Rows drawn above and below what is seen.
  const SPARE = 2;
  const view = find("#gallery"), controls = find("#controls"), zoom = find("#zoom");
  const fields = controls.elements;
  const heads = make("div", { role: "row", class: "heads", "aria-rowindex": 1 });
  const body = make("div", { role: "rowgroup", class: "rows" });
  ["image", ...columns].forEach((name, n) => heads.append(make("div", { role: "columnheader", "aria-colindex": n + 1 }, name)));
  view.append(heads, body);
  view.setAttribute("aria-colcount", columns.length + 1);
  view.style.setProperty("--columns", columns.length);
  view.classList.toggle("short", items.length <= 12);
  const narrow = matchMedia("(max-width: 44rem)").matches;
  if (narrow) find(".find").open = false;

  // order: items shown, drawn: place in it -> element. The cell `at` is the one that Tab reaches.
  // per: pictures of `side` pixels beside one another. If not all fit, their lines are stacked.
  let order = items.map((_, n) => n), height = 1, stacked = false, per = columns.length, side = 0, sorting = null;
  const drawn = new Map(), at = { row: 0, column: 1 };
  const pictures = (item) => JSON.parse(find(`#p${item}`).textContent);
  const uri = (picture) => `data:image/webp;base64,${picture}`;
  const alt = (item, column) => `${items[item][0]}: ${columns[column]}`;

  const rowOf = (place) => {
    const item = order[place], [name, note, warning] = items[item];
    const row = make("div", { role: "row", "aria-rowindex": place + 2 });
    const head = make("div", { role: "rowheader", tabindex: -1, "aria-colindex": 1, title: name });
    head.append(make("b", {}, name));
    if (sorting) head.append(make("span", { class: "sorted" }, `${sorting.title}: ${number(sorting.values[item])}`));
    if (warning) head.append(make("span", { class: "warning" }, warning));
    if (note) head.append(make("span", { class: "remark", title: note }, note));
    row.append(head);
    pictures(item).forEach((picture, column) => {
      const cell = make("div", { role: "gridcell", tabindex: -1, "aria-colindex": column + 2 });
      if (picture) cell.append(make("img", { src: uri(picture), alt: alt(item, column), decoding: "async" }));
      else cell.append(make("div", { class: "none" }, "not stored"));
      cell.append(make("span", { class: "label" }, columns[column]));
      for (const score of scores) {
        if (score.column !== column || !score.caption || score.values[item] === null) continue;
        cell.append(make("span", {}, score.caption.replace("{}", number(score.values[item]))));
      }
      row.append(cell);
    });
    row.style.top = `${place * height}px`;
    return row;
  };

  const draw = () => {
    const seen = view.clientHeight - heads.offsetHeight;
    const first = Math.max(0, Math.floor(view.scrollTop / height) - SPARE);
    const last = Math.min(order.length, Math.ceil((view.scrollTop + seen) / height) + SPARE);
    const focused = body.contains(document.activeElement);
    if (!focused && (at.row < first || at.row >= last)) at.row = Math.min(first + (first > 0 ? SPARE : 0), Math.max(last - 1, 0));
    for (const [place, row] of drawn) {
      if ((place >= first && place < last) || (focused && place === at.row)) continue;
      row.remove();
      drawn.delete(place);
    }
    for (let place = first; place < last; place++) {
      if (drawn.has(place)) continue;
      const row = rowOf(place);
      const next = [...drawn.keys()].filter((other) => other > place);
      body.insertBefore(row, next.length ? drawn.get(Math.min(...next)) : null);
      drawn.set(place, row);
    }
    mark();
  };
  const mark = () => {
    for (const cell of body.querySelectorAll("[tabindex='0']")) cell.tabIndex = -1;
    const row = drawn.get(at.row);
    if (row) row.children[at.column].tabIndex = 0;
  };
  const focus = (row, column) => {
    if (!order.length) return;
    at.row = Math.min(Math.max(row, 0), order.length - 1);
    at.column = Math.min(Math.max(column, 0), columns.length);
    if (!drawn.has(at.row)) {
      view.scrollTop = at.row * height;
      draw();
    }
    mark();
    const cell = drawn.get(at.row).children[at.column];
    cell.focus({ preventScroll: true });
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  // The lines of a label below a picture, at most three, if letters are 7.5 pixels wide.
  const linesOf = (label) => {
    const room = Math.floor(side / 7.5);
    let lines = 1, used = 0;
    for (const word of label.split(" ")) {
      if (used && used + 1 + word.length > room) lines++, (used = 0);
      used += word.length + (used ? 1 : 0);
      for (; used > room; used -= room) lines++;
    }
    return Math.min(3, lines);
  };
  // The captions of each line of pictures take as much room as the longest of them.
  const heightOf = () => {
    const captions = columns.map((_, n) => scores.filter((score) => score.column === n && score.caption).length);
    let sum = 24;
    for (let n = 0; n < columns.length; n += per) sum += side + Math.ceil(17 * Math.max(1, ...captions.slice(n, n + per)));
    if (!stacked) return sum;
    const remarks = [sorting, items.some((item) => item[1]), items.some((item) => item[2])].filter(Boolean).length;
    for (let n = 0; n < columns.length; n += per) sum += 10 + 17 * Math.max(...columns.slice(n, n + per).map(linesOf));
    return sum + 12 + 19 * remarks;
  };
  const redraw = () => {
    height = heightOf();
    view.style.setProperty("--row", `${height}px`);
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    body.style.height = `${order.length * height}px`;
    view.setAttribute("aria-rowcount", order.length + 1);
    draw();
  };
  let width = 0;
  const measure = () => {
    if (view.clientWidth === width) return;
    width = view.clientWidth;
    const focused = body.contains(document.activeElement);
    const room = view.clientWidth - 24, beside = Math.floor((room - (narrow ? 120 : 176)) / columns.length) - 8;
    stacked = beside < 80;
    per = stacked ? Math.min(columns.length, Math.max(3, Math.floor(room / 150))) : columns.length;
    side = stacked ? Math.floor((room + 8) / per) - 8 : Math.min(220, beside);
    view.classList.toggle("stacked", stacked);
    view.style.setProperty("--cell", `${side}px`);
    view.style.setProperty("--per", per);
    redraw();
    if (focused) focus(at.row, at.column);
  };

  const arrange = () => {
    const query = fields.query.value.trim().toLowerCase();
    sorting = fields.score.value === "" ? null : scores[fields.score.value];
    order = items.map((_, n) => n).filter((n) => items[n][0].toLowerCase().includes(query));
    if (sorting) {
      const sign = fields.order.value === "down" ? -1 : 1;
      order.sort((a, b) => compare(sorting.values[a], sorting.values[b], sign) || a - b);
    }
    fields.count.value = order.length === items.length ? `${items.length} images` : `${order.length} of ${items.length} images`;
    view.scrollTop = 0;
    at.row = 0;
    redraw();
  };
  const orders = () => {
    const score = scores[fields.score.value];
    fields.order.replaceChildren();
    fields.order.disabled = !score;
    if (!score) return;
    const words = { higher: ["worst first", "best first"], lower: ["best first", "worst first"] }[score.better] || ["lowest first", "highest first"];
    const up = new Option(words[0], "up"), down = new Option(words[1], "down");
    fields.order.append(...(score.better === "higher" ? [up, down] : [down, up]));
  };
  const metrics = () => {
    const column = fields.column.value;
    fields.score.replaceChildren();
    fields.score.disabled = column === "";
    scores.forEach((score, n) => {
      if (column !== "" && score.column === Number(column)) fields.score.append(new Option(score.title, n));
    });
    orders();
  };
  columns.forEach((name, n) => {
    if (scores.some((score) => score.column === n)) fields.column.append(new Option(name, n));
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  fields.column.addEventListener("change", () => { metrics(); arrange(); });
  fields.score.addEventListener("change", () => { orders(); arrange(); });
  fields.order.addEventListener("change", arrange);
  fields.query.addEventListener("input", arrange);

  const page = () => Math.max(1, Math.floor((view.clientHeight - heads.offsetHeight) / height));
  const moves = {
    ArrowRight: () => [at.row, at.column + 1], ArrowLeft: () => [at.row, at.column - 1],
    ArrowDown: () => [at.row + 1, at.column], ArrowUp: () => [at.row - 1, at.column],
    PageDown: () => [at.row + page(), at.column], PageUp: () => [at.row - page(), at.column],
    Home: (all) => [all ? 0 : at.row, 0], End: (all) => [all ? order.length - 1 : at.row, columns.length],
  };
  const place = (cell) => {
    for (const [row, element] of drawn) if (element === cell.parentElement) return [row, [...element.children].indexOf(cell)];
    return null;
  };
  view.addEventListener("keydown", (event) => {
    if (moves[event.key]) focus(...moves[event.key](event.ctrlKey || event.metaKey));
    else if (event.key === "Enter" || event.key === " ") open();
    else return;
    event.preventDefault();
  });
  view.addEventListener("click", (event) => {
    const cell = event.target.closest("[role='gridcell'], [role='rowheader']"), found = cell && place(cell);
    if (!found) return;
    focus(...found);
    if (found[1]) open();
  });
  view.addEventListener("scroll", draw);
  new ResizeObserver(measure).observe(view);

  const slider = find("[name='reveal']", zoom), pair = find(".pair", zoom);
  const load = (image, picture, text) => {
    if (picture) image.src = uri(picture);
    else image.removeAttribute("src");
    image.alt = text;
    image.hidden = !picture && image.className === "source";
  };
  // What lies left of the slider's thumb is the source.
  const reveal = () => {
    const part = slider.disabled ? 0 : Number(slider.value);
    pair.style.setProperty("--reveal", `${part}%`);
    pair.classList.toggle("compared", part > 0);
    slider.setAttribute("aria-valuetext", `${part} % ${columns[0]}, ${100 - part} % ${columns[at.column - 1]}`);
  };
  const show = () => {
    const item = order[at.row], column = at.column - 1, own = pictures(item), [, note, warning] = items[item];
    load(find(".result", zoom), own[column], own[column] ? alt(item, column) : "not stored");
    load(find(".source", zoom), column ? own[0] : null, "");
    slider.disabled = !column || !own[0] || !own[column];
    reveal();
    find("figcaption", zoom).textContent = alt(item, column) + (own[column] ? "" : ", not stored");
    find(".place", zoom).textContent = `image ${at.row + 1} of ${order.length}, picture ${column + 1} of ${columns.length}`;
    find(".note", zoom).textContent = [warning, note].filter(Boolean).join("; ");
    const rows = scores.filter((score) => score.column === column && score.values[item] !== null).map((score) => {
      const row = make("tr");
      row.append(make("th", { scope: "row" }, score.title), make("td", { class: "n" }, number(score.values[item])));
      return row;
    });
    find("tbody", zoom).replaceChildren(...rows);
    find("table", zoom).hidden = !rows.length;
  };
  const open = () => {
    if (!order.length) return;
    slider.value = 0;
    at.column = Math.max(at.column, 1);
    show();
    zoom.showModal();
  };
  const move = (rows, steps) => {
    at.row = (at.row + rows + order.length) % order.length;
    at.column = ((at.column - 1 + steps + columns.length) % columns.length) + 1;
    show();
  };
  zoom.addEventListener("click", (event) => {
    const data = event.target.dataset;
    if (event.target === zoom || "close" in data) zoom.close();
    else if (data.move) move(...data.move.split(",").map(Number));
  });
  slider.addEventListener("input", reveal);
  zoom.addEventListener("keydown", (event) => {
    // The keys of the slider are its own.
    if (event.target === slider) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) { event.preventDefault(); move(...step); }
  });
  zoom.addEventListener("close", () => focus(at.row, at.column));

  arrange();
  measure();
})();

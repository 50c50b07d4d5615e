"use strict";
const read = element => JSON.parse(element.textContent);
const number = text => { const found = text.replace(/\u2212/g, "-").match(/-?\d[\d.,]*(e-?\d+)?/); return found ? parseFloat(found[0].replace(/,/g, "")) : NaN; };
const shown = value => value === null || value === undefined ? "–" : String(value);
const make = (tag, text, parent) => { const one = document.createElement(tag); one.textContent = text; parent.append(one); return one; };

// Tables: a click on a column's heading sorts the rows of every block.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.title = "sort";
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      for (const body of table.tBodies) {
        const key = row => row.cells[column]?.firstChild?.textContent ?? "";
        const rows = [...body.rows].filter(row => !row.querySelector(".block"));
        const compare = (a, b) => {
          const [one, two] = [number(key(a)), number(key(b))];
          if (column === 0 || Number.isNaN(one) && Number.isNaN(two)) return key(a).localeCompare(key(b));
          return Number.isNaN(one) ? -1 : Number.isNaN(two) ? 1 : one - two;
        };
        rows.sort((a, b) => (down ? 1 : -1) * compare(a, b)).forEach(row => body.append(row));
      }
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}

// Filters: what is about other sets or stages only is hidden.
const filters = [...document.querySelectorAll("select.filter")].map(select => ({select, names: [...select.options].slice(1).map(o => o.value)}));
const words = text => new Set(text.split(/[\s,;:()·→−]+/));
function hides(label) {
  return filters.some(({select, names}) => {
    if (!select.value) return false;
    const said = words(label), about = names.filter(name => said.has(name) || label === name || label.startsWith(name + " ("));
    return about.length > 0 && !about.includes(select.value);
  });
}
function filter() {
  for (const table of document.querySelectorAll("table.numbers")) {
    const hidden = [...table.tHead.rows[0].cells].map((head, i) => i > 0 && hides(head.textContent));
    for (const row of table.rows) {
      if (row.querySelector(".block")) continue;
      [...row.cells].forEach((cell, i) => { cell.hidden = hidden[i]; });
      if (row.parentElement !== table.tHead) row.hidden = hides(row.cells[0].textContent);
    }
    for (const body of table.tBodies) body.hidden = hides(body.querySelector(".block").textContent);
  }
  for (const place of document.querySelectorAll("[data-place]")) place.hidden = hides(place.dataset.place);
}
filters.forEach(({select}) => select.addEventListener("change", filter));

// Figures: values under the mouse; a click on a cell of a map lists its pairs (or prompts, documents).
const tip = make("div", "", document.body);
tip.className = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
const NEAR = 14; // pixels from a mark
const value = (unit, value, low, high, n) => `${unit ? unit + ": " : ""}${shown(value)}${low === null || low === undefined ? "" : ` [${shown(low)}, ${shown(high)}]`}${n ? `, n = ${n}` : ""}`;
const column = (region, column) => [region.columns_are, region.columns[column]].filter(Boolean).join(" ");
function under(image, regions, event) {
  const frame = image.getBoundingClientRect(), edge = image.clientLeft + parseFloat(getComputedStyle(image).paddingLeft);
  const wide = frame.width - 2 * edge, high = frame.height - 2 * edge;
  const x = (event.clientX - frame.left - edge) / wide, y = (event.clientY - frame.top - edge) / high;
  for (const region of regions) {
    const [left, top, width, height] = region.box, across = (x - left) / width, down = (y - top) / height;
    if (across < 0 || across >= 1 || down < 0 || down >= 1) continue;
    if (region.values) {
      const r = Math.floor(down * region.rows.length), c = Math.floor(across * region.columns.length);
      const at = part => Array.isArray(part) ? part[r][c] : part;
      const text = region.texts ? `\n${region.texts[r][c]}` : "";
      return {region, r, c, text: `${region.title}\nlayer ${region.rows[r]}, ${column(region, c)}${text}\n${value(region.unit, at(region.values), at(region.low), at(region.high), at(region.n))}`};
    }
    let best = null, least = NEAR ** 2;
    for (const point of region.points) {
      const bar = point[8], inside = bar && across >= bar[0] && across < bar[2] && down >= bar[1] && down < bar[3];
      const far = inside ? -1 : ((point[0] - across) * width * wide) ** 2 + ((point[1] - down) * height * high) ** 2;
      if (far < least) [best, least] = [point, far];
    }
    if (best) return {region, text: `${best[2] || region.title}\n${region.x} ${shown(best[3])}\n${value(region.y, ...best.slice(4, 8))}`};
  }
  return null;
}
for (const figure of document.querySelectorAll("figure")) {
  const image = figure.querySelector("img"), data = figure.querySelector("script.hover");
  if (!data) continue;
  let regions = null;
  const find = event => under(image, regions ??= read(data), event);
  image.addEventListener("mousemove", event => {
    const found = find(event);
    tip.hidden = !found;
    image.style.cursor = found?.region.of && figure.dataset.items ? "pointer" : "";
    if (!found) return;
    tip.textContent = found.text;
    tip.style.left = `${Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.pageY + 16}px`;
  });
  image.addEventListener("mouseleave", () => { tip.hidden = true; });
  image.addEventListener("click", event => {
    const found = find(event), source = document.getElementById(figure.dataset.items ?? "");
    if (found?.region.of && source) list(figure, read(source), found);
  });
}
function list(figure, items, {region, r, c, text}) {
  figure.querySelector(".items")?.remove();
  const cells = region.rows.length * region.columns.length, place = r * region.columns.length + c;
  const maps = region.of.map(name => {
    const {scale, values} = items.maps[name];
    const whole = new DataView(Uint8Array.from(atob(values), one => one.charCodeAt(0)).buffer);
    return i => { const v = whole.getInt16(2 * (i * cells + place), true); return v === -32768 ? NaN : v * scale; };
  });
  const headings = maps.length > 1 ? [...region.of, "difference"] : [items.unit];
  const numbers = i => { const found = maps.map(map => map(i)); return found.length > 1 ? [...found, found[0] - found[1]] : found; };
  const box = make("div", "", figure);
  box.className = "items scroll";
  box.tabIndex = 0;
  make("p", `${text.split("\n")[0]}, layer ${region.rows[r]}, ${column(region, c)}: ${items.texts.length} of ${items.total} ${items.what}s, ${items.unit}`, box);
  const table = make("table", "", box), body = make("tbody", "", table), head = make("tr", "", make("thead", "", table));
  table.prepend(table.tHead);
  for (const heading of items.headings) make("th", heading, head);
  for (const heading of headings) make("th", heading, head).className = "number";
  const largest = 32767 * Math.max(...region.of.map(name => items.maps[name].scale));
  const digits = Math.min(8, Math.max(0, 3 + Math.ceil(-Math.log10(largest))));
  const rows = items.texts.map((texts, i) => [texts, numbers(i)]).filter(([, found]) => found.some(v => !Number.isNaN(v)));
  rows.sort((a, b) => b[1].at(-1) - a[1].at(-1)).forEach(([texts, found]) => {
    const line = make("tr", "", body);
    for (const one of texts) make("td", one, line);
    for (const v of found) make("td", Number.isNaN(v) ? "–" : v.toFixed(digits), line).className = "number";
  });
}

// The page's script: tabs and sorting of the tables, then the case browser.
"use strict";
document.documentElement.classList.add("js");

// Tables: tabs choose protocol, label and region; a click on a heading sorts.
const state = {protocol: "0", label: "0", region: "0"};
function show() {
  for (const b of document.querySelectorAll("[data-axis]"))
    b.setAttribute("aria-pressed", String(state[b.dataset.axis] === b.dataset.value));
  for (const t of document.querySelectorAll("tbody[data-region]"))
    t.hidden = Object.keys(state).some(axis => t.dataset[axis] !== state[axis]);
}
function sort(button) {
  const table = button.closest("table"), th = button.closest("th"), column = Number(button.dataset.column);
  const down = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
  const value = row => row.cells[column].dataset.v;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter(row => !row.classList.contains("group"));
    const numeric = rows.every(row => value(row) === "" || !Number.isNaN(Number(value(row))));
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return down * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, {numeric: true}));
    });
    body.append(...rows);
  }
}
document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.axis) { state[button.dataset.axis] = button.dataset.value; show(); }
  else if (button.dataset.column) sort(button);
});
show();

// The case browser. Each case is an inert JSON element, decoded when it is opened.
const browser = document.querySelector(".browser");
const at = name => browser.querySelector("." + name);
const view = {entry: 0, method: "", slice: 0, truth: true, result: true, doubt: false, zoom: 1, data: null,
  picture: null, masks: {}, doubts: {}};
const entries = browser ? [...document.querySelectorAll("script[data-entry]")] : [];

// Run lengths in base 36, as browse.run_lengths writes them: background and the last structure take turns, beginning with
// background; a run of another value names it.
function decode(text, size) {
  const out = new Uint8Array(size);
  let place = 0, expected = 0, structure = 1;
  for (const run of text ? text.split(",") : []) {
    const parts = run.split(":").map(part => parseInt(part, 36));
    const length = parts.pop(), value = parts.length ? parts[0] : expected;
    if (value) out.fill(value, place, place + length);
    place += length;
    structure = value || structure;
    expected = value ? 0 : structure;
  }
  return out;
}
// Class indices of a method's result, or of the reference where the name is empty.
function mask(name) {
  const d = view.data, text = name === "" ? d.reference : d.results[name];
  if (text === undefined) return null;
  return view.masks[name] ||= decode(text, d.size[0] * d.size[1] * d.size[2]);
}
function openCase(entry) {
  view.entry = entry;
  view.data = JSON.parse(entries[entry].textContent);
  view.masks = {};
  view.doubts = {};
  const d = view.data, names = Object.keys(d.results);
  if (!names.includes(view.method)) view.method = names.includes(d.main) ? d.main : names[0];
  at("methods").replaceChildren(...names.map(name => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = name; button.dataset.method = name;
    return button;
  }));
  const filled = [...Array(d.size[0]).keys()].filter(z => area(mask(""), z));
  view.filled = filled;
  at("slider").max = d.size[0] - 1;
  view.slice = level(0.5);
  view.picture = new Image();
  view.picture.onload = draw;
  view.picture.src = d.image;
  for (const b of at("cases").children) b.setAttribute("aria-pressed", String(Number(b.dataset.open) === entry));
  draw();
}
// The slice at a share of the reference's extent: 0 its lowest, 1 its highest.
function level(share) {
  const f = view.filled;
  return f.length ? Math.round(f[0] + share * (f[f.length - 1] - f[0])) : Math.floor(view.data.size[0] / 2);
}
// Voxels of any structure on slice z.
function area(values, z) {
  const [, h, w] = view.data.size;
  let count = 0;
  for (let i = z * h * w; i < (z + 1) * h * w; i++) if (values[i]) count++;
  return count;
}
// The classes of every structure; where structures share voxels a class is part of several.
function members() {
  return view.data.members || view.data.labels.map((_, i) => [i + 1]);
}
// DSC of two label maps on slice z, all structures together; null where both are empty.
function overlap(a, b, z) {
  const [, h, w] = view.data.size;
  let both = 0, sum = 0;
  if (view.data.members) {
    for (const own of members()) for (let i = z * h * w; i < (z + 1) * h * w; i++) {
      const one = own.includes(a[i]), other = own.includes(b[i]);
      both += one && other; sum += one + other;
    }
    return sum ? 2 * both / sum : null;
  }
  for (let i = z * h * w; i < (z + 1) * h * w; i++) {
    if (a[i] && a[i] === b[i]) both++;
    sum += (a[i] > 0) + (b[i] > 0);
  }
  return sum ? 2 * both / sum : null;
}
// The slices of a method's uncertainty as one picture; null where it has none or it is not decoded yet.
function doubtPicture() {
  const text = view.data.uncertain[view.method];
  if (!text) return null;
  if (!view.doubts[view.method]) {
    const picture = view.doubts[view.method] = new Image();
    picture.onload = draw;
    picture.src = text;
  }
  const picture = view.doubts[view.method];
  return picture.complete && picture.naturalWidth ? picture : null;
}
// Lays the uncertainty over the slice: one hue, the more opaque the higher; returns how many voxels are above a tenth.
function shade(context, picture) {
  const d = view.data, [, h, w] = d.size, small = document.createElement("canvas");
  small.width = w; small.height = h;
  const own = small.getContext("2d");
  own.drawImage(picture, view.slice % d.columns * w, Math.floor(view.slice / d.columns) * h, w, h, 0, 0, w, h);
  const pixels = own.getImageData(0, 0, w, h), p = pixels.data;
  let count = 0;
  for (let i = 0; i < p.length; i += 4) {
    const value = p[i];
    if (value > 25) count++;
    p[i] = 40; p[i + 1] = 150; p[i + 2] = 255; p[i + 3] = value > 8 ? 0.85 * value : 0;
  }
  own.putImageData(pixels, 0, 0);
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
  return count;
}
// Draws the borders of each structure's voxels, an even class dashed; returns how many voxel sides were drawn.
function outline(context, values, colour, width, sx, sy) {
  const [, h, w] = view.data.size, base = view.slice * h * w;
  let edges = 0;
  for (const [k, own] of members().entries()) {
    const is = (y, x) => x >= 0 && y >= 0 && x < w && y < h && own.includes(values[base + y * w + x]);
    context.beginPath();
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      if (!is(y, x)) continue;
      if (!is(y - 1, x)) { context.moveTo(x * sx, y * sy); context.lineTo((x + 1) * sx, y * sy); edges++; }
      if (!is(y + 1, x)) { context.moveTo(x * sx, (y + 1) * sy); context.lineTo((x + 1) * sx, (y + 1) * sy); edges++; }
      if (!is(y, x - 1)) { context.moveTo(x * sx, y * sy); context.lineTo(x * sx, (y + 1) * sy); edges++; }
      if (!is(y, x + 1)) { context.moveTo((x + 1) * sx, y * sy); context.lineTo((x + 1) * sx, (y + 1) * sy); edges++; }
    }
    context.setLineDash(k % 2 ? [5, 4] : []);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
  return edges;
}
function draw() {
  const d = view.data, [depth, h, w] = d.size, canvas = at("slice");
  const tall = h * d.spacing_mm[1] / (w * d.spacing_mm[0]);
  canvas.width = 640 * view.zoom;
  canvas.height = Math.round(canvas.width * tall);
  canvas.style.width = view.zoom > 1 ? canvas.width + "px" : "100%";
  const context = canvas.getContext("2d"), sx = canvas.width / w, sy = canvas.height / h;
  if (view.picture.complete && view.picture.naturalWidth)
    context.drawImage(view.picture, view.slice % d.columns * w, Math.floor(view.slice / d.columns) * h, w, h,
      0, 0, canvas.width, canvas.height);
  const doubt = view.doubt && doubtPicture(), shaded = doubt ? shade(context, doubt) : 0;
  let edges = [0, 0];
  const result = mask(view.method);
  if (view.truth) edges[0] = outline(context, mask(""), "#ff2a2a", 3, sx, sy);
  if (view.result && result) edges[1] = outline(context, result, "#ffe100", 1.6, sx, sy);
  context.fillStyle = "#fff"; context.font = "15px sans-serif"; context.setLineDash([]);
  context.fillText("R", 5, canvas.height / 2); context.fillText("A", canvas.width / 2, 17);
  at("slider").value = view.slice;
  at("where").textContent = `slice ${view.slice + 1} of ${depth}`;
  for (const b of at("methods").children) b.setAttribute("aria-pressed", String(b.dataset.method === view.method));
  for (const b of browser.querySelectorAll("[data-toggle]")) b.setAttribute("aria-pressed", String(view[b.dataset.toggle]));
  at("doubt").disabled = !d.uncertain[view.method];
  Object.assign(browser.dataset, {case: d.case, protocol: d.protocol, method: view.method, slice: view.slice,
    edges: edges.join(" "), shaded, picture: String(view.picture.complete && view.picture.naturalWidth > 0)});
  strip(result); tell(result);
}
// A bar per slice, as high as its DSC.
function strip(result) {
  const canvas = at("strip2"), depth = view.data.size[0], truth = mask("");
  canvas.width = 640; canvas.height = 54;
  const context = canvas.getContext("2d"), step = canvas.width / depth;
  const style = getComputedStyle(browser);
  for (let z = 0; z < depth; z++) {
    const dsc = result ? overlap(truth, result, z) : null;
    context.fillStyle = z === view.slice ? style.getPropertyValue("--tint") : "transparent";
    context.fillRect(z * step, 0, step, 54);
    if (dsc === null) continue;
    context.fillStyle = dsc < 0.7 ? style.getPropertyValue("--bad") : style.getPropertyValue("--accent");
    context.fillRect(z * step + 1, 52 - 50 * dsc, Math.max(1, step - 2), 50 * dsc + 2);
  }
}
function cellsOf(...texts) {
  const row = document.createElement("tr");
  for (const [i, text] of texts.entries()) {
    const cell = document.createElement(i ? "td" : "th");
    cell.textContent = text;
    row.append(cell);
  }
  return row;
}
// The scores of the case, of this slice, and the atlases beside it.
function tell(result) {
  const d = view.data, truth = mask(""), dsc = result ? overlap(truth, result, view.slice) : null;
  const rows = (d.scores[view.method] || []).map(line => cellsOf(...line));
  rows.push(cellsOf("this slice", dsc === null ? "\u2013" : (100 * dsc).toFixed(1)));
  if (d.outside[view.method]) rows.push(cellsOf("voxels outside the picture", d.outside[view.method]));
  if (d.views[view.method]) rows.push(cellsOf("seen", d.views[view.method]));
  at("scores").replaceChildren(...rows);
  const atlases = d.atlases[view.method] || [], image = atlases.length > 1 ? view.slice : 0;
  const weights = (d.weights[view.method] || [])[image] || [], highest = Math.max(...weights, 1e-9);
  const lines = (atlases[image] || []).map(([name, slice, distance], i) => {
    const known = weights.length > i, weight = known ? weights[i].toFixed(3) : "\u2013";
    const row = cellsOf(slice < 0 ? name : `${name}, slice ${slice + 1}`, distance.toFixed(3), weight);
    if (known) {
      row.lastChild.className = "weight";
      row.lastChild.style.setProperty("--w", 100 * weights[i] / highest + "%");
    }
    return row;
  });
  at("atlases").replaceChildren(...lines);
  at("noatlas").hidden = lines.length > 0;
}
function turn(by) {
  view.slice = Math.min(view.data.size[0] - 1, Math.max(0, view.slice + by));
  draw();
}
if (entries.length) {
  const list = entries.map((script, i) => {
    const button = document.createElement("button"), name = document.createElement("span"), dsc = document.createElement("small");
    button.type = "button"; button.dataset.open = i;
    name.textContent = script.dataset.name; dsc.textContent = script.dataset.dsc;
    button.append(name, dsc);
    return button;
  });
  at("cases").replaceChildren(...list);
  at("search").addEventListener("input", event => {
    const wanted = event.target.value.toLowerCase();
    for (const button of list) button.hidden = !button.textContent.toLowerCase().includes(wanted);
  });
  at("slider").addEventListener("input", event => { view.slice = Number(event.target.value); draw(); });
  at("slice").addEventListener("wheel", event => { event.preventDefault(); turn(event.deltaY > 0 ? -1 : 1); }, {passive: false});
  at("strip2").addEventListener("click", event => {
    view.slice = Math.min(view.data.size[0] - 1, Math.floor(event.offsetX / at("strip2").clientWidth * view.data.size[0]));
    draw();
  });
  browser.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.open) openCase(Number(button.dataset.open));
    else if (button.dataset.method) { view.method = button.dataset.method; draw(); }
    else if (button.dataset.toggle) { view[button.dataset.toggle] = !view[button.dataset.toggle]; draw(); }
    else if (button.dataset.level) { view.slice = level(Number(button.dataset.level)); draw(); }
    else if (button.dataset.zoom) { view.zoom = view.zoom > 2 ? 1 : view.zoom + 1; draw(); }
  });
  browser.addEventListener("keydown", event => {
    if (event.target.matches("input[type=search]")) return;
    const names = Object.keys(view.data.results), place = names.indexOf(view.method);
    const keys = {ArrowUp: () => turn(1), ArrowDown: () => turn(-1), t: () => { view.truth = !view.truth; draw(); },
      r: () => { view.result = !view.result; draw(); }, u: () => { view.doubt = !view.doubt; draw(); }, m: () => { view.method = names[(place + 1) % names.length]; draw(); }};
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  const wanted = new URLSearchParams(location.hash.slice(1));
  const first = entries.findIndex(s => s.dataset.name === wanted.get("case"));
  view.method = wanted.get("method") || "";
  view.doubt = wanted.get("uncertainty") === "1";
  openCase(Math.max(0, first));
  if (first >= 0) browser.scrollIntoView();
  if (wanted.get("slice")) { view.slice = Math.min(view.data.size[0], Math.max(1, Number(wanted.get("slice")))) - 1; draw(); }
}

"""The page's style and script. The script is ours alone and known to the page's security policy by its hash."""

from __future__ import annotations

STYLE = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1c2126;--soft:#5d6771;--line:#dfe2e5;--tint:#eef3f8;--accent:#1f5fa8;--warn:#9a4b00;
 --warnbg:#fff4e3;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b1f23;--ink:#e4e7ea;--soft:#9aa5b0;--line:#31373e;
 --tint:#202b37;--accent:#7db4f0;--warn:#f0b565;--warnbg:#2e2414;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 font-variant-numeric:tabular-nums}
main{max-width:1280px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;overflow-wrap:anywhere}
h3{font-size:1rem;margin:1rem 0 .4rem;color:var(--soft);font-weight:600}
p{max-width:75ch;margin:.5rem 0;overflow-wrap:anywhere}
.kicker{color:var(--soft);font-size:.85rem;margin:0 0 .25rem}
.lead{font-size:1.08rem}
.note{color:var(--soft);font-size:.86rem}
.badge{display:inline-block;border:1px solid currentColor;border-radius:1rem;padding:.1rem .75rem;font-size:.86rem;
 font-weight:600;color:var(--accent)}
.badge.slice{color:var(--warn);background:var(--warnbg)}
.notices{background:var(--warnbg);border-left:4px solid var(--warn);border-radius:.3rem;padding:.55rem 1rem;margin:1.2rem 0}
.notices ul{margin:0;padding-left:1.1rem;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.75rem;margin:.4rem 0 1rem}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.tiles dt{color:var(--soft);font-size:.84rem}
.tiles dd{margin:0;overflow-wrap:anywhere}
.tiles b{display:block;font-size:1.6rem;line-height:1.25;font-weight:650}
.tiles span,small{color:var(--soft);font-size:.82rem}
td small{font-size:.92em}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.83rem;white-space:nowrap}
th,td{padding:.34rem .42rem;text-align:right;border-top:1px solid var(--line)}
thead tr:first-child th{border-top:0}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
thead th[colspan]{text-align:center;border-left:1px solid var(--line)}
th[scope=row],.text,thead .key{text-align:left}
th[scope=row],thead .key{position:sticky;left:0;background:var(--card)}
th[scope=row]{font-weight:600;white-space:normal;overflow-wrap:anywhere;min-width:10.5em}
tr.group th{text-align:left;background:var(--tint);font-weight:650}
tr.main th,tr.main td{background:var(--tint)}
thead button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
thead button:hover{color:var(--accent)}
th[aria-sort=ascending] button:after{content:" ▲";font-size:.7em}
th[aria-sort=descending] button:after{content:" ▼";font-size:.7em}
.bad{color:var(--bad)}
.tabs{display:none;gap:.9rem;flex-wrap:wrap;margin:.2rem 0 .7rem}
.js .tabs{display:flex}
.tabs div{display:flex;flex-wrap:wrap;gap:.3rem}
.tabs button{font:inherit;font-size:.88rem;color:var(--ink);background:var(--card);border:1px solid var(--line);
 border-radius:.4rem;padding:.3rem .8rem;cursor:pointer}
.tabs button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:var(--bg)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.strip{display:block}
.strip path{fill:none;stroke:var(--accent)}
.strip .dots{stroke-width:5;stroke-linecap:round;stroke-opacity:.35}
.strip .ci{stroke-width:3}
.strip .mean{stroke:var(--ink);stroke-width:2}
figure{margin:.8rem 0 1.4rem}
figure img{max-width:100%;height:auto;border-radius:.4rem;display:block;background:#000}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.3rem;overflow-wrap:anywhere}
.curve{max-width:760px}
.curve svg{width:100%;height:auto}
.curve.wide{max-width:1100px}
nav ul{columns:2;padding-left:1.1rem;margin:.3rem 0}
nav a,.browser a{color:var(--accent)}
.browser{display:none}
.js .browser{display:grid;grid-template-columns:minmax(11rem,15rem) minmax(0,1fr) minmax(13rem,17rem);gap:1rem;
 align-items:start}
.browser .list{display:flex;flex-direction:column;gap:.4rem}
.browser input[type=search]{font:inherit;font-size:.9rem;padding:.3rem .5rem;width:100%;color:var(--ink);background:var(--card);
 border:1px solid var(--line);border-radius:.4rem}
.browser .cases{max-height:26rem;overflow:auto;border:1px solid var(--line);border-radius:.5rem;background:var(--card)}
.browser .cases button{display:flex;justify-content:space-between;gap:.5rem;width:100%;font:inherit;font-size:.85rem;
 color:var(--ink);background:none;border:0;padding:.22rem .6rem;cursor:pointer;text-align:left;overflow-wrap:anywhere}
.browser .cases button[aria-pressed=true]{background:var(--accent);color:var(--bg)}
.browser canvas{display:block;width:100%;background:#000;border-radius:.4rem;touch-action:pan-y}
.browser .strip2{height:54px;margin-top:.4rem;background:var(--card);border:1px solid var(--line);cursor:pointer}
.browser .bar{display:flex;flex-wrap:wrap;gap:.3rem .6rem;align-items:center;margin:.4rem 0;font-size:.86rem}
.browser .bar input[type=range]{flex:1;min-width:8rem}
.browser .bar button{font:inherit;font-size:.82rem;color:var(--ink);background:var(--card);border:1px solid var(--line);
 border-radius:.4rem;padding:.15rem .55rem;cursor:pointer}
.browser .bar button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:var(--bg)}
.browser table{white-space:normal}
.browser td,.browser th{padding:.18rem .35rem}
.browser .cases button[aria-pressed=true] small{color:inherit}
.browser .weight{background:linear-gradient(#1f5fa859,#1f5fa859) no-repeat left center;background-size:var(--w) 80%}
details{margin:1rem 0}
summary{cursor:pointer;color:var(--accent);font-weight:600;padding:.25rem 0}
.pairs{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.2rem 1.2rem;margin:.4rem 0;font-size:.9rem}
.pairs dt{color:var(--soft);overflow-wrap:anywhere}
.pairs dd{margin:0;overflow-wrap:anywhere}
@media(max-width:900px){.js .browser{grid-template-columns:1fr}.browser .cases{max-height:11rem}}
@media(max-width:600px){main{padding:1.2rem .9rem 3rem}h1{font-size:1.5rem}.tiles{grid-template-columns:1fr 1fr}
 .pairs{grid-template-columns:1fr;gap:0}.pairs dd{margin:0 0 .5rem}th[scope=row]{min-width:7.2em}}
@media print{.browser,.tabs{display:none!important}
 .scroll{overflow:visible;border:0}tbody[hidden]{display:table-row-group}}
"""
SCRIPT = r"""
document.documentElement.classList.add("js");
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

const browser = document.querySelector(".browser");
const at = name => browser.querySelector("." + name);
const view = {entry: 0, method: "", slice: 0, truth: true, result: true, zoom: 1, data: null, picture: null, masks: {}};
const entries = browser ? [...document.querySelectorAll("script[data-entry]")] : [];

function decode(text, size) {
  const out = new Uint8Array(size);
  let place = 0;
  for (const run of text ? text.split(",") : []) {
    const [value, length] = run.split(":").map(part => parseInt(part, 36));
    if (value) out.fill(value, place, place + length);
    place += length;
  }
  return out;
}
function mask(name) {
  const d = view.data, text = name === "" ? d.reference : d.results[name];
  if (text === undefined) return null;
  return view.masks[name] ||= decode(text, d.size[0] * d.size[1] * d.size[2]);
}
function openCase(entry) {
  view.entry = entry;
  view.data = JSON.parse(entries[entry].textContent);
  view.masks = {};
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
function level(share) {
  const f = view.filled;
  return f.length ? Math.round(f[0] + share * (f[f.length - 1] - f[0])) : Math.floor(view.data.size[0] / 2);
}
function area(values, z) {
  const [, h, w] = view.data.size;
  let count = 0;
  for (let i = z * h * w; i < (z + 1) * h * w; i++) if (values[i]) count++;
  return count;
}
function overlap(a, b, z) {
  const [, h, w] = view.data.size;
  let both = 0, sum = 0;
  for (let i = z * h * w; i < (z + 1) * h * w; i++) {
    if (a[i] && a[i] === b[i]) both++;
    sum += (a[i] > 0) + (b[i] > 0);
  }
  return sum ? 2 * both / sum : null;
}
function outline(context, values, colour, width, sx, sy) {
  const [, h, w] = view.data.size, base = view.slice * h * w;
  let edges = 0;
  for (let c = 1; c <= view.data.labels.length; c++) {
    const is = (y, x) => x >= 0 && y >= 0 && x < w && y < h && values[base + y * w + x] === c;
    context.beginPath();
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      if (!is(y, x)) continue;
      if (!is(y - 1, x)) { context.moveTo(x * sx, y * sy); context.lineTo((x + 1) * sx, y * sy); edges++; }
      if (!is(y + 1, x)) { context.moveTo(x * sx, (y + 1) * sy); context.lineTo((x + 1) * sx, (y + 1) * sy); edges++; }
      if (!is(y, x - 1)) { context.moveTo(x * sx, y * sy); context.lineTo(x * sx, (y + 1) * sy); edges++; }
      if (!is(y, x + 1)) { context.moveTo((x + 1) * sx, y * sy); context.lineTo((x + 1) * sx, (y + 1) * sy); edges++; }
    }
    context.setLineDash(c % 2 ? [] : [5, 4]);
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
    context.drawImage(view.picture, 0, view.slice * h, w, h, 0, 0, canvas.width, canvas.height);
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
  Object.assign(browser.dataset, {case: d.case, protocol: d.protocol, method: view.method, slice: view.slice,
    edges: edges.join(" "), picture: String(view.picture.complete && view.picture.naturalWidth > 0)});
  strip(result); told(result);
}
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
function told(result) {
  const d = view.data, truth = mask(""), dsc = result ? overlap(truth, result, view.slice) : null;
  const rows = (d.scores[view.method] || []).map(line => cellsOf(...line));
  rows.push(cellsOf("this slice", dsc === null ? "\u2013" : (100 * dsc).toFixed(1)));
  if (d.outside[view.method]) rows.push(cellsOf("voxels beyond the picture", d.outside[view.method]));
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
    name.textContent = script.dataset.name; dsc.textContent = script.dataset.told;
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
      r: () => { view.result = !view.result; draw(); }, m: () => { view.method = names[(place + 1) % names.length]; draw(); }};
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  const wanted = new URLSearchParams(location.hash.slice(1));
  const first = entries.findIndex(s => s.dataset.name === wanted.get("case"));
  view.method = wanted.get("method") || "";
  openCase(Math.max(0, first));
  if (first >= 0) browser.scrollIntoView();
  if (wanted.get("slice")) { view.slice = Math.min(view.data.size[0], Math.max(1, Number(wanted.get("slice")))) - 1; draw(); }
}
"""

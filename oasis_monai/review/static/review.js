// The page: which scan is shown, what was drawn of it, and what the server knows of both.
// `mine.version` is the version this tab has read. The server refuses a change of another version, so two tabs lose nothing.

import * as server from "./server.js";
import { COLOURS, Viewer, fingerprint } from "./viewer.js";

const AUTOSAVE_MS = 3000;
const POLL_MS = 1500;
const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const viewer = new Viewer();
let listing = { scans: [], structures: [], jobs: [] };
let current = null; // id of the scan that is chosen
let status = ""; // of that scan, when it was opened
let mine = null; // the scan shown: id, version, source, kept (fingerprint that the server has)
let opening = 0;
let stopped = false; // a conflict: nothing is sent until the user has chosen
let busy = Promise.resolve(); // one change after the other
let upload = null;
let view = localStorage.getItem("view") ?? "all";

const entry = (id = mine?.id) => listing.scans.find((one) => one.id === id);
const percent = (value) => (value == null ? "?" : `${Math.round(100 * value)} %`);
const changed = () => mine !== null && viewer.voxels !== null && fingerprint(viewer.voxels) !== mine.kept;

function element(kind, text = "", more = {}) {
  const made = Object.assign(document.createElement(kind), more);
  made.textContent = text;
  return made;
}

function banner(text, ...choices) {
  $("banner").hidden = text === "";
  $("banner").querySelector("p").textContent = text;
  $("banner").querySelector("span").replaceChildren(...choices.map(([name, act]) => element("button", name, { onclick: act })));
}

// ---------------------------------------------------------------- keeping and deciding

const queued = (work) => (busy = busy.then(work, work));

function keep(save = false) {
  return queued(async () => {
    if (mine === null || viewer.voxels === null || stopped) return false;
    const sent = mine, voxels = viewer.voxels.slice(), mark = fingerprint(voxels);
    if (!save && mark === sent.kept) return true;
    $("kept").textContent = save ? "saving ..." : "keeping ...";
    try {
      sent.version = await server.keep(sent.id, voxels, sent.version, save);
      sent.kept = mark;
      sent.source = save ? "corrected" : "draft";
      const time = new Date().toLocaleTimeString();
      $("kept").textContent = save ? `saved ${time}` : `draft kept ${time}`;
      if (!save) banner("");
      if (save) { banner(""); await refresh(); }
      return true;
    } catch (error) {
      failed(error, save);
      return false;
    }
  });
}

function failed(error, saving = false) {
  $("kept").textContent = "not kept";
  if (error.status === 409 && error.version !== undefined) return conflict(error);
  if (error.status === 0 || error.status === 401) {
    banner(`${error.message} What you drew stays in this tab and is sent as soon as the same command runs again.`);
  } else if (error.status === 507) {
    banner(`${error.message} What you drew stays in this tab.`);
  } else {
    banner(`${saving ? "Not saved: " : ""}${error.message}`, ["Close", () => banner("")]);
  }
}

function conflict(error) {
  stopped = true;
  banner(error.message,
    ["Take the other tab's", () => { stopped = false; banner(""); open(mine.id, false); }],
    ["Keep what I drew", async () => { stopped = false; mine.version = error.version; mine.kept = null; banner(""); await keep(); }]);
}

function decide(verdict) {
  if (mine === null) return;
  queued(async () => {
    try {
      mine.version = await server.decide(mine.id, entry()?.verdict === verdict ? "" : verdict, mine.version);
      $("kept").textContent = "";
      await refresh();
    } catch (error) { failed(error, true); }
  });
}

// ---------------------------------------------------------------- one scan

async function open(id, keepFirst = true) {
  if (keepFirst && changed() && !(await keep())) return; // the banner says why
  const own = ++opening;
  const found = entry(id);
  if (mine?.id !== id) mine = null;
  location.hash = encodeURIComponent(id);
  $("kept").textContent = "";
  $("where").textContent = "";
  status = found?.status ?? "";
  if (found?.status !== "done") {
    mine = null;
    viewer.close();
    const text = { failed: `This scan could not be segmented.\n\n${found?.reason}`, working: "This scan is being segmented ..." };
    $("empty").textContent = text[found?.status] ?? "This scan is still to be segmented.";
    current = id;
    return render();
  }
  current = id;
  $("empty").textContent = "Reading the scan ...";
  render();
  try {
    const [image, label] = await Promise.all([server.image(id, channel()), server.drawing(id)]);
    if (own !== opening) return;
    await viewer.show(image, label.voxels);
    mine = { id, version: label.version, source: label.source, kept: fingerprint(viewer.voxels) };
    $("empty").textContent = "";
    if (Number($("uncertainty").value) > 0) await uncertain();
    if (label.source === "draft") $("kept").textContent = "your draft, not saved yet";
  } catch (error) {
    mine = null;
    $("empty").textContent = `This scan cannot be shown.\n\n${error.message}`;
  }
  render();
}

async function uncertain() {
  const share = Number($("uncertainty").value) / 100;
  try {
    if (share > 0 && mine !== null && !viewer.hasOverlay && entry()?.uncertainty) await viewer.overlay(await server.uncertainty(mine.id));
    viewer.fade(share);
  } catch (error) { banner(error.message, ["Close", () => banner("")]); }
}

const channel = () => Math.max(0, $("channel").selectedIndex);

// another channel of the same scan: the drawing stays, what can be taken back does not
async function rechannel() {
  if (mine === null) return;
  const own = mine, voxels = viewer.voxels.slice(), place = viewer.place;
  try {
    const image = await server.image(own.id, channel());
    if (mine !== own) return;
    await viewer.show(image, voxels);
    viewer.place = place;
    await uncertain();
  } catch (error) { failed(error); }
}

async function revert() {
  if (mine === null) return;
  try {
    viewer.put((await server.drawing(mine.id, true)).voxels); // a draft like any other; undo takes it back
  } catch (error) { failed(error); }
}

// ---------------------------------------------------------------- what is seen

function summary(one) {
  if (one.status === "failed") return one.reason;
  if (one.status !== "done") return one.status === "working" ? "being segmented ..." : "waiting";
  const names = one.flags.map((flag) => flag.name).join(", ");
  const verdict = one.atlas ? `${one.verdict}, an atlas` : one.verdict;
  return [verdict, names].filter(Boolean).join(" · ") || "no flags";
}

const doubtful = (one) => one.status === "done" && (one.flags.some((flag) => ["unsure", "empty", "cut", "unlike_atlases"].includes(flag.name)) || one.least === null || one.least < 0.7);

function renderList() {
  const focused = document.activeElement?.dataset?.id;
  $("list").replaceChildren(...listing.scans.map((one) => {
    const button = element("button", "", { onclick: () => open(one.id) });
    button.dataset.id = one.id;
    button.setAttribute("aria-current", String(one.id === current));
    button.classList.toggle("doubtful", doubtful(one));
    button.classList.toggle("failed", one.status === "failed");
    const name = element("b", one.id, { className: one.verdict });
    const value = element("span", one.status === "done" ? (doubtful(one) ? "⚠ " : "") + percent(one.least) : one.status === "failed" ? "⚠ failed" : "…");
    button.append(name, value, element("small", summary(one), { title: summary(one) }));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  if (focused !== undefined) all("#list button").find((one) => one.dataset.id === focused)?.focus();
}

function renderJobs() {
  const shown = listing.jobs.filter((job) => job.status !== "done" || job.kind === "adapt" || job.kind === "atlases").slice(-4);
  const made = shown.map((job) => {
    const box = element("div", "", { className: `job ${job.status}` });
    const time = job.seconds === null ? "" : ` ${Math.round(job.seconds)} s`;
    const count = job.total > 1 && job.status === "running" ? ` ${job.done} of ${job.total}` : "";
    box.append(element("b", job.title), element("div", `${job.status}${count}${time}`));
    if (job.status === "running") {
      const bar = document.createElement("progress");
      if (job.total > 1) Object.assign(bar, { max: job.total, value: job.done });
      box.append(bar);
    }
    if (job.text) box.append(element("div", job.text));
    return box;
  });
  if (upload !== null) {
    const box = element("div", "", { className: "job" });
    box.append(element("b", `Reading in ${upload.name}`), Object.assign(document.createElement("progress"), { max: upload.total, value: upload.sent }));
    made.push(box);
  }
  $("jobs").replaceChildren(...made);
}

function renderFacts() {
  const one = entry(current), done = one?.status === "done";
  $("name").textContent = one?.id ?? "";
  $("state").textContent = one === undefined ? "" : done ? `${one.calibrated ? "Predicted Dice" : "Agreement of networks and atlases"} per structure` : one.status;
  const rows = listing.structures.map((name, i) => {
    const row = document.createElement("tr");
    const pick = element("button", "", { onclick: () => choose(i + 1), title: `Draw ${name}${i < 9 ? ` (${i + 1})` : ""}` });
    pick.setAttribute("aria-pressed", String(viewer.pen === i + 1));
    const swatch = element("span", "", { className: "swatch" });
    swatch.style.background = COLOURS[i % COLOURS.length];
    pick.append(swatch, element("span", name));
    if (i < 9) pick.append(element("kbd", String(i + 1)));
    const cell = document.createElement("td");
    cell.append(pick);
    const ends = one?.intervals?.[name];
    const value = element("td", done ? percent(one.predicted[name]) : "", { className: "number", title: ends ? `90 % interval ${percent(ends[0])} to ${percent(ends[1])}` : "" });
    const volume = element("td", done && one.volumes_ml[name] !== undefined ? `${one.volumes_ml[name].toFixed(1)} ml` : "", { className: "number" });
    row.append(cell, value, volume);
    return row;
  });
  $("structures").replaceChildren(...rows);
  $("flags").replaceChildren(...[...(one?.flags ?? []).map((flag) => `${flag.name}: ${flag.text}`), ...(one?.remarks ?? [])].map((text) => element("li", text)));
  $("channels").hidden = (listing.channels?.length ?? 0) < 2;
  $("uncertainty").disabled = !one?.uncertainty;
  renderAtlases(one);
}

let atlasesOf = "";
function renderAtlases(one) {
  const used = one?.atlases ?? [], mark = JSON.stringify([one?.id, used]);
  if (mark === atlasesOf) return; // pictures would flicker
  atlasesOf = mark;
  $("atlases-head").hidden = used.length === 0;
  $("atlases").replaceChildren(...used.map((atlas, number) => {
    const button = element("button", "", { title: "Larger", onclick: () => enlarge(one.id, number, atlas.case) });
    const weight = atlas.weight === null ? "" : `, weight ${atlas.weight.toFixed(2)}`;
    const picture = Object.assign(new Image(), { src: server.atlasPicture(one.id, number), alt: "", loading: "lazy", onerror: () => picture.remove() });
    button.append(picture, element("span", `${number + 1}. ${atlas.case}${atlas.slice < 0 ? "" : ` slice ${atlas.slice + 1}`}${weight}`));
    return button;
  }));
}

function enlarge(id, number, name) {
  Object.assign($("picture").querySelector("img"), { src: server.atlasPicture(id, number), alt: `atlas ${name}` });
  $("picture").showModal();
}

function render() {
  renderList();
  renderJobs();
  renderFacts();
  const one = entry(current), shown = mine !== null;
  for (const button of [...all("#tools button"), $("save"), ...all("[data-verdict]")]) button.disabled = !shown;
  for (const button of all("[data-verdict]")) button.setAttribute("aria-pressed", String(one?.verdict === button.dataset.verdict));
  for (const button of all("[data-tool]")) button.setAttribute("aria-checked", String(viewer.tool === button.dataset.tool));
  for (const button of all("[data-view]")) button.setAttribute("aria-checked", String(view === button.dataset.view));
  const open_ = listing.scans.filter((scan) => scan.status === "done" && !scan.verdict).length;
  const ready = listing.scans.filter((scan) => scan.status === "done").length;
  $("place").textContent = `${listing.folder ?? ""} · ${listing.scans.length} scan${listing.scans.length === 1 ? "" : "s"}, ${ready} segmented, ${open_} to look at`;
  $("teach").hidden = listing.model === null;
  $("drop").hidden = !(listing.endings?.length > 0);
  if (listing.scans.length === 0) $("empty").textContent = listing.model ? "No scans yet.\n\nDrop one on the left: it is segmented, then shown here." : "This folder has no results.";
  else if (current === null) $("empty").textContent = "Choose a scan.";
}

async function refresh() {
  const before = JSON.stringify(listing);
  listing = await server.worklist();
  if (JSON.stringify(listing) === before) return;
  viewer.colours(Math.max(1, listing.structures.length));
  if ($("channel").options.length !== listing.channels.length) $("channel").replaceChildren(...listing.channels.map((name) => element("option", name)));
  const now = entry(current);
  if (now !== undefined && now.status !== status) await open(current); // it has been segmented, or has failed
  render();
}

// ---------------------------------------------------------------- tools and keys

function use(tool) { viewer.use(tool); render(); }
function choose(pen) { if (pen > listing.structures.length) return; viewer.pen = pen; use(viewer.tool === "look" || viewer.tool === "erase" ? "brush" : viewer.tool); }
function resize(size) { viewer.size = Math.min(25, Math.max(1, size)); $("size").value = $("sizes").value = viewer.size; viewer.use(viewer.tool); }
function look(name) { view = name; localStorage.setItem("view", name); viewer.look(name); render(); }
function next(step) {
  const ids = listing.scans.map((one) => one.id), at = ids.indexOf(current);
  const to = ids[at < 0 ? 0 : Math.min(ids.length - 1, Math.max(0, at + step))];
  if (to !== undefined && to !== current) open(to).then(() => all("#list button").find((one) => one.dataset.id === to)?.scrollIntoView({ block: "nearest" }));
}
function slide(id, value) { $(id).value = value; $(id).dispatchEvent(new Event("input")); }
function toggle(id, usual) { slide(id, Number($(id).value) > 0 ? 0 : usual); }
function lesson() {
  const corrected = listing.scans.filter((one) => one.verdict === "corrected").map((one) => one.id);
  $("lesson").textContent = corrected.length ? `Corrected and saved: ${corrected.join(", ")}.` : "No scan is corrected and saved yet.";
  $("as-training").querySelector("span").textContent = `${listing.minutes} minutes, into a new model in ${listing.folder}; of scans that are no atlases yet`;
  for (const id of ["as-atlases", "as-training"]) $(id).disabled = corrected.length === 0;
  $("teaching").showModal();
}
async function teach(how) {
  $("teaching").close();
  try { await server.teach(how); await refresh(); } catch (error) { banner(error.message, ["Close", () => banner("")]); }
}

const KEYS = [
  ["j  ↓", "next scan", () => next(1)], ["k  ↑", "scan before", () => next(-1)],
  ["a", "accept", () => decide("accepted")], ["x", "reject", () => decide("rejected")], ["s", "save what was drawn as correction", () => keep(true)],
  ["Escape", "look: move the cross, turn in 3D", () => use("look")], ["b", "brush", () => use("brush")], ["f", "fill: draw an outline", () => use("fill")], ["e", "erase", () => use("erase")],
  ["1 - 9", "structure to draw", null], ["[", "smaller brush", () => resize(viewer.size - 1)], ["]", "larger brush", () => resize(viewer.size + 1)],
  ["u", "take back the last stroke (also Ctrl+Z)", () => viewer.undo()],
  ["PageUp", "slice above", () => viewer.step(0, 0, 1)], ["PageDown", "slice below", () => viewer.step(0, 0, -1)],
  ["m", "next view: all, axial, coronal, sagittal, 3D", () => { const names = all("[data-view]").map((one) => one.dataset.view); look(names[(names.indexOf(view) + 1) % names.length]); }],
  ["c", "next channel of the scan", () => { const all_ = $("channel"); if (all_.options.length > 1) { all_.selectedIndex = (all_.selectedIndex + 1) % all_.options.length; rechannel(); } }],
  ["l", "label on and off", () => toggle("opacity", 55)], ["v", "uncertainty on and off", () => toggle("uncertainty", 70)],
  ["t", "teach the model", () => { if (listing.model) lesson(); }], ["?", "these keys", () => $("help").showModal()],
];
const ACTIONS = new Map(KEYS.filter(([, , act]) => act).flatMap(([keys, , act]) => keys.split("  ").map((key) => [{ "↓": "ArrowDown", "↑": "ArrowUp" }[key] ?? key, act])));
const OF_A_SCAN = new Set(["a", "x", "s", "b", "f", "e", "u", "PageUp", "PageDown", "m"]);

window.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  const control = event.ctrlKey, key = control && event.key === "z" ? "u" : event.key;
  if (control && key !== "u") return;
  if (event.target.matches?.("input[type=range]") && key.startsWith("Arrow")) return;
  if (OF_A_SCAN.has(key) && mine === null) return;
  const act = /^[1-9]$/.test(key) && mine !== null ? () => choose(Number(key)) : ACTIONS.get(key);
  if (act) event.preventDefault();
  if (act || event.target === $("canvas")) event.stopImmediatePropagation(); // NiiVue has keys of its own
  if (act && !event.repeat) act();
  else if (act && ["PageUp", "PageDown", "[", "]"].includes(key)) act();
}, true);

async function drop(file) {
  if (!file || upload !== null || !listing.endings) return; // the list is still to come
  const name = file.name.toLowerCase();
  if (!listing.endings.some((one) => name.endsWith(one))) return banner(`${file.name}: a scan in one file, or in a zip, is taken (${listing.endings.join(", ")}).`, ["Close", () => banner("")]);
  if (file.size > listing.upload_bytes) return banner(`${file.name} has more than ${Math.round(listing.upload_bytes / 2 ** 20)} MiB: start the command with input=FILE.`, ["Close", () => banner("")]);
  upload = { name: file.name, sent: 0, total: file.size };
  try {
    const id = await server.drop(file, (sent) => { upload.sent = sent; renderJobs(); });
    upload = null;
    await refresh();
    await open(id);
  } catch (error) { banner(`${file.name}: ${error.message}`, ["Close", () => banner("")]); }
  upload = null;
  renderJobs();
}

function wire() {
  for (const button of all("[data-tool]")) button.onclick = () => use(button.dataset.tool);
  for (const button of all("[data-view]")) button.onclick = () => look(button.dataset.view);
  for (const button of all("[data-verdict]")) button.onclick = () => decide(button.dataset.verdict);
  for (const button of all("dialog .close")) button.onclick = () => button.closest("dialog").close();
  for (const group of all(".group button")) group.setAttribute("role", "radio");
  $("save").onclick = () => keep(true);
  $("undo").onclick = () => viewer.undo();
  $("revert").onclick = revert;
  $("size").oninput = () => resize(Number($("size").value));
  $("opacity").oninput = () => viewer.dim(Number($("opacity").value) / 100);
  $("channel").onchange = rechannel;
  $("uncertainty").oninput = uncertain;
  $("keys").onclick = () => $("help").showModal();
  $("teach").onclick = lesson;
  $("as-atlases").onclick = () => teach("atlases");
  $("as-training").onclick = () => teach("adapt");
  $("file").onchange = () => { drop($("file").files[0]); $("file").value = ""; };
  for (const kind of ["dragover", "dragleave", "drop"]) window.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && !$("drop").hidden) drop(event.dataTransfer.files[0]);
  });
  $("keytable").replaceChildren(...KEYS.map(([keys, what]) => {
    const row = document.createElement("tr"), cell = document.createElement("td");
    cell.append(...keys.split("  ").flatMap((key) => [element("kbd", key === "Escape" ? "Esc" : key), " "]));
    row.append(cell, element("td", what));
    return row;
  }));
  window.addEventListener("hashchange", () => {
    const id = decodeURIComponent(location.hash.slice(1));
    if (id !== current && entry(id)) open(id);
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden && changed()) keep(); });
  window.addEventListener("beforeunload", (event) => { if (changed()) event.preventDefault(); });
}

async function start() {
  wire();
  try {
    await viewer.attach($("canvas"), (vox, value) => {
      $("where").textContent = mine === null ? "" : `voxel ${vox.slice(0, 3).join(", ")}${value === undefined ? "" : ` · ${Number(value.toPrecision(4))}`}`;
    });
  } catch (error) {
    banner(`This browser cannot draw the scans: WebGL 2 is needed (${error.message}).`);
  }
  look(document.querySelector(`[data-view="${CSS.escape(view)}"]`) ? view : "all");
  await refresh().catch((error) => failed(error));
  const asked = decodeURIComponent(location.hash.slice(1));
  const first = listing.scans.find((one) => one.id === asked) ?? listing.scans.find((one) => one.status === "done" && !one.verdict) ?? listing.scans[0];
  if (first) await open(first.id);
  render();
  setInterval(() => { if (!stopped && changed()) keep(); }, AUTOSAVE_MS);
  setInterval(() => refresh().catch(() => {}), POLL_MS);
}

globalThis.review = { viewer, get shown() { return mine; }, get kept() { return mine !== null && !changed(); } }; // for tests
start();

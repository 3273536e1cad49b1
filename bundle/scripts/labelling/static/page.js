"use strict";
const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let state = { images: [], answers: {}, comments: {} }, at = 0, busy = false, began = Date.now(), pace = [];
let route = null; // positions to go through instead of all
let opened = 0; // images so far: what comes late for an earlier one is dropped

// answers ----------------------------------------------------------------------------------------

for (let tenth = 1; tenth <= 10; tenth++) {
  const button = document.createElement("button");
  button.innerHTML = `${tenth * 10} %<kbd>${tenth % 10}</kbd>`;
  button.dataset.area = tenth / 10;
  button.setAttribute("aria-keyshortcuts", tenth % 10);
  button.onclick = () => give(1, tenth / 10);
  $("areas").append(button);
}
for (const percent of [10, 30, 50, 70]) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption>${percent} %</figcaption>` + ["one", "many"].map(pieces =>
    `<img src="static/area_${percent}_${pieces}.png" alt="${percent} % in ${pieces === "one" ? "one piece" : "many pieces"}">`).join("");
  $("areas-shown").append(figure);
}
const buttons = { none: () => give(0, null), some: () => give(1, null), unsure: () => give(null, null), undo,
  previous: () => step(-1), next: () => step(1), closer: () => zoom(1.5), farther: () => zoom(1 / 1.5), whole: wholeOrFull,
  help: () => $("keys").showModal(), all: showOverview, compare, shut: compare, theme: nextTheme, route: () => { route = null; show(at); },
  through: () => { route = chosen(); $("overview").close(); if (route.length) show(route[0]); } };
for (const [id, action] of Object.entries(buttons)) $(id).onclick = action;
// a button that was pressed by a finger or a mouse does not keep the focus: Space would press it again
document.addEventListener("mousedown", event => { if (event.target.closest("button:not(dialog button)")) event.preventDefault(); });

const keys = { n: buttons.none, a: buttons.some, s: buttons.unsure, u: undo, Backspace: undo, ArrowLeft: buttons.previous,
  ArrowRight: buttons.next, z: wholeOrFull, "+": buttons.closer, "=": buttons.closer, "-": buttons.farther, "?": buttons.help,
  g: showOverview, r: compare, c: comment };
for (let digit = 0; digit <= 9; digit++) keys[digit] = () => give(1, (digit || 10) / 10);
const pans = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target === $("comment")) {
    if (event.key === "Escape") { event.preventDefault(); $("viewer").focus(); }
    return;
  }
  if (event.key === "Escape" && narrow.matches) return void side(false);
  const pan = event.shiftKey && pans[event.key];
  const action = pan ? () => move(pan) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if ((event.key === " " || event.key === "Enter") && event.repeat) event.preventDefault(); // held down, it would press again
  if (action) { event.preventDefault(); if (!event.repeat || pan) action(); }
});

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(await response.json().then(answer => answer.detail, () => response.statusText));
  return response.json();
}

// one at a time; whether it was done
async function send(path, body, failed) {
  if (busy) return false;
  busy = true;
  try {
    Object.assign(state, await ask(path, body));
    say(state.message);
    return true;
  } catch (error) {
    say(`${failed} ${explain(error)}`, true);
    return false;
  } finally { busy = false; }
}

async function give(label, area) {
  if (!await saveComment() || !await send("answer", { image: at, label, area }, "Not saved.")) return;
  pace.push(Date.now() - began);
  pace = pace.slice(-20);
  const said = describe(state.answers[at]);
  $("viewer").focus({ preventScroll: true }); // the next Space or Enter is for the next image, and answers nothing
  show(route ? route[Math.min(route.indexOf(at) + 1, route.length - 1)] : firstOpen(at + 1));
  $("spoken").textContent = `${said}. ${$("spoken").textContent}`;
}

async function undo() {
  if (!await send("undo", {}, "Not undone.")) return;
  say(state.undone < 0 ? "Nothing to undo." : "Undone. " + state.message);
  if (state.undone < 0) return;
  if (route && !route.includes(state.undone)) route = null;
  show(state.undone);
}

async function saveComment() {
  const text = $("comment").value.trim();
  if (text === (state.comments[at] || "")) return true;
  const done = await send("comment", { image: at, text }, "The comment is not saved.");
  if (done) showAnswer();
  return done;
}
$("comment").onchange = saveComment;

// fetch throws a TypeError where no response comes; what the program has refused is an Error of `ask`
function explain(error) {
  return error instanceof TypeError ? "Is the program still running? Start it again, and open the address that it prints." : error.message;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

// which image ------------------------------------------------------------------------------------

function firstOpen(from) {
  const count = state.images.length;
  for (let step = 0; step < count; step++) if (!((from + step) % count in state.answers)) return (from + step) % count;
  return Math.min(from, count - 1);
}

async function step(by) {
  if (!await saveComment()) return;
  show(route ? route[Math.max(0, Math.min(route.indexOf(at) + by, route.length - 1))] : at + by);
}

function kind(answer) {
  return !answer ? "open" : answer.label === null ? "unsure" : answer.label === 0 ? "none" : answer.area === null ? "some" : "area";
}

function describe(answer) {
  return { open: "", unsure: "Unsure", none: "None", some: "Some, area unknown" }[kind(answer)] ?? `${Math.round(answer.area * 100)} %`;
}

function show(index) {
  at = Math.max(0, Math.min(index, state.images.length - 1));
  $("comment").value = state.comments[at] || "";
  showAnswer();
  showImage();
  began = Date.now();
}

function showAnswer() {
  const answer = state.answers[at], done = Object.keys(state.answers).length, count = state.images.length;
  $("given").textContent = [describe(answer), state.comments[at] ? "\u270e" : ""].filter(Boolean).join(" ");
  $("given").dataset.kind = kind(answer);
  $("count").textContent = `${state.images[at]} · ${at + 1} of ${count} · ${done} answered`;
  $("bar").max = count;
  $("bar").value = done;
  for (const button of $("areas").children) button.setAttribute("aria-pressed", !!answer && answer.area === +button.dataset.area);
  for (const id of ["none", "some", "unsure"]) $(id).setAttribute("aria-pressed", kind(answer) === id);
  const mean = pace.reduce((a, b) => a + b, 0) / (pace.length || 1), minutes = mean * (count - done) / 60000;
  $("left").textContent = done === count ? "All answered." : pace.length < 3 ? "" : `about ${Math.max(1, Math.round(minutes))} min left`;
  $("route").hidden = !route;
  if (route) $("route").textContent = `${route.indexOf(at) + 1} of ${route.length} chosen \u2715`;
  $("route").setAttribute("aria-label", "Leave the chosen images");
  const words = `Image ${at + 1} of ${count}, ${state.images[at]}, ${describe(answer) || "not answered"}.`;
  $("viewer").setAttribute("aria-label", words);
  $("spoken").textContent = words;
}

// viewer -----------------------------------------------------------------------------------------

const viewer = OpenSeadragon({ element: $("viewer"), drawer: "canvas", showNavigationControl: false, keyboardNavEnabled: false,
  tabIndex: -1, animationTime: calm ? 0 : .3, visibilityRatio: .3, minZoomImageRatio: .8, maxZoomPixelRatio: 12, zoomPerScroll: 1.3,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { dblClickToZoom: true } });
viewer.addHandler("open", () => { // a small picture, too, can be enlarged beyond the view
  viewer.viewport.maxZoomLevel = Math.max(viewer.viewport.imageToViewportZoom(12), 4 * viewer.viewport.getHomeZoom());
});
viewer.addHandler("canvas-drag", () => $("viewer").classList.add("moving"));
viewer.addHandler("canvas-drag-end", () => $("viewer").classList.remove("moving"));

function source(position, layout) {
  return { ...layout, getTileUrl: (level, column, row) => `image/${position}/${level}/${column}/${row}` };
}

async function showImage() {
  const mine = ++opened, position = at;
  $("failed").hidden = true;
  try {
    const layout = await ask(`image/${position}`);
    if (mine !== opened) return;
    viewer.open(source(position, layout));
    const next = route ? route[route.indexOf(position) + 1] : position + 1;
    if (next < state.images.length) ask(`image/${next}`).catch(() => 0); // so that it is ready
  } catch (error) {
    if (mine !== opened) return;
    viewer.close();
    $("failed").hidden = false;
    $("failed").textContent = error instanceof TypeError ? explain(error) : `${state.images[position]} ${error.message}. Press S to leave it out.`;
  }
}

function zoom(by) {
  viewer.viewport.zoomBy(by).applyConstraints();
}

function move([x, y]) {
  const bounds = viewer.viewport.getBounds();
  viewer.viewport.panBy(new OpenSeadragon.Point(x * bounds.width / 8, y * bounds.height / 8)).applyConstraints();
}

function wholeOrFull() {
  const port = viewer.viewport, home = port.getHomeZoom();
  if (!viewer.isOpen()) return;
  if (port.getZoom() > home * 1.02) port.goHome();
  else port.zoomTo(Math.max(port.imageToViewportZoom(1 / devicePixelRatio), home * 2)).applyConstraints();
}

// panels -----------------------------------------------------------------------------------------

const narrow = matchMedia("(max-width: 1023px)");
function side(open) {
  $("side").hidden = !open;
  $("compare").setAttribute("aria-expanded", open);
}
function compare() {
  side($("side").hidden);
  if (!narrow.matches) localStorage.setItem("side", $("side").hidden ? "closed" : "open");
}
function comment() {
  side(true);
  $("comment").focus();
}
side(!narrow.matches && localStorage.getItem("side") !== "closed");
narrow.onchange = () => side(!narrow.matches);

function nextTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
  localStorage.setItem("theme", dark ? "light" : "dark");
}
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
}
setTheme(localStorage.getItem("theme"));

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); }); // beside it
  dialog.addEventListener("close", () => $("viewer").focus({ preventScroll: true }));
}

// overview ---------------------------------------------------------------------------------------

const FILTERS = { all: "All", open: "Open", area: "With area", some: "Area unknown", none: "None", unsure: "Unsure", comment: "Comment" };
let filter = "all";

function matches(position, wanted) {
  return wanted === "all" || (wanted === "comment" ? position in state.comments : kind(state.answers[position]) === wanted);
}

function chosen() {
  const part = $("search").value.trim().toLowerCase();
  return [...state.images.keys()].filter(position => matches(position, filter) && state.images[position].toLowerCase().includes(part));
}

async function showOverview() {
  if (!await saveComment()) return;
  if (narrow.matches) side(false);
  drawOverview();
  $("overview").showModal();
  const current = $("cards").querySelector("[aria-current=true]");
  current?.scrollIntoView({ block: "center" });
  current?.focus({ preventScroll: true });
}

function drawOverview() {
  $("which").replaceChildren(...Object.entries(FILTERS).map(([name, text]) => {
    const button = document.createElement("button");
    const count = [...state.images.keys()].filter(position => matches(position, name)).length;
    button.className = "small";
    button.textContent = `${text} ${count}`;
    button.disabled = !count && name !== filter;
    button.setAttribute("aria-pressed", name === filter);
    button.onclick = () => { filter = name; drawOverview(); $("which").querySelector("[aria-pressed=true]").focus(); };
    return button;
  }));
  const positions = chosen();
  $("cards").replaceChildren(...positions.map(card));
  $("nothing").hidden = positions.length > 0;
  $("through").disabled = !positions.length || positions.length === state.images.length;
}
$("search").oninput = drawOverview;

function card(position) {
  const item = document.createElement("li"), button = document.createElement("button"), image = document.createElement("img");
  const text = document.createElement("span");
  button.className = "card";
  button.dataset.kind = kind(state.answers[position]);
  button.setAttribute("aria-current", position === at);
  image.loading = "lazy";
  image.src = `thumbnail/${position}`;
  image.alt = "";
  image.onerror = () => {
    const words = document.createElement("span");
    words.className = "broken";
    words.textContent = "can't be shown";
    image.replaceWith(words);
  };
  const rows = { name: state.images[position], what: describe(state.answers[position]).split(",")[0] || "open", note: state.comments[position] };
  for (const [name, value] of Object.entries(rows)) {
    const row = document.createElement("span");
    row.className = name;
    row.textContent = value || "";
    if (value) text.append(row);
  }
  button.append(image, text);
  button.onclick = () => {
    if (route && !route.includes(position)) route = null;
    $("overview").close();
    show(position);
  };
  item.append(button);
  return item;
}

ask("state").then(answer => { state = answer; $("title").textContent = state.title; show(firstOpen(0)); }, error => say(explain(error), true));

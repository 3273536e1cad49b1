"use strict";
let state = { kind: "pictures", images: [], sources: [], regions: [], order: [], answers: {}, positive: [], comments: {} }, at = 0, busy = false, began = Date.now(), pace = [];
let route = null; // positions to go through instead of all
let tool = null; // "draw" or "move": what dragging does to fields

// answers ----------------------------------------------------------------------------------------

addAreas(area => give(1, area));
for (const percent of [10, 30, 50, 70]) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption>${percent} %</figcaption>` + ["one", "many"].map(pieces =>
    `<img src="static/area_${percent}_${pieces}.png" alt="${percent} % in ${pieces === "one" ? "one piece" : "many pieces"}">`).join("");
  $("areas-shown").append(figure);
}
const buttons = { none: () => give(0, null), some: () => give(1, null), unsure: () => give(null, null), undo,
  previous: () => step(-1), next: () => step(1), closer: () => zoom(1.5), farther: () => zoom(1 / 1.5), whole: wholeOrFull,
  help: () => open("keys"), all: showOverview, compare, shut: compare, theme: nextTheme, route: () => { route = null; show(at); },
  through: () => { route = chosen(); $("overview").close(); if (route.length) show(route[0]); },
  draw: () => choose("draw"), move: () => choose("move"), remove: removeField };
for (const [id, action] of Object.entries(buttons)) $(id).onclick = action;

// once the page has said that all are answered, an answer by key is for an image that was gone to since
const keyed = answer => () => $("finished").hidden ? answer() : say("Not changed: go to an image (arrows, G) to change its answer.");
const keys = { n: keyed(buttons.none), a: keyed(buttons.some), s: keyed(buttons.unsure), u: undo, Backspace: undo, ArrowLeft: buttons.previous,
  ArrowRight: buttons.next, z: wholeOrFull, "+": buttons.closer, "=": buttons.closer, "-": buttons.farther, "?": buttons.help,
  g: showOverview, r: compare, c: comment, d: buttons.draw, m: buttons.move, x: removeField };
for (let digit = 0; digit <= 9; digit++) keys[digit] = keyed(() => give(1, (digit || 10) / 10));
const pans = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target === $("comment")) {
    if (event.key === "Escape") { event.preventDefault(); $("viewer").focus(); }
    return;
  }
  if (event.key === "Escape" && narrow.matches) return void side(false);
  if (event.key === "Escape" && tool) return void choose(null);
  if (tool === "move" && (pans[event.key] || event.key === "Enter")) {
    event.preventDefault();
    if (event.key === "Enter") { if (!event.repeat) placeMoved(); } else nudge(pans[event.key]);
    return;
  }
  const pan = event.shiftKey && pans[event.key];
  const action = pan ? () => move(pan) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if ((event.key === " " || event.key === "Enter") && event.repeat) event.preventDefault(); // held down, it would press again
  if (action) { event.preventDefault(); if (!event.repeat || pan) action(); }
});

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
  if (label !== null && !isSeen(state.sources[at], "S")) return;
  if (!await saveComment() || !await send("answer", { image: at, label, area }, "Not saved.")) return;
  pace.push(Date.now() - began);
  pace = pace.slice(-20);
  const said = describe(state.answers[at]), open = state.order.filter(position => !(position in state.answers));
  $("viewer").focus({ preventScroll: true }); // the next Space or Enter is for the next image, and answers nothing
  if (!open.length && (!route || at === route[route.length - 1])) return finish();
  show(route ? route[Math.min(route.indexOf(at) + 1, route.length - 1)] : firstOpen(1));
  $("spoken").textContent = `${said}. ${$("spoken").textContent}`;
}

// nothing is left to be asked: the image that was answered last stays
function finish() {
  showAnswer();
  $("finished").hidden = false;
  $("finished").textContent = `All ${state.order.length} answered. ` + (state.next ? `Finished: you can close this page. Next: ${state.next}` : state.message);
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

// which image ------------------------------------------------------------------------------------

// of those so many behind the one shown, and around again; the next where all are answered
function firstOpen(behind) {
  const { order } = state, from = order.indexOf(at) + behind;
  const rest = [...order.slice(from), ...order.slice(0, from)];
  return rest.find(position => !(position in state.answers)) ?? order[Math.min(from, order.length - 1)];
}

async function step(by) {
  if (!await saveComment()) return;
  const list = route || state.order;
  show(list[Math.max(0, Math.min(list.indexOf(at) + by, list.length - 1))]);
}

function kind(answer) {
  return !answer ? "open" : answer.label === null ? "unsure" : answer.label === 0 ? "none" : answer.area === null ? "some" : "area";
}

function describe(answer) {
  return { open: "", unsure: "Unsure", none: "None", some: "Some, area unknown" }[kind(answer)] ?? `${Math.round(answer.area * 100)} %`;
}

// whose label is known, but not its area
function isPositive(position) {
  return !(position in state.answers) && state.positive.includes(position);
}

function show(position) {
  at = position;
  $("finished").hidden = true;
  choose(null);
  $("comment").value = state.comments[at] || "";
  showAnswer();
  showImage();
  began = Date.now();
}

function showAnswer() {
  const answer = state.answers[at], count = state.order.length, number = state.order.indexOf(at) + 1;
  const done = state.order.filter(position => position in state.answers).length;
  $("title").textContent = state.positive.includes(at) ? state.asked : state.title;
  const known = describe(answer) || (isPositive(at) ? "Positive: how much?" : "");
  $("given").textContent = [known, state.comments[at] ? "\u270e" : ""].filter(Boolean).join(" ");
  $("given").dataset.kind = kind(answer);
  $("count").textContent = `${state.images[at]} · ${number} of ${count} · ${done} answered`;
  $("bar").max = count;
  $("bar").value = done;
  for (const button of $("areas").children) button.setAttribute("aria-pressed", !!answer && answer.area === +button.dataset.area);
  for (const id of ["none", "some", "unsure"]) $(id).setAttribute("aria-pressed", kind(answer) === id);
  const mean = pace.reduce((a, b) => a + b, 0) / (pace.length || 1), minutes = mean * (count - done) / 60000;
  $("left").textContent = done === count ? "All answered." : pace.length < 3 ? "" : `about ${Math.max(1, Math.round(minutes))} min left`;
  $("route").hidden = !route;
  if (route) $("route").textContent = `${route.indexOf(at) + 1} of ${route.length} chosen \u2715`;
  $("route").setAttribute("aria-label", "Leave the chosen images");
  const words = `${state.kind === "slides" ? "Field" : "Image"} ${number} of ${count}, ${state.images[at]}, ${known || "not answered"}.`;
  $("viewer").setAttribute("aria-label", words);
  $("spoken").textContent = words;
}

// viewer -----------------------------------------------------------------------------------------

function prepareViewer() {
  makeViewer({ showNavigator: state.kind === "slides", navigatorPosition: "BOTTOM_LEFT", navigatorSizeRatio: .16, navigatorAutoFade: false });
  viewer.addHandler("open", () => { // a small picture, too, can be enlarged beyond the view
    viewer.viewport.maxZoomLevel = Math.max(viewer.viewport.imageToViewportZoom(12), 4 * viewer.viewport.getHomeZoom());
    drawFields();
    goToField(true);
  });
  viewer.addHandler("canvas-drag", event => { $("viewer").classList.add("moving"); drag(event); });
  viewer.addHandler("canvas-press", event => { pressed = event.position; });
  viewer.addHandler("canvas-drag-end", event => { $("viewer").classList.remove("moving"); dragEnd(event); });
  viewer.addHandler("canvas-click", event => {
    if (!event.quick || tool) return;
    const { x, y } = toImage(event.position);
    const found = fieldsHere().filter(position => position !== at && inside(state.regions[position], x, y));
    if (found.length) saveComment().then(done => done && show(found[0]));
  });
}

function showImage() {
  const wanted = state.sources[at], list = route || state.order;
  if (source !== wanted || !viewer.isOpen()) {
    return openPicture(wanted, state.images[at], "S", state.sources[list[list.indexOf(at) + 1]]);
  }
  drawFields();
  goToField(false);
}

function move([x, y]) {
  if (!viewer.isOpen()) return;
  const bounds = viewer.viewport.getBounds();
  viewer.viewport.panBy(new OpenSeadragon.Point(x * bounds.width / 8, y * bounds.height / 8)).applyConstraints();
}

// whole image or slide, and full resolution or the field again
function wholeOrFull() {
  if (!viewer.isOpen()) return;
  const port = viewer.viewport, home = port.getHomeZoom();
  if (port.getZoom() > home * 1.02) port.goHome();
  else if (state.regions[at]) goToField(false);
  else port.zoomTo(Math.max(port.imageToViewportZoom(1 / devicePixelRatio), home * 2)).applyConstraints();
}

// fields of slides -------------------------------------------------------------------------------

let pressed = null, frame = null, drawn = null; // of a drag: where it began; the field's outline; its region

function fieldsHere() {
  return state.order.filter(position => state.sources[position] === state.sources[at] && state.regions[position]);
}

function inside([left, top, width, height], x, y) {
  return x >= left && y >= top && x < left + width && y < top + height;
}

function toImage(pixel) {
  return viewer.viewport.viewerElementToImageCoordinates(pixel);
}

function place([left, top, width, height]) {
  return viewer.viewport.imageToViewportRectangle(left, top, width, height);
}

function outline(region, name, label) {
  const element = document.createElement("div");
  element.className = `field ${name}`;
  if (label) element.dataset.label = label;
  viewer.addOverlay({ element, location: place(region) });
  return element;
}

function drawFields() {
  viewer.clearOverlays();
  frame = null;
  for (const position of fieldsHere()) {
    const element = outline(state.regions[position], position === at ? "current" : "other", describe(state.answers[position]).split(",")[0]);
    element.dataset.kind = kind(state.answers[position]);
    if (position === at) frame = element;
  }
}

function goToField(now, region = state.regions[at]) {
  if (!region) return void viewer.viewport.goHome(now);
  const [left, top, width, height] = region, edge = .06 * Math.max(width, height);
  viewer.viewport.fitBounds(place([left - edge, top - edge, width + 2 * edge, height + 2 * edge]), now);
}

function choose(wanted) {
  const next = wanted === tool || state.kind !== "slides" || !state.order.some(position => state.regions[position]) && wanted === "move" ? null : wanted;
  if (tool && drawn && viewer.isOpen()) drawFields();
  tool = next;
  drawn = null;
  for (const name of ["draw", "move"]) $(name).setAttribute("aria-pressed", tool === name);
  $("viewer").classList.toggle("crosshair", tool === "draw");
  $("hint").hidden = !tool;
  $("hint").textContent = tool === "draw" ? "Drag over the tissue to draw a field. Esc ends it." : "Drag the field, or use the arrows and Enter. Esc leaves it.";
}

function drag(event) {
  if (!tool || !pressed) return;
  event.preventDefaultAction = true;
  const from = toImage(pressed), to = toImage(event.position), size = viewer.world.getItemAt(0).getContentSize();
  const clamp = (value, most) => Math.round(Math.max(0, Math.min(value, most)));
  if (tool === "draw") {
    const [x0, x1] = [clamp(from.x, size.x), clamp(to.x, size.x)].sort((a, b) => a - b);
    const [y0, y1] = [clamp(from.y, size.y), clamp(to.y, size.y)].sort((a, b) => a - b);
    drawn = [x0, y0, x1 - x0, y1 - y0];
  } else if (state.regions[at]) {
    const [left, top, width, height] = state.regions[at];
    drawn = [clamp(left + to.x - from.x, size.x - width), clamp(top + to.y - from.y, size.y - height), width, height];
  }
  if (drawn) redraw();
}

function redraw() {
  if (tool === "draw" && !frame?.classList.contains("new")) frame = outline(drawn, "new");
  viewer.updateOverlay(frame, place(drawn));
}

function nudge([x, y]) {
  if (!state.regions[at]) return;
  const [left, top, width, height] = drawn || state.regions[at], size = viewer.world.getItemAt(0).getContentSize();
  const within = (value, most) => Math.round(Math.max(0, Math.min(value, most)));
  drawn = [within(left + x * width / 8, size.x - width), within(top + y * height / 8, size.y - height), width, height];
  redraw();
  goToField(false, drawn);
}

function dragEnd() {
  pressed = null;
  if (!tool || !drawn) return;
  if (tool === "move") placeMoved();
  else if (Math.min(drawn[2], drawn[3]) < 16) choose(null);
  else placeField(drawn, null);
}

function placeMoved() {
  if (drawn && String(drawn) !== String(state.regions[at])) placeField(drawn, at);
  else choose(null);
}

function removeField() {
  if (state.regions[at]) placeField(null, at);
}

async function placeField(region, replaced) {
  if (!await saveComment()) return;
  const before = state.order.indexOf(at);
  if (await send("field", { source: state.sources[at], region, replaced }, "The field is not changed.")) {
    route = null;
    const next = region ? state.placed : state.order[Math.min(before, state.order.length - 1)];
    if (next !== undefined) return show(next);
    at = state.placed; // it was the last one
  }
  choose(null);
  drawFields();
  showAnswer();
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
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", dark ? "light" : "dark");
}

function open(id) {
  $("viewer").focus({ preventScroll: true }); // which has the focus again at once when the dialog is closed
  $(id).showModal();
}

// overview ---------------------------------------------------------------------------------------

const FILTERS = { all: "All", open: "Open", area: "With area", some: "Area unknown", none: "None", unsure: "Unsure", comment: "Comment" };
const NAME_END = 9;  // letters that are always shown
let filter = "all";

function matches(position, wanted) {
  return wanted === "all" || (wanted === "comment" ? position in state.comments : kind(state.answers[position]) === wanted);
}

function chosen() {
  const part = $("search").value.trim().toLowerCase();
  return state.order.filter(position => matches(position, filter) && state.images[position].toLowerCase().includes(part));
}

async function showOverview() {
  if (!await saveComment()) return;
  if (narrow.matches) side(false);
  drawOverview();
  open("overview");
  const current = $("cards").querySelector("[aria-current=true]");
  current?.scrollIntoView({ block: "center" });
  current?.focus({ preventScroll: true });
}

function drawOverview() {
  $("which").replaceChildren(...Object.entries(FILTERS).map(([name, text]) => {
    const button = document.createElement("button");
    const count = state.order.filter(position => matches(position, name)).length;
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
  $("through").disabled = !positions.length || positions.length === state.order.length;
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
  const rows = { name: state.images[position], what: describe(state.answers[position]).split(",")[0] || (isPositive(position) ? "positive, open" : "open"), note: state.comments[position] };
  for (const [name, value] of Object.entries(rows)) {
    const row = document.createElement("span");
    row.className = name;
    row.textContent = value || "";
    if (value) text.append(row);
  }
  // names differ at their ends, so a long one is cut before that
  const letters = [...state.images[position]], [start, end] = [letters.slice(0, -NAME_END), letters.slice(-NAME_END)].map(part => {
    const piece = document.createElement("span");
    piece.textContent = part.join("");
    return piece;
  });
  text.querySelector(".name").replaceChildren(start, end);
  button.title = state.images[position];
  button.append(image, text);
  button.onclick = () => {
    if (route && !route.includes(position)) route = null;
    $("overview").close();
    show(position);
  };
  item.append(button);
  return item;
}

ask("state").then(answer => {
  state = answer;
  at = state.order[0] ?? 0;
  document.body.dataset.kind = state.kind;
  $("tools").hidden = state.kind !== "slides" || !state.regions.some(Boolean);
  prepareViewer();
  if (state.order.length) {
    show(firstOpen(0));
    if (at in state.answers) finish();
  }
  else say("All fields have been taken away; U takes that back.", true);
}, error => say(explain(error), true));

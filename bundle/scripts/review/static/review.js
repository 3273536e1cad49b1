"use strict";
const DOUBTS = { label: "label", area: "area", outline: "outline" };
const FOUND = "#ffc24b", NOT = "#2aa7ff", OUTLINE = "#00e676";
let images = [], corrections = {}, order = [], place = 0, waiting = Promise.resolve();
let view = null, heat = null, tool = null, drawn = null;
const shows = { outline: true, map: false };

// corrections ------------------------------------------------------------------------------------

addAreas(area => decide({ label: 1, area, excluded: false }));
for (const [part, text] of Object.entries(DOUBTS)) {
  const row = document.createElement("p");
  row.innerHTML = `<span>${text}</span><meter id="doubt-${part}" max="1" aria-label="doubt, ${text}"></meter><span id="doubt-${part}-value"></span>`;
  $("doubts").append(row);
}
const buttons = { accept: () => decide({ excluded: false }), none: () => decide({ label: 0, area: null, excluded: false }),
  some: () => decide({ label: 1, area: null, excluded: false }), exclude: () => decide({ excluded: true }), undo,
  previous: () => show(place - 1), next: () => show(place + 1), closer: () => zoom(1.5), farther: () => zoom(1 / 1.5),
  whole: () => viewer.isOpen() && viewer.viewport.goHome(), help: () => $("keys").showModal(), outline: () => toggle("outline"),
  map: () => toggle("map"), positive: () => take("positive"), negative: () => take("negative") };
for (const [id, action] of Object.entries(buttons)) $(id).onclick = action;

const keys = { Enter: buttons.accept, n: buttons.none, a: buttons.some, x: buttons.exclude, u: undo, Backspace: undo,
  ArrowLeft: buttons.previous, ArrowRight: buttons.next, z: buttons.whole, "+": buttons.closer, "=": buttons.closer,
  "-": buttons.farther, "?": buttons.help, o: buttons.outline, m: buttons.map, p: buttons.positive, b: buttons.negative,
  "[": () => $("brush").stepDown(), "]": () => $("brush").stepUp(), Escape: () => take(tool) };
for (let digit = 0; digit <= 9; digit++) keys[digit] = () => decide({ label: 1, area: (digit || 10) / 10, excluded: false });
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("select, input") || (event.key === "Enter" && event.target.closest("button"))) return;
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action) { event.preventDefault(); if (!event.repeat) action(); }
});

const at = () => order[place];
function current(position) {
  return corrections[position] ?? { ...images[position].stated, excluded: false, strokes: [] };
}

// one after the other, so that each starts from what the one before has left; whether it was done
function correct(position, change) {
  waiting = waiting.then(async () => {
    const before = current(position);
    const correction = { ...before, ...change(before) };
    try {
      ({ corrections, message: $("message").textContent } = await ask("correct", { image: position, correction }));
      $("message").classList.remove("bad");
      return true;
    } catch (error) {
      say(`Not saved. ${explain(error)}`, true);
      return false;
    } finally { showCorrection(); }
  });
  return waiting;
}

async function decide(change) {
  const position = at(), from = place;
  if (!change.excluded && !isSeen(position, "X")) return;
  if (await correct(position, () => change) && from === place) show(firstOpen(place + 1));
}

function undo() {
  waiting = waiting.then(async () => {
    try {
      const answer = await ask("undo", {});
      corrections = answer.corrections;
      say(answer.undone < 0 ? "Nothing to undo." : `Undone. ${answer.message}`);
      if (answer.undone >= 0 && answer.undone !== at()) show(order.indexOf(answer.undone));
      else showCorrection();
    } catch (error) { say(`Not undone. ${explain(error)}`, true); }
  });
}

// which image ------------------------------------------------------------------------------------

function sort() {
  const by = $("order").value, here = at();
  order = [...images.keys()];
  if (by === "name") order.sort((a, b) => images[a].name.localeCompare(images[b].name, undefined, { numeric: true }));
  else order.sort((a, b) => images[b].doubt[by] - images[a].doubt[by]);
  return here;
}
$("order").onchange = () => { sort(); $("order").blur(); show(firstOpen(0)); };

function firstOpen(from) {
  for (let step = 0; step < order.length; step++) {
    const k = (from + step) % order.length;
    if (!corrections[order[k]]?.now) return k;
  }
  return Math.min(from, order.length - 1);
}

function words(said) {
  if (said.excluded) return "Left out";
  return said.label === 0 ? "None" : said.area === null ? "Some, area unknown" : percent(said.area);
}
const percent = value => `${Math.round(value * 100)} %`;

function show(index) {
  place = Math.max(0, Math.min(index, order.length - 1));
  const { name, split, stated, finding, doubt } = images[at()];
  $("stated-label").textContent = stated.label ? "yes" : "no";
  $("model-label").textContent = finding.probability.toFixed(2);
  $("stated-area").textContent = stated.label ? (stated.area === null ? "\u2013" : percent(stated.area)) : "0 %";
  $("model-area").textContent = percent(finding.area);
  $("model-label").classList.toggle("off", doubt.label > .5);
  $("model-area").classList.toggle("off", doubt.area > 0);
  for (const part in DOUBTS) {
    $(`doubt-${part}`).value = doubt[part];
    $(`doubt-${part}-value`).textContent = doubt[part].toFixed(2);
  }
  $("viewer").setAttribute("aria-label", `${name}, ${split}, stated ${words({ ...stated })}`);
  showCorrection();
  showImage();
}

function showCorrection() {
  const position = at(), given = corrections[position], said = current(position);
  const done = Object.values(corrections).filter(correction => correction.now).length;
  const strokes = said.strokes.length ? ` · ${said.strokes.length} strokes` : "";
  $("given").textContent = given ? words(said) + strokes + (given.now ? "" : " (earlier review)") : "";
  $("given").dataset.kind = !given?.now ? "open" : said.excluded ? "unsure" : said.label ? "area" : "none";
  $("count").textContent = `${images[position].name} · ${images[position].split} · ${place + 1} of ${order.length} · ${done} reviewed`;
  $("bar").max = order.length;
  $("bar").value = done;
  for (const button of $("areas").children) button.setAttribute("aria-pressed", !said.excluded && said.area === +button.dataset.area);
  $("none").setAttribute("aria-pressed", !said.excluded && said.label === 0);
  $("some").setAttribute("aria-pressed", !said.excluded && said.label === 1 && said.area === null);
  $("exclude").setAttribute("aria-pressed", said.excluded);
  redraw();
}

// viewer -----------------------------------------------------------------------------------------

makeViewer();
for (const event of ["open", "update-viewport", "resize"]) viewer.addHandler(event, redraw);
addEventListener("resize", redraw);

async function showImage() {
  const position = at();
  view = heat = null;
  if (!await openPicture(position, images[position].name, "X", order[place + 1])) return;
  const found = await ask(`view/${position}`).catch(() => null); // without a map there is still the image
  if (source !== position || !found) return;
  view = { ...found, path: new Path2D(found.outline) };
  heat = new Image();
  heat.onload = redraw;
  heat.src = `data:image/png;base64,${found.heat}`;
  redraw();
}

function toggle(what) {
  shows[what] = !shows[what];
  redraw();
}

// the model's outline and map, and the strokes, over the image -----------------------------------

const canvas = $("paint"), ink = canvas.getContext("2d");

function redraw() {
  for (const what in shows) $(what).setAttribute("aria-pressed", shows[what]);
  for (const what of ["positive", "negative"]) $(what).setAttribute("aria-pressed", tool === what);
  const ratio = devicePixelRatio, image = viewer.world.getItemAt(0);
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  ink.resetTransform();
  ink.clearRect(0, 0, width, height);
  if (!image || !images.length) return;
  const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
  const far = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0));
  const scale = (far.x - origin.x) / 1000, size = images[at()].size;
  ink.setTransform(scale * ratio, 0, 0, scale * ratio, origin.x * ratio, origin.y * ratio);
  if (view) {
    ink.save();
    ink.scale(size[0] / view.width, size[1] / view.height);
    if (shows.map && heat.complete) { ink.globalAlpha = .6; ink.drawImage(heat, 0, 0, view.width, view.height); ink.globalAlpha = 1; }
    if (shows.outline) {
      const thin = view.width / size[0] / scale;
      for (const [colour, wide] of [["#0009", 4], [OUTLINE, 2]]) {
        ink.strokeStyle = colour;
        ink.lineWidth = wide * thin;
        ink.stroke(view.path);
      }
    }
    ink.restore();
  }
  ink.lineCap = ink.lineJoin = "round";
  for (const stroke of [...current(at()).strokes, ...(drawn ? [drawn] : [])]) {
    ink.beginPath();
    stroke.points.forEach(([x, y], k) => (k ? ink.lineTo(x, y) : ink.moveTo(x, y)));
    if (stroke.points.length === 1) ink.lineTo(...stroke.points[0]);
    for (const [colour, more] of [["#000b", 3], [stroke.label ? FOUND : NOT, 0]]) {
      ink.strokeStyle = colour;
      ink.lineWidth = stroke.width + more / scale;
      ink.stroke();
    }
  }
}

function take(which) {
  tool = tool === which ? null : which;
  canvas.classList.toggle("on", !!tool);
  drawn = null;
  redraw();
}

function pointOf(event) {
  const box = canvas.getBoundingClientRect(), place = new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top);
  const point = viewer.world.getItemAt(0).viewerElementToImageCoordinates(place);
  return [Math.round(point.x * 10) / 10, Math.round(point.y * 10) / 10];
}

canvas.onpointerdown = event => {
  if (event.button || !viewer.world.getItemCount()) return;
  canvas.setPointerCapture(event.pointerId);
  const width = Math.max(1, Math.round(Math.max(...images[at()].size) * $("brush").value / 10) / 10);
  drawn = { position: at(), label: tool === "positive" ? 1 : 0, width, points: [pointOf(event)] };
  redraw();
};
canvas.onpointermove = event => {
  if (!drawn) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) {
    const [x, y] = pointOf(part), [lastX, lastY] = drawn.points.at(-1);
    if (Math.hypot(x - lastX, y - lastY) >= drawn.width / 4 && drawn.points.length < 2000) drawn.points.push([x, y]);
  }
  redraw();
};
canvas.onpointerup = async () => {
  if (!drawn) return;
  const { position, ...stroke } = drawn;
  await correct(position, before => ({ strokes: [...before.strokes, stroke] }));
  if (drawn && drawn.points === stroke.points) drawn = null;
  redraw();
};
canvas.onpointercancel = () => { drawn = null; redraw(); };
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  if (!viewer.isOpen()) return;
  const box = canvas.getBoundingClientRect();
  const point = viewer.viewport.viewerElementToViewportCoordinates(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
  viewer.viewport.zoomBy(event.deltaY < 0 ? 1.3 : 1 / 1.3, point).applyConstraints();
}, { passive: false });

ask("state").then(answer => { ({ images, corrections } = answer); sort(); show(firstOpen(0)); }, error => say(explain(error), true));

// What the pages to label and to review on share: asking the program, saying what it answers, and the picture.
"use strict";
const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(await response.json().then(answer => answer.detail, () => response.statusText));
  return response.json();
}

// fetch throws a TypeError where no response comes; what the program has refused is an Error of `ask`
function explain(error) {
  return error instanceof TypeError ? "Is the program still running? Start it again, and open the address that it prints." : error.message;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

// a button for each tenth of the area
function addAreas(action) {
  for (let tenth = 1; tenth <= 10; tenth++) {
    const button = document.createElement("button");
    button.innerHTML = `${tenth * 10} %<kbd>${tenth % 10}</kbd>`;
    button.dataset.area = tenth / 10;
    button.setAttribute("aria-keyshortcuts", tenth % 10);
    button.onclick = () => action(tenth / 10);
    $("areas").append(button);
  }
}

// a button that was pressed by a finger or a mouse does not keep the focus: Space or Enter would press it again
document.addEventListener("mousedown", event => { if (event.target.closest("button:not(dialog button)")) event.preventDefault(); });

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); }); // beside it
}

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;

// the picture ------------------------------------------------------------------------------------

let viewer, source = -1, seen = -1; // which picture is open; whose pixels are shown
let opened = 0; // pictures so far: what comes late for an earlier one is dropped

function makeViewer(options = {}) {
  viewer = OpenSeadragon({ element: $("viewer"), drawer: "canvas", showNavigationControl: false, keyboardNavEnabled: false,
    tabIndex: -1, animationTime: calm ? 0 : .3, visibilityRatio: .3, minZoomImageRatio: .8, maxZoomPixelRatio: 12, zoomPerScroll: 1.3,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { dblClickToZoom: true }, ...options });
  viewer.addHandler("open", () => viewer.addOnceHandler("tile-drawn", () => {
    seen = source;
    $("viewer").setAttribute("aria-busy", false);
  }));
  let whole = true, settling = false; // a picture that is seen as a whole stays so in a view of another size
  viewer.addHandler("zoom", event => { if (!settling) whole = event.zoom <= viewer.viewport.getHomeZoom() * 1.001; });
  viewer.addHandler("resize", () => { settling = whole; });
  viewer.addHandler("after-resize", () => settling && requestAnimationFrame(() => { // OpenSeadragon goes on to zoom
    settling = false;
    if (viewer.isOpen()) viewer.viewport.goHome(true);
  }));
}

// shows a picture, known by its name, which `out` leaves out where it can't be read; whether it still is the one to show
async function openPicture(wanted, name, out, next) {
  const mine = ++opened;
  $("failed").hidden = true;
  source = seen = -1;
  viewer.close(); // nobody is to judge this one by the one before it
  $("viewer").setAttribute("aria-busy", true);
  try {
    const layout = await ask(`image/${wanted}`);
    if (mine !== opened) return false;
    source = wanted;
    viewer.open({ ...layout, getTileUrl: (level, column, row) => `image/${wanted}/${level}/${column}/${row}` });
    if (next !== undefined && next !== wanted) ask(`image/${next}`).catch(() => 0); // so that it is ready
    return true;
  } catch (error) {
    if (mine !== opened) return false;
    $("viewer").setAttribute("aria-busy", false);
    $("failed").hidden = false;
    $("failed").textContent = error instanceof TypeError ? explain(error) : `${name} ${error.message}. Press ${out} to leave it out.`;
    return false;
  }
}

// whether the picture is shown; where it is not, that is said
function isSeen(wanted, out) {
  if (seen !== wanted) say($("failed").hidden ? "Wait until the picture is shown." : `It can't be read: ${out} leaves it out.`, true);
  return seen === wanted;
}

function zoom(by) {
  if (!viewer.isOpen()) return;
  viewer.viewport.zoomBy(by).applyConstraints();
}

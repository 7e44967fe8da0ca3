// The live view: one tile a station.

import { byId, el } from "./dom.js";
import { line } from "./line.js";
import { loadShift } from "./shift.js";
import { keep, recall } from "./store.js";
import { Tile } from "./tile.js";

const SHIFT_MS = 15000;

const tiles = new Map();
let isShown = true;
let isMap = recall("map", false);

/** Make the view; it follows the line by itself. */
export function startLive() {
  const grid = el("div", { class: "tiles" });
  const shifts = () => loadShift().then(() => line.refresh()).catch(() => {});
  let pid = 0; // another one: the line was started again, and counts from zero
  byId("live").replaceChildren(grid);
  line.addEventListener("state", () => {
    if (line.state.pid !== pid) { pid = line.state.pid; shifts(); }
    const names = line.state.stations.map((station) => station.name);
    for (const name of names) if (!tiles.has(name)) addTile(name, grid);
    for (const [name, tile] of tiles) if (!names.includes(name)) { tile.node.remove(); tiles.delete(name); }
    grid.dataset.tiles = String(Math.min(names.length, 7));
    for (const station of line.state.stations) tiles.get(station.name).setStation(station);
    byId("map-all").classList.toggle("needless", names.length < 2);
  });
  line.addEventListener("parts", ({ detail }) => tiles.get(detail)?.setParts(line.parts.get(detail)));
  line.addEventListener("link", tick);
  setInterval(tick, 250);
  setInterval(shifts, SHIFT_MS);
  showMap();
}

/** The view is shown, or hidden behind another one. */
export function setSeen(isSeen) {
  isShown = isSeen;
  for (const tile of tiles.values()) tile.setSeen(isSeen);
}

/** Show or hide the anomaly map of all tiles. */
export function toggleMap() {
  isMap = !isMap;
  keep("map", isMap);
  showMap();
  for (const tile of tiles.values()) tile.setMap(isMap);
}

function showMap() { byId("map-all").setAttribute("aria-pressed", String(isMap)); }

function addTile(name, grid) {
  const tile = new Tile(name);
  tiles.set(name, tile);
  grid.append(tile.node);
  tile.setMap(isMap);
  tile.setSeen(isShown);
}

function tick() { for (const tile of tiles.values()) tile.tick(); }

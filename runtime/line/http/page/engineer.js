// The engineer's view: scores and threshold, latency, bundles and swaps, health, audit.

import { AuditCard } from "./audit.js";
import { BundlesCard } from "./bundles.js";
import { byId, el } from "./dom.js";
import { HealthCard } from "./health.js";
import { LatencyCard } from "./latency.js";
import { line } from "./line.js";
import { may } from "./me.js";
import { ThresholdCard } from "./threshold.js";

const HEALTH_MS = 10000;

let cards = null;
let timer = 0;
let isOpen = false;

export const ENGINEER = {
  role: "engineer",
  async find() { byId("tab-engineer").hidden = !may("engineer"); },
  open() {
    isOpen = true;
    fillStations();
    load();
    timer = setInterval(() => { if (!document.hidden) { cards.health.open(); cards.latency.open(where()); } }, HEALTH_MS);
  },
  close() {
    isOpen = false;
    clearInterval(timer);
    cards.bundles.close();
  },
};

/** Make the view. */
export function startEngineer() {
  cards = { threshold: new ThresholdCard(), bundles: new BundlesCard(), latency: new LatencyCard(), health: new HealthCard(), audit: new AuditCard(),
    station: el("select", { id: "engineer-station", onchange: () => { fillViews(); load(); } }), view: el("select", { id: "engineer-view", onchange: load }) };
  for (const card of ["threshold", "bundles", "latency", "health", "audit"]) cards[card].node.hidden = true;
  cards.health.node.hidden = false;
  cards.bundles.node.addEventListener("changed", () => { cards.threshold.open(where()); cards.audit.open(); });
  cards.threshold.node.addEventListener("set", () => cards.audit.open());
  byId("engineer").replaceChildren(el("div", { class: "engineer-top row" }, el("label", {}, "Station", cards.station), el("label", {}, "View", cards.view),
    el("button", { type: "button", onclick: load }, "Load again")),
  el("div", { class: "cards" }, cards.threshold.node, cards.latency.node, cards.health.node, cards.bundles.node, cards.audit.node));
  line.addEventListener("parts", () => { if (isOpen && !cards.view.options.length) { fillViews(); load(); } });
  line.addEventListener("state", () => { if (isOpen && !cards.station.options.length) { fillStations(); load(); } });
}

function fillStations() {
  if (!line.state || cards.station.options.length === line.state.stations.length) return;
  cards.station.replaceChildren(...line.state.stations.map((station) => el("option", { value: station.name }, station.name)));
  fillViews();
}

function fillViews() {
  const known = line.state.stations.find((station) => station.name === cards.station.value);
  // A station that starts knows no bundles yet.
  const names = known?.views?.length ? known.views.map((view) => view.name) : line.parts.get(cards.station.value)?.find((part) => part.views.length)?.views.map((view) => view.view) ?? [];
  cards.view.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  cards.view.parentElement.hidden = names.length < 2;
}

function where() {
  const station = cards.station.value;
  const known = line.state?.stations.find((one) => one.name === station);
  const view = cards.view.value;
  const found = line.parts.get(station)?.flatMap((part) => part.views).find((one) => one.view === view && one.threshold !== null);
  return { station, view, start: known?.views?.find((one) => one.name === view)?.threshold ?? found?.threshold, late: known?.late ?? 0 };
}

async function load() {
  if (!isOpen || !line.state || !cards.station.value) return;
  if (!cards.view.options.length) fillViews();
  if (!cards.view.options.length && line.state.stations.some((one) => one.parts > 0)) return; // comes with the parts
  const at = where();
  await Promise.all([cards.threshold.open(at), cards.latency.open(at), cards.bundles.open(at), cards.health.open(), cards.audit.open()]);
}

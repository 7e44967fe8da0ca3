// The review: rejects and faults that nobody has looked at, one at a time, by keys alone or by touch.

import { getIfThere, path } from "./api.js";
import { byId, el, mark, say, tell, word } from "./dom.js";
import { ago, count, dayAndClock } from "./format.js";
import { SHAPE_OF, label, labelList, labelsOf, lastTypes, useType } from "./labels.js";
import { line } from "./line.js";
import { may } from "./me.js";
import { Pane } from "./pane.js";
import { facts, showImage } from "./part.js";
import { keep, recall } from "./store.js";

const MOST = 200;
const LABELS = [["normal", "n"], ["anomalous", "a"], ["unsure", "u"]];

export const REVIEW_KEYS = [["n", "normal: the line was wrong"], ["a", "anomalous, with a type"], ["1 … 9", "anomalous, of that type"],
  ["u", "unsure"], ["← →", "the part before, the next one"], ["z", "back to the last one: what you say then is a new row"],
  ["v", "the next view of the part"], ["m", "anomaly map on or off"], ["e", "a note"], ["r", "load again"]];

let isThere = false;
let isOpen = false;
let parts = []; // the queue, labelled ones included, so that one can go back
let at = 0;
let view = null;
let isMap = recall("map", false);
const said = new Map(); // seq -> what was said here
const history = []; // seqs in the order in which they were labelled
let nodes = null;
let sending = Promise.resolve();

export const REVIEW = {
  role: "operator",
  isThere: () => isThere,
  /** Find out whether the line keeps labels. */
  async find() {
    const answer = may("operator") ? await getIfThere("/api/v1/parts?reviewed=0&verdict=reject&limit=1").catch(() => null) : null;
    isThere = answer !== null;
    byId("tab-review").hidden = !isThere;
  },
  open() { isOpen = true; isMap = recall("map", false); load(); },
  close() { isOpen = false; },
};

/** Make the view. */
export function startReview() {
  const select = (name, words, values) => el("select", { onchange: load, "aria-label": name }, values.map((value, place) => el("option", { value }, words[place])));
  nodes = {
    what: select("Which parts", ["rejects and faults", "rejects", "faults", "accepts"], ["reject,fault", "reject", "fault", "accept"]),
    station: select("Station", ["all stations"], [""]),
    order: select("Order", ["newest first", "oldest first"], ["newest", "oldest"]),
    progress: el("progress", { max: 1, value: 0, "aria-label": "Looked at" }),
    left: el("span", { role: "status" }),
    pane: new Pane("Part under review"),
    side: el("div", { class: "review-side card" }),
    body: el("div", { class: "review-body" }),
    type: el("input", { id: "type", list: "review-types", placeholder: "defect type, or empty", "aria-label": "Defect type", maxlength: 40, autocomplete: "off", autocapitalize: "none" }),
    note: el("input", { id: "note", placeholder: "note", "aria-label": "Note", maxlength: 500, autocomplete: "off" }),
    entry: null,
  };
  nodes.type.addEventListener("keydown", (event) => onEntry(event, () => choose("anomalous", nodes.type.value.trim())));
  nodes.note.addEventListener("keydown", (event) => onEntry(event, () => nodes.note.blur()));
  nodes.order.classList.add("order");
  setInterval(tick, 500);
  const link = el("a", { class: "button", href: "/api/v1/reviews/export", download: "", "data-role": "engineer", hidden: !may("engineer"), id: "export" }, "Export as data set");
  byId("review").replaceChildren(el("div", { class: "review-top" }, nodes.what, nodes.station, nodes.order, nodes.left, nodes.progress, link), nodes.body);
  line.addEventListener("state", () => {
    const names = ["", ...line.state.stations.map((one) => one.name)];
    if (nodes.station.options.length === names.length) return;
    nodes.station.replaceChildren(...names.map((name) => el("option", { value: name }, name || "all stations")));
  });
}

function onEntry(event, done) {
  if (event.key === "Enter") { event.preventDefault(); done(); }
  if (event.key === "Escape") { event.preventDefault(); event.target.blur(); }
}

async function load() {
  if (!isOpen) return;
  byId("export").href = path("/api/v1/reviews/export", { station: nodes.station.value });
  const order = nodes.order.value;
  await sending; // else what has just been labelled comes again
  try {
    const answers = await Promise.all(nodes.what.value.split(",").map((verdict) => getIfThere(path("/api/v1/parts",
      { verdict, station: nodes.station.value, reviewed: 0, order, limit: MOST }))));
    parts = answers.flatMap((answer) => answer?.parts ?? []).sort((a, b) => (order === "newest" ? b.seq - a.seq : a.seq - b.seq)).slice(0, MOST);
  } catch (error) { tell(error.message, true); return; }
  at = 0;
  said.clear();
  history.length = 0;
  show();
}

const current = () => parts[at];

/** Tell how old the part is, while it is looked at. */
function tick() {
  if (isOpen && nodes.age && current()) say(nodes.age, ago(line.age(current()) ?? 0));
}

function drawCount() {
  const left = parts.filter((one) => !said.has(one.seq)).length;
  nodes.left.textContent = `${count(left)}${parts.length >= MOST ? " or more" : ""} to look at`;
  nodes.progress.max = Math.max(1, parts.length);
  nodes.progress.value = parts.length - left;
}

function show() {
  const part = current();
  drawCount();
  if (!part) {
    nodes.body.replaceChildren(el("div", { class: "review-none" }, mark("accept"),
      el("p", {}, parts.length ? "All of these have been looked at." : "Nothing to look at."),
      el("button", { type: "button", class: "go", onclick: load }, "Load again ", el("kbd", {}, "r"))));
    return;
  }
  view = part.views.find((one) => one.verdict === part.verdict) ?? part.views[0] ?? null;
  nodes.note.value = "";
  nodes.type.value = "";
  if (!nodes.pane.node.isConnected) nodes.body.replaceChildren(nodes.pane.node, nodes.side);
  drawSide(part);
  showImage(nodes.pane, part, view, isMap);
  loadLabels(part);
}

function drawSide(part) {
  const own = said.get(part.seq);
  nodes.labels = el("div", {});
  nodes.age = el("span", { class: "muted review-age" });
  tick();
  const choice = ([what, key]) => el("button", { type: "button", class: own?.label === what ? "said" : "", id: `say-${what}`,
    onclick: () => (what === "anomalous" ? askType() : choose(what)) }, mark(SHAPE_OF[what]), el("span", {}, what, " ", el("kbd", {}, key)));
  const types = lastTypes().map((type, place) => el("button", { type: "button", onclick: () => choose("anomalous", type) }, el("kbd", {}, String(place + 1)), " ", type));
  nodes.entry = el("div", { class: "type-entry", hidden: true }, nodes.type, el("button", { type: "button", class: "go", onclick: () => choose("anomalous", nodes.type.value.trim()) }, "Anomalous"));
  const views = part.views.length < 2 ? null : el("div", { class: "row" }, part.views.map((one) => el("button", { type: "button", class: one.verdict,
    "aria-pressed": String(one === view), onclick: () => setView(one) }, mark(one.verdict), one.view)), el("kbd", {}, "v"));
  nodes.mapButton = el("button", { type: "button", "aria-pressed": String(isMap), onclick: toggleMap }, "Map ", el("kbd", {}, "m"));
  nodes.side.replaceChildren(
    el("div", { class: "head" }, word(part.verdict), el("h2", {}, `Part ${part.seq}`), nodes.age, nodes.mapButton),
    views ?? "", el("div", { class: "choices" }, LABELS.map(choice)), nodes.entry,
    types.length ? el("div", { class: "types", role: "group", "aria-label": "Anomalous, of a type" }, types) : "",
    nodes.note, el("div", { class: "moves" },
      el("button", { type: "button", onclick: () => move(-1) }, "← back"), el("button", { type: "button", onclick: () => move(1) }, "skip →"),
      el("button", { type: "button", onclick: undo, disabled: !history.length }, "undo ", el("kbd", {}, "z")),
      el("button", { type: "button", onclick: load }, "reload ", el("kbd", {}, "r"))),
    facts(part, view), nodes.labels);
}

async function loadLabels(part) {
  const rows = await labelsOf(part.seq).catch(() => null);
  if (current() === part && rows?.length) nodes.labels.replaceChildren(el("h3", {}, "Said before"), labelList(rows));
}

function setView(one) {
  view = one;
  drawSide(current());
  showImage(nodes.pane, current(), view, isMap);
  loadLabels(current());
}

function toggleMap() {
  isMap = !isMap;
  keep("map", isMap);
  nodes.mapButton.setAttribute("aria-pressed", String(isMap));
  if (current()) showImage(nodes.pane, current(), view, isMap);
}

function askType() {
  nodes.entry.hidden = false;
  nodes.type.focus();
}

/** Go on at once and send the label meanwhile, one after the other: whoever types fast must not label the wrong part. */
function choose(what, type = "") {
  const part = current();
  if (!part) return;
  // Of one view, the label says which; of several, what was on the screen.
  const row = { label: what, type, note: nodes.note.value.trim(), view: part.views.length > 1 ? (view?.view ?? "") : "" };
  said.set(part.seq, row);
  history.push(part.seq);
  sending = sending.then(() => label(part.seq, row)).catch((error) => notSent(part, row, error));
  useType(type);
  document.activeElement?.blur();
  tell(`Part ${part.seq}: ${type ? `${what}, ${type}` : what}.`);
  next();
}

function notSent(part, row, error) {
  tell(`Part ${part.seq} is not labelled: ${error.message}`, true);
  if (said.get(part.seq) !== row) return;
  said.delete(part.seq);
  history.splice(history.lastIndexOf(part.seq), 1);
  if (current()) drawCount(); else next();
}

function next() {
  const after = parts.findIndex((one, place) => place > at && !said.has(one.seq));
  at = after >= 0 ? after : parts.findIndex((one) => !said.has(one.seq));
  if (at < 0) at = parts.length;
  show();
}

function move(by) {
  at = Math.max(0, Math.min(parts.length - 1, at + by));
  show();
}

function undo() {
  const seq = history.pop();
  if (seq === undefined) return;
  at = parts.findIndex((one) => one.seq === seq);
  said.delete(seq);
  show();
  tell(`Part ${seq} again: say what it is; the row before stays on record.`);
}

function nextView() {
  const { views } = current();
  if (views.length > 1) setView(views[(views.indexOf(view) + 1) % views.length]);
}

/** Take a key; whether it was one of the review's. */
export function reviewKey(event) {
  if (event.key === "r") { load(); return true; }
  if (!parts.length) return false;
  const acts = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), z: undo };
  if (current()) Object.assign(acts, { n: () => choose("normal"), a: askType, u: () => choose("unsure"), m: toggleMap, v: nextView, e: () => nodes.note.focus() });
  const type = lastTypes()[Number(event.key) - 1];
  if (current() && /^[1-9]$/.test(event.key) && type) { choose("anomalous", type); return true; }
  const act = acts[event.key];
  if (!act) return false;
  act();
  return true;
}

// The page of a line: which view is shown, who looks, and whether there is a line at all.

import { SIGNED_OUT } from "./api.js";
import { byId, el, isTyping, openDialog, say, svg, tell } from "./dom.js";
import { ENGINEER, startEngineer } from "./engineer.js";
import { clock, count, zoneName } from "./format.js";
import { line } from "./line.js";
import { setSeen, startLive, toggleMap } from "./live.js";
import { knowMe, showLogin, signOut } from "./login.js";
import { may, me, showByRole } from "./me.js";
import { REVIEW, REVIEW_KEYS, reviewKey, startReview } from "./review.js";
import { keep, recall } from "./store.js";

const NAMES = { live: "Live", review: "Review", engineer: "Engineer" };
const VIEWS = { live: { role: "", open: () => setSeen(true), close: () => setSeen(false) }, review: REVIEW, engineer: ENGINEER };
const THEMES = ["system", "light", "dark"];

let view = "";
let hasStarted = false;

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
  const half = { system: "M16 4a12 12 0 0 1 0 24z", light: "M16 16z", dark: "M16 4a12 12 0 1 1 0 24a12 12 0 1 1 0-24z" }[theme];
  byId("theme").replaceChildren(svg("svg", { viewBox: "0 0 32 32", "aria-hidden": "true" },
    svg("circle", { cx: 16, cy: 16, r: 12, fill: "none", stroke: "currentColor", "stroke-width": 3 }), svg("path", { d: half, fill: "currentColor" })));
  const words = `Colours: ${theme === "system" ? "as the system" : theme}. Press to change.`;
  byId("theme").setAttribute("aria-label", words);
  byId("theme").title = words;
}

/** Why a view is not shown, in words; empty where it is. */
function against(wanted) {
  if (!may(VIEWS[wanted].role)) return `${NAMES[wanted]} needs the role ${VIEWS[wanted].role}; ${me.name} has the role ${me.role}. Sign in as somebody who has it.`;
  return byId(`tab-${wanted}`).hidden ? `${NAMES[wanted]} is not offered by this line now. Load the page again later.` : "";
}

function route() {
  const wanted = location.hash.slice(1);
  if (wanted === "main" && view) return; // to the content, of whatever is shown
  const isView = Object.hasOwn(VIEWS, wanted);
  const problem = isView ? against(wanted) : "";
  byId("denied").hidden = !problem;
  byId("denied").replaceChildren(...(problem ? [el("p", {}, `${problem} This is Live.`)] : []));
  const next = isView && !problem ? wanted : "live";
  if (next === view) return;
  if (view) VIEWS[view].close();
  view = next;
  for (const name of Object.keys(VIEWS)) {
    byId(name).hidden = name !== view;
    if (name === view) byId(`tab-${name}`).setAttribute("aria-current", "page"); else byId(`tab-${name}`).removeAttribute("aria-current");
  }
  byId("map-all").hidden = view !== "live";
  VIEWS[view].open();
}

function showLink() {
  const isLost = line.isLost;
  const shape = isLost ? svg("path", { d: "M4 4l24 24M28 4L4 28", stroke: "currentColor", "stroke-width": 5 }) : svg("circle", { cx: 16, cy: 16, r: 10, fill: "currentColor" });
  byId("link").replaceChildren(svg("svg", { viewBox: "0 0 32 32", "aria-hidden": "true" }, shape), el("span", { class: "text" }, isLost ? "no connection" : line.canStream ? "live" : "polling"));
  byId("link").className = isLost ? "word reject" : "word accept";
  byId("link").title = isLost ? "no connection" : "connected";
  byId("lost").hidden = !isLost;
  document.body.classList.toggle("is-lost", isLost);
  if (isLost) byId("lost").replaceChildren(el("p", {}, `No connection to the line since ${clock(line.lostSince)}. What is shown is not current.`));
}

function showState() {
  const { state } = line;
  say(byId("line-name"), state.line);
  document.title = `${state.line} · ${state.stations.every((one) => one.state === "ready") ? "ready" : "NOT READY"}`;
  const notices = [];
  if (state.journal) notices.push(`Journal: ${state.journal}`);
  if (!state.account_holds) notices.push("The account of the line is wrong: parts are not accept + reject + fault + open. Tell an engineer.");
  if (state.images?.warning) notices.push(`Images: ${state.images.warning}`);
  for (const sink of state.sinks) {
    if (sink.last_error && sink.behind) notices.push(`${sink.name}: ${count(sink.behind)} entries have not been sent. ${sink.last_error}`);
  }
  const key = notices.join("\n");
  if (byId("notices").dataset.key === key) return;
  byId("notices").dataset.key = key;
  byId("notices").replaceChildren(...notices.map((text) => el("p", {}, text)));
}

function showHelp() {
  const rows = [["1 2 3", "live, review, engineer (in the live view)"], ["m", "anomaly map on or off"], ["?", "this list"], ["Esc", "close a dialog"]];
  const table = (title, keys) => [el("h3", {}, title), el("table", {}, el("tbody", {}, keys.map(([key, what]) => el("tr", {},
    el("td", {}, key.split(" ").map((one) => [el("kbd", {}, one), " "])), el("td", {}, what)))))];
  openDialog("Keys", ...table("Everywhere", rows), ...(may("operator") && REVIEW.isThere() ? table("Review", REVIEW_KEYS) : []));
}

function onKey(event) {
  if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey || me.role === "") return;
  if (event.key === "?") { event.preventDefault(); if (!document.querySelector("dialog[open]")) showHelp(); return; }
  if (document.querySelector("dialog[open]")) return;
  if (view === "review" && reviewKey(event)) { event.preventDefault(); return; }
  if (view === "live" && event.key === "m") toggleMap();
  const tab = { 1: "live", 2: "review", 3: "engineer" }[event.key];
  if (view === "live" && tab && !byId(`tab-${tab}`).hidden) location.hash = tab;
}

function showUser() {
  const user = byId("user");
  user.hidden = !me.has_users || me.role === "";
  say(user, `${me.name} · sign out`);
  user.title = `${me.name}, ${me.role}: sign out`;
}

async function enter() {
  const isKnown = await knowMe();
  showUser();
  byId("login").hidden = isKnown;
  byId("denied").hidden = true;
  for (const id of ["tabs", "map-all"]) byId(id).hidden = !isKnown;
  if (!isKnown) {
    line.stop();
    for (const name of Object.keys(VIEWS)) byId(name).hidden = true;
    if (view) VIEWS[view].close();
    view = "";
    showLogin(enter);
    return;
  }
  byId("login").replaceChildren();
  showByRole(document);
  if (!hasStarted) { hasStarted = true; startLive(); startReview(); startEngineer(); }
  line.start();
  await Promise.all([REVIEW.find(), ENGINEER.find()]);
  route();
}

async function begin() {
  try { await enter(); } catch (error) {
    // No line yet: the page asks until there is one.
    byId("lost").hidden = false;
    byId("lost").replaceChildren(el("p", {}, `No connection to the line. ${error.message}`));
    setTimeout(() => { byId("lost").hidden = true; begin(); }, 2000);
  }
}

showTheme(recall("theme", "system"));
byId("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(recall("theme", "system")) + 1) % THEMES.length];
  keep("theme", theme);
  showTheme(theme);
});
byId("help").addEventListener("click", showHelp);
byId("map-all").addEventListener("click", toggleMap);
byId("user").addEventListener("click", () => signOut().then(() => location.reload()).catch((error) => tell(error.message, true)));
document.addEventListener("keydown", onKey);
document.addEventListener(SIGNED_OUT, () => { if (me.role !== "") { me.role = ""; begin(); } });
addEventListener("hashchange", route);
line.addEventListener("state", () => { showState(); showLink(); });
line.addEventListener("link", showLink);
setInterval(() => { if (line.state) say(byId("clock"), `${clock(line.now())} ${zoneName()}`); }, 500);
begin();

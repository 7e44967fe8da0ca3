// Whether the line is well: account, journal, images and disk, sinks, self-tests, drift.

import { path, post } from "./api.js";
import { el, mark, tell, twice } from "./dom.js";
import { ago, count, number } from "./format.js";
import { line } from "./line.js";

const DISKS = { ok: "room enough", prune: "old images are deleted to make room", stop: "too full for images", fault: "full: parts are faults" };

export class HealthCard {
  constructor() {
    this.body = el("ul", { class: "checks" });
    this.node = el("section", { class: "card", id: "card-health", "aria-label": "Health" }, el("h2", {}, "Health"), this.body);
  }

  /** Show what the line says of itself. */
  open() {
    const { state } = line;
    this.body.replaceChildren(
      row(state.account_holds, "Account", state.account_holds ? "parts = accept + reject + fault + open" : "wrong: tell whoever keeps the line"),
      row(!state.journal, "Journal", state.journal || "written"),
      ...state.stations.flatMap((station) => (station.warnings ?? []).map((text) => row(false, station.name, text))),
      ...(state.images ? imageRows(state.images) : []),
      ...state.sinks.map((sink) => row(!sink.last_error, `Sink ${sink.name}`, `${count(sink.sent)} sent, ${count(sink.behind)} behind${sink.last_error ? `: ${sink.last_error}` : ""}`)),
      ...(state.selftests ?? []).map((one) => row(!one.problem, `Self-test ${one.bundle.slice(0, 8)}`, one.problem || `passed ${ago(one.age_s)}`)),
      ...(state.drift ?? []).map(driftRow));
  }
}

function row(isWell, name, text, act = null) {
  return el("li", {}, mark(isWell ? "accept" : "fault"), el("b", {}, name), el("span", {}, text, act ? [" ", act] : ""));
}

function imageRows(images) {
  const bad = [[images.left_out, "not stored"], [images.lost, "lost"], [images.deleted, "deleted"]].filter(([value]) => value).map(([value, what]) => `, ${count(value)} ${what}`);
  return [row(images.disk === "ok", "Disk", `${number(images.free_gb, 3)} GB free: ${DISKS[images.disk] ?? images.disk}`),
    row(!images.warning && !images.lost, "Images", `${count(images.stored)} stored${bad.join("")}${images.warning ? `: ${images.warning}` : ""}`)];
}

function driftRow(view) {
  const name = `Drift ${view.station}/${view.view}`;
  if (view.state === "learning") return row(true, name, `learning, ${count(view.learned)} of ${count(view.reference)} parts`);
  const drifting = view.quantities.filter((one) => one.is_drifting).map((one) => `${one.name} was ${number(one.mean_before)}, is ${number(one.mean_now)}`);
  if (view.state !== "drift") return row(true, name, "as at first");
  // What is seen now becomes what later images are compared with: for a new lamp, not for a dirty one.
  const relearn = twice("This is right: learn anew", "Press again: learn anew", async () => {
    try {
      await post(path(`/api/v1/stations/${encodeURIComponent(view.station)}/drift/relearn`, { view: view.view }));
      tell(`${view.station}/${view.view} learns anew what it sees.`);
      await line.refresh();
    } catch (error) { tell(error.message, true); }
  });
  return row(false, name, drifting.join("; ") || "drifting", relearn);
}

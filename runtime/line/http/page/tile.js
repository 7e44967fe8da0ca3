// The tile of a station: what its last part is, readable at two metres, and whatever keeps it from being ready.

import { post } from "./api.js";
import { el, mark, say, tell, twice } from "./dom.js";
import { ago, clock, count, number, percent, reasonOf } from "./format.js";
import { LAST, line } from "./line.js";
import { may } from "./me.js";
import { Pane, livePath } from "./pane.js";
import { openPart } from "./part.js";
import { ScoreBar } from "./score_bar.js";
import { beginShift, hasShifts, sinceShift } from "./shift.js";

const OLD_S = 60; // an image of this age is shown as old
const APART_MS = 1500; // longest time that image and verdict may be of different parts without a word
const BEHIND_MS = 250; // and without being dimmed: as long as an image takes that comes in time
const WITHOUT_IMAGE = ["missing_view", "lost_frame", "unreadable_image", "overrun", "not_ready"];
const RANK = { accept: 0, reject: 1, fault: 2 };

/** Words for the states of a station. */
const STATES = { starting: "Starting", ready: "Ready", error: "Error", halted: "Halted", stopped: "Stopped" };

export class Tile {
  #station = null;
  #parts = [];
  #view = ""; // chosen by hand; empty: the view that decided
  #isMap = false;
  #isSeen = true;
  #apartSince = null;

  constructor(name) {
    this.name = name;
    this.pane = new Pane(`Station ${name}`);
    this.bar = new ScoreBar();
    this.views = el("div", { class: "views row", role: "group", "aria-label": "Views" });
    this.mapButton = el("button", { type: "button", class: "map", "aria-pressed": "false", onclick: () => this.setMap(!this.#isMap) }, "Map");
    this.mapButton.title = "Anomaly map over the image";
    this.haltButton = twice("Halt", "Press again: halt", () => this.#control("halt"), { class: "halt", title: "Score no more parts" });
    this.stateText = el("span", { class: "state" });
    this.banner = el("div", { class: "banner", role: "alert", hidden: true });
    this.warnings = el("div", { class: "warnings", role: "status" });
    this.shape = el("div", { class: "shape" });
    this.word = el("p", { class: "verdict-word" });
    this.why = el("p", { class: "why" });
    this.verdict = el("div", { class: "verdict unknown" }, this.shape, el("div", { class: "fill" }, this.word, this.why));
    this.which = el("button", { type: "button", class: "which", onclick: () => this.#parts[0] && openPart(this.#parts[0].seq, this.#isMap) });
    this.ageText = el("span", { class: "age" });
    this.counters = el("dl", { class: "counters" });
    this.since = el("p", { class: "since small muted fill" });
    this.shiftButton = twice("New shift", "Press again: count from zero", () => this.#beginShift(),
      { class: "new-shift", title: "Count all stations from zero" });
    this.strip = el("div", { class: "strip", role: "group", "aria-label": `Last ${LAST} parts, the newest on the right` });
    this.node = el("article", { class: "tile card", "data-station": name, "aria-label": `Station ${name}` },
      el("header", {}, el("h2", {}, name), this.stateText, this.views, this.mapButton, this.haltButton),
      this.banner, this.warnings,
      el("div", { class: "body" }, this.pane.node,
        el("div", { class: "side" }, this.verdict, el("div", { class: "row part-line" }, this.which, this.ageText),
          this.bar.node, this.counters, el("div", { class: "row" }, this.since, this.shiftButton))),
      this.strip);
    this.#drawVerdict();
  }

  /** Take the state of the station. */
  setStation(station) {
    const before = this.#station;
    this.#station = station;
    this.node.dataset.state = station.state;
    say(this.stateText, STATES[station.state] ?? station.state);
    this.stateText.className = `state ${station.state}`;
    const warnings = (station.warnings ?? []).join("\n");
    if (this.warnings.dataset.key !== warnings) {
      this.warnings.dataset.key = warnings;
      this.warnings.replaceChildren(...(station.warnings ?? []).map((text) => el("p", {}, text)));
    }
    this.shiftButton.hidden = !hasShifts() || !may("operator");
    this.haltButton.hidden = !may("operator") || ["halted", "stopped"].includes(station.state);
    if (!before || before.state !== station.state || before.reason !== station.reason) this.#drawBanner();
    this.#drawCounters();
    if (before?.state !== station.state) this.#drawVerdict();
  }

  /** Take its last parts, the newest first. */
  setParts(parts) {
    this.#parts = parts;
    this.#drawVerdict();
    this.#drawStrip();
    this.#drawViews();
    this.#drawImage();
  }

  /** Whether somebody can see the tile: images are asked for then alone. */
  setSeen(isSeen) {
    this.#isSeen = isSeen;
    this.#drawImage();
  }

  /** Show the anomaly map, or not. */
  setMap(isMap) {
    this.#isMap = isMap;
    this.mapButton.setAttribute("aria-pressed", String(isMap));
    this.#drawImage();
  }

  /** Tell how old things are; several times a second. */
  tick() {
    const part = this.#parts[0];
    if (!part) return;
    const seconds = line.age(part);
    say(this.ageText, seconds === null ? "" : ago(seconds));
    this.ageText.classList.toggle("old", seconds > OLD_S);
    // Since the first part whose image did not come, or the last image that came late: not since each new part.
    if (this.pane.seq === null || this.pane.seq === part.seq) this.#apartSince = null; else this.#apartSince ??= performance.now();
    const isApart = this.#apartSince !== null && performance.now() - Math.max(this.#apartSince, this.pane.drawnAt) > APART_MS;
    // At once, before there are words: nobody may take it for the image of this verdict.
    this.pane.node.classList.toggle("behind", this.pane.seq !== null && this.#apartSince !== null && performance.now() - this.#apartSince > BEHIND_MS);
    if (line.isLost) this.pane.age("NOT CURRENT\nno connection");
    else if (isApart) this.pane.age(`image of part ${this.pane.seq}`);
    else this.pane.age(seconds > OLD_S && this.pane.seq !== null ? `image of ${ago(seconds)}` : "");
    if (this.node.classList.contains("lost") !== line.isLost) {
      this.node.classList.toggle("lost", line.isLost);
      this.#drawVerdict();
    }
  }

  #shown() {
    const part = this.#parts[0];
    const views = part?.views ?? [];
    const share = (view) => (view.threshold > 0 ? view.score / view.threshold : (view.score ?? 0) - (view.threshold ?? 0));
    const worst = [...views].sort((a, b) => RANK[b.verdict] - RANK[a.verdict] || share(b) - share(a))[0];
    return views.find((view) => view.view === this.#view) ?? worst;
  }

  #drawVerdict() {
    const part = this.#parts[0];
    const state = this.#station?.state ?? "ready";
    const isCurrent = !line.isLost && state === "ready" && part;
    // While it is not ready, or nobody knows, the last verdict is history: it must not be read from afar.
    const verdict = isCurrent ? part.verdict : "unknown";
    const text = line.isLost ? "UNKNOWN" : state !== "ready" ? (state === "error" ? "NOT READY" : state.toUpperCase()) : part ? part.verdict.toUpperCase() : "NO PART";
    const key = `${verdict} ${text}`;
    if (this.verdict.dataset.key !== key) {
      this.verdict.dataset.key = key;
      this.verdict.className = `verdict ${verdict}${text.length > 6 ? " long" : ""}`;
      this.shape.replaceChildren(mark(verdict, `var(--${verdict})`));
      say(this.word, text);
    }
    const last = part ? `last part: ${part.verdict}${part.reason ? `, ${reasonOf(part)}` : ""}` : "no part yet";
    say(this.why, line.isLost ? "no connection" : isCurrent ? reasonOf(part) : last);
    this.why.hidden = this.why.textContent === "";
    if (!part) { this.which.hidden = true; this.bar.node.hidden = true; return; }
    this.which.hidden = false;
    this.bar.node.hidden = false;
    say(this.which, `part ${part.seq}${part.part_id ? ` · ${part.part_id}` : ""}`);
    this.bar.show(part, this.#parts.map((one) => one.score).filter((score) => score !== null));
  }

  #drawBanner() {
    const { state, reason, sources } = this.#station;
    this.banner.hidden = state === "ready";
    if (state === "ready") return;
    this.banner.className = `banner ${state}`;
    const down = Object.entries(sources ?? {}).filter(([, why]) => why && !reason.includes(why)).map(([view, why]) => `${view}: ${why}`);
    const what = { halted: "Halted: parts are faults until it is started again.", starting: "Starting: parts are faults until it is ready.",
      stopped: "Stopped.", error: "Not ready: parts are faults." }[state] ?? "Not ready.";
    const mends = { halted: "Start again", error: "Acknowledge" }[state];
    this.banner.replaceChildren(el("div", { class: "fill" }, el("p", { class: "what" }, what),
      el("p", { class: "reason" }, [reason, ...down].filter(Boolean).join("; "))));
    if (mends && may("operator")) {
      this.banner.append(el("button", { type: "button", class: "go mend", onclick: () => this.#control("reset") }, mends));
    }
  }

  #drawCounters() {
    const { counts, since, why } = sinceShift(this.#station);
    const all = counts.accept + counts.reject + counts.fault;
    const rows = ["accept", "reject", "fault"].map((verdict) => [verdict, counts[verdict], percent(counts[verdict], all)]);
    const key = JSON.stringify([rows, this.#station.open, since, why]);
    if (this.counters.dataset.key === key) return;
    this.counters.dataset.key = key;
    this.counters.replaceChildren(...rows.map(([verdict, value, share]) => el("div", { class: verdict },
      el("dt", {}, mark(verdict), verdict), el("dd", {}, el("b", {}, count(value)), " ", el("span", { class: "muted small" }, share)))));
    const open = this.#station.open ? ` · ${this.#station.open} open` : "";
    this.since.title = why;
    say(this.since, `${count(all)} parts since ${since}${open}`);
  }

  #drawStrip() {
    const parts = [...this.#parts].reverse();
    const scored = parts.filter((part) => part.score !== null && part.threshold > 0);
    const top = Math.max(1.3, ...scored.map((part) => part.score / part.threshold).map((share) => Math.min(share, 2)));
    // The same buttons each time: one that is replaced under a finger is never pressed, and loses the focus.
    while (this.strip.children.length < parts.length) this.strip.append(this.#stripButton());
    while (this.strip.children.length > parts.length) this.strip.lastChild.remove();
    for (const [place, part] of parts.entries()) {
      const button = this.strip.children[place];
      const share = part.threshold > 0 && part.score !== null ? Math.min(part.score / part.threshold, top) / top : 1;
      button.querySelector(".height").style.height = `${Math.max(8, 100 * Math.max(0, share))}%`;
      const label = `Part ${part.seq}, ${part.verdict}, ${clock(part.utc)}${part.score === null ? "" : `, score ${number(part.score)}`}`;
      button.setAttribute("aria-label", label);
      button.title = label;
      button.dataset.seq = part.seq;
      if (button.className !== part.verdict) {
        button.className = part.verdict;
        button.lastChild.replaceWith(mark(part.verdict));
      }
    }
  }

  #stripButton() {
    const button = el("button", { type: "button" }, el("span", { class: "column" }, el("span", { class: "height" })), el("span", {}));
    // What was under the finger when it came down, as parts move on meanwhile.
    button.addEventListener("pointerdown", () => { button.dataset.pressed = button.dataset.seq; });
    button.addEventListener("click", () => { openPart(button.dataset.pressed ?? button.dataset.seq, this.#isMap); delete button.dataset.pressed; });
    return button;
  }

  #drawViews() {
    const views = this.#parts[0]?.views ?? [];
    this.views.hidden = views.length < 2;
    if (views.length < 2) return;
    const shown = this.#shown()?.view;
    const key = JSON.stringify([shown, views.map((view) => [view.view, view.verdict])]);
    if (this.views.dataset.key === key) return;
    this.views.dataset.key = key;
    this.views.replaceChildren(...views.map((view) => el("button", { type: "button", "aria-pressed": String(view.view === shown),
      class: view.verdict, onclick: () => { this.#view = this.#view === view.view ? "" : view.view; this.#drawViews(); this.#drawImage(); } },
      mark(view.verdict), view.view)));
  }

  #drawImage() {
    const part = this.#parts[0];
    const view = this.#shown();
    if (!part || !this.#isSeen) return;
    if (!view || WITHOUT_IMAGE.includes(view.reason)) { this.pane.clear(`Part ${part.seq}: ${reasonOf(view ?? part) || "no image"}`); return; }
    const several = part.views.length > 1 ? ` · ${view.view}` : "";
    this.pane.show({ paths: [livePath(this.name, view.view, part.seq, this.#isMap)], seq: part.seq,
      label: `part ${part.seq}${several}${this.#isMap ? " · map" : ""}`, gone: `No image of part ${part.seq}` });
  }

  async #beginShift() {
    try {
      await beginShift();
      await line.refresh();
    } catch (error) { tell(error.message, true); }
  }

  async #control(action) {
    try {
      await post(`/api/v1/stations/${encodeURIComponent(this.name)}/${action}`);
      await line.refresh();
    } catch (error) { tell(error.message, true); }
  }
}

// Bundles of the line with what their manifests say, and swapping them: each step is shown while it is done.

import { get, getIfThere, post, upload } from "./api.js";
import { el, tell, twice, word } from "./dom.js";
import { bytes, number } from "./format.js";
import { line } from "./line.js";
import { openPart } from "./part.js";

const POLL_MS = 400;
const STATES = { waiting: ["·", "waiting"], running: ["…", "running"], ok: ["✓", "done"], done: ["✓", "done"], skipped: ["–", "skipped"], failed: ["✕", "failed"] };
const MOST_ROWS = 50;
const NO_REASON = "on the page";

export class BundlesCard {
  #where = null;
  #bundles = [];
  #isFollowing = false;

  constructor() {
    this.list = el("div", { class: "bundles" });
    this.challenged = el("div", { class: "challenged" });
    line.addEventListener("state", () => this.#drawChallenged());
    this.swap = el("div", { class: "swap", role: "status" });
    this.shadow = el("input", { type: "number", id: "shadow", min: 0, max: 10000, placeholder: "as set", inputmode: "numeric" });
    this.unlike = el("input", { type: "checkbox", id: "allow-unlike" });
    this.file = el("input", { type: "file", id: "upload", accept: ".flaw", "aria-label": "Bundle to upload", onchange: () => this.#upload() });
    this.rollback = twice("Roll back", "Press again: roll back", () => this.#rollBack(), { id: "rollback" });
    this.reason = el("input", { id: "rollback-reason", maxlength: 300, autocomplete: "off", placeholder: NO_REASON });
    this.why = el("label", { class: "shadow why-back" }, "Why roll back, for the audit", this.reason);
    const challenge = el("button", { type: "button", id: "challenge", onclick: () => this.#act("challenge", { view: this.#where.view }) }, "Challenge the one in force");
    this.node = el("section", { class: "card wide", id: "card-bundles", "aria-label": "Bundles" }, el("h2", {}, "Bundles"),
      el("div", { class: "row" }, el("label", { class: "button upload" }, "Upload a bundle", this.file), challenge, this.rollback, this.why,
        el("label", { class: "shadow" }, "Parts that both score before a swap", this.shadow),
        el("label", { class: "shadow" }, "Also if it learned from other images", this.unlike)), this.challenged, this.swap, this.list);
  }

  /** Take station and view; hides itself where the line has no store of bundles. */
  async open(where) {
    this.#where = where;
    const answer = await getIfThere("/api/v1/bundles").catch(() => null);
    this.node.hidden = answer === null;
    if (answer === null) return;
    this.#bundles = answer.bundles;
    this.#drawList();
    this.#drawChallenged();
    await this.#follow();
  }

  /** End following a swap. */
  close() { this.#where = null; }

  #path(what) { return `/api/v1/stations/${encodeURIComponent(this.#where.station)}/${what}`; }

  #drawList() {
    const here = `${this.#where.station}/${this.#where.view}`;
    this.list.replaceChildren(...this.#bundles.map((bundle) => {
      const used = bundle.used_by ?? [];
      const isHere = used.includes(here);
      const facts = [["Digest", el("code", { title: bundle.digest }, bundle.digest.slice(0, 16))], ["Method", bundle.method], ["Category", bundle.category],
        ["Exported", bundle.created ? `${bundle.created.slice(0, 16).replace("T", " ")} UTC` : ""], ["Size", bundle.bytes ? bytes(bundle.bytes) : ""], ["Signed by", bundle.signed_by || "nobody"],
        ["Threshold", thresholds(bundle.thresholds)], ["Precisions", ["fp32", ...(bundle.precisions ?? [])].join(", ")], ["In force at", used.join(", ")], ["Problem", bundle.problem]];
      const act = isHere ? el("span", { class: "word accept" }, "in force here") : bundle.problem ? null
        : twice("Swap in", `Press again: ${here} decides by it`, () => this.#begin(bundle.digest), { class: "swap-in", "data-digest": bundle.digest });
      return el("article", { class: isHere ? "bundle here" : "bundle" }, el("header", { class: "row" }, el("h3", { class: "fill" }, bundle.name || bundle.digest.slice(0, 12)), act),
        el("dl", {}, facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    }));
  }

  /** Show how the last challenge of the view ended, whoever asked for it. */
  #drawChallenged() {
    const station = line.state?.stations.find((one) => one.name === this.#where?.station);
    const last = station?.challenges?.find((one) => one.view === this.#where.view);
    this.challenged.replaceChildren(last ? el("p", { class: last.state === "failed" ? "wrong" : "muted" },
      `Challenge ${last.when} ${last.state}, ${last.utc.slice(0, 16).replace("T", " ")} UTC: ${last.detail}`) : "");
  }

  async #begin(digest) {
    const shadow = this.shadow.value === "" ? null : Number(this.shadow.value);
    try {
      await post(this.#path("swap"), { view: this.#where.view, digest, shadow, allow_unlike: this.unlike.checked });
      this.unlike.checked = false;
      await this.#follow();
    } catch (error) { tell(error.message, true); }
  }

  async #rollBack() {
    const answer = await this.#act("rollback", { reason: this.reason.value.trim() || NO_REASON });
    if (!answer) return;
    this.reason.value = "";
    tell(`${this.#where.station}: ${answer.done}.`);
  }

  /** Ask for something; returns the answer, or undefined where it was refused, which is told. */
  async #act(what, body) {
    try {
      const done = await post(this.#path(what), body);
      await this.#follow();
      const answer = await get("/api/v1/bundles");
      this.#bundles = answer.bundles;
      this.#drawList();
      this.node.dispatchEvent(new Event("changed"));
      return done;
    } catch (error) { tell(error.message, true); }
    return undefined;
  }

  /** Show the swap of the station until it has ended. */
  async #follow() {
    if (this.#isFollowing) return;
    this.#isFollowing = true;
    let wasRunning = false;
    try {
      for (;;) {
        if (!this.#where) return;
        const state = await getIfThere(this.#path("swap"));
        this.#drawSwap(state);
        if (state?.state !== "running") break;
        wasRunning = true;
        await new Promise((go) => setTimeout(go, POLL_MS));
      }
    } catch (error) { tell(error.message, true); } finally { this.#isFollowing = false; }
    if (!wasRunning || !this.#where) return;
    await this.open(this.#where);
    this.node.dispatchEvent(new Event("changed"));
  }

  #drawSwap(state) {
    this.rollback.hidden = state?.state !== "running" && !Object.keys(state?.previous ?? {}).length;
    this.why.hidden = this.rollback.hidden;
    this.swap.hidden = !state || state.state === "idle";
    if (this.swap.hidden) return;
    this.swap.dataset.state = state.state;
    const words = { running: "is on its way", done: "is done", failed: "failed; the old bundle goes on", rolled_back: "was rolled back" }[state.state] ?? state.state;
    const isChallenge = state.steps.length === 1 && state.steps[0].name === "challenge";
    const steps = state.steps.map((step) => {
      const [sign, text] = STATES[step.state] ?? ["?", step.state];
      return el("li", { class: step.state }, el("span", { class: "sign", "aria-hidden": "true" }, sign), el("b", {}, step.name), el("span", {}, step.ms ? ` ${number(step.ms, 3)} ms` : ` ${text}`),
        step.detail ? el("span", { class: "muted detail" }, step.detail) : null);
    });
    this.swap.replaceChildren(el("h3", {}, isChallenge ? `The challenge ${state.state === "failed" ? "failed" : words}` : `Swap to ${(state.digest ?? "").slice(0, 12)} ${words}`),
      state.reason ? el("p", { class: "wrong" }, state.reason) : "", el("ol", { class: "steps" }, steps), disagreements(state.disagreements ?? []));
  }

  async #upload() {
    const [file] = this.file.files;
    if (!file) return;
    tell(`${file.name} is being sent, ${bytes(file.size)}.`);
    try {
      const { digest } = await upload("/api/v1/bundles", file, "application/octet-stream");
      tell(`The line has the bundle ${digest.slice(0, 12)}.`);
      await this.open(this.#where);
    } catch (error) { tell(error.message, true); } finally { this.file.value = ""; }
  }
}

function thresholds(found) {
  if (!found) return "";
  return Object.entries(found).map(([precision, one]) => `${number(one.image)} in ${precision}${one.low === null || one.low === undefined ? ", no limits" : `, allowed ${number(one.low)} to ${number(one.high)}`}`).join("; ");
}

function disagreements(rows) {
  if (!rows.length) return "";
  return el("div", { class: "scroll" }, el("h3", {}, `${rows.length} parts on which the two differ`), el("table", {}, el("thead", {}, el("tr", {}, ["Part", "Old", "New"].map((name) => el("th", {}, name)))),
    el("tbody", {}, rows.slice(0, MOST_ROWS).map((row) => el("tr", {}, el("td", {}, el("button", { type: "button", onclick: () => openPart(row.seq) }, String(row.seq))),
      [row.old, row.new].map((one) => el("td", {}, word(one.verdict), ` ${number(one.score)} of ${number(one.threshold)}`)))))));
}

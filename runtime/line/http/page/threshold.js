// What another threshold would have said of the last parts, at once under the slider, and setting it with a reason.

import { get, getIfThere, path, post } from "./api.js";
import { el, tell, word } from "./dom.js";
import { count, number, percent } from "./format.js";
import { histogram, range } from "./histogram.js";
import { openPart } from "./part.js";

const LAST = 1000;
const SETTLE_MS = 150;
const MOST_ROWS = 12;

export class ThresholdCard {
  #where = null; // { station, view, start }
  #known = null; // answer of the line
  #between = [0, 1];
  #timer = 0;
  #asked = 0;

  constructor() {
    this.chart = el("div", {});
    this.slider = el("input", { type: "range", id: "what-if", "aria-label": "Threshold to try", oninput: () => this.#set(Number(Number(this.slider.value).toPrecision(4))) });
    this.exact = el("input", { type: "number", id: "what-if-exact", step: "any", "aria-label": "Threshold to try, as a number", onchange: () => this.#set(Number(this.exact.value)) });
    this.outcome = el("p", { class: "outcome", id: "what-if-outcome", role: "status" });
    this.changed = el("div", { class: "changed" });
    this.reason = el("input", { id: "threshold-reason", maxlength: 300, autocomplete: "off", oninput: () => this.#judge() });
    this.button = el("button", { class: "go", id: "threshold-set" }, "Set this threshold");
    this.limits = el("p", { class: "small muted" });
    const back = el("button", { type: "button", onclick: () => this.#set(this.#known.threshold) }, "Back to the one in force");
    const form = el("form", { class: "threshold-form", onsubmit: (event) => { event.preventDefault(); this.#send(); } },
      el("label", {}, "Threshold", this.exact), back, el("label", { class: "fill" }, "Reason, for the audit", this.reason), this.button);
    this.node = el("section", { class: "card wide", id: "card-threshold", "aria-label": "Threshold" }, el("h2", {}, "Scores and threshold"), this.chart,
      this.slider, this.outcome, this.limits, form, this.changed);
  }

  /** Take station and view; hides itself where the line cannot say. */
  async open(where) {
    this.#where = where;
    this.#known = await getIfThere(this.#path(where.start ?? 0)).catch(() => null);
    const isThere = this.#known !== null && this.#known.threshold !== null;
    this.node.hidden = !isThere;
    if (!isThere) return;
    const { scores, threshold, limits } = this.#known;
    this.#between = range(scores, [threshold, limits?.low, limits?.high].filter((one) => one !== null && one !== undefined));
    const [low, high] = this.#between;
    Object.assign(this.slider, { min: String(low), max: String(high), step: String((high - low) / 1000) });
    this.limits.textContent = limits ? `The bundle allows ${number(limits.low)} to ${number(limits.high)}.` : "The bundle states no limits: its threshold cannot be changed here.";
    this.#set(threshold);
  }

  #path(image) {
    const { station, view } = this.#where;
    return path(`/api/v1/stations/${encodeURIComponent(station)}/what-if`, { view, image, last: LAST });
  }

  /** Judge the scores anew at once; what has changed is asked of the line when the hand rests. */
  #set(value) {
    if (!Number.isFinite(value) || !this.#known) return;
    this.value = value;
    this.slider.value = String(value);
    this.exact.value = number(value, 6);
    this.#draw();
    this.#judge();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), SETTLE_MS);
  }

  #draw() {
    const { scores, threshold, limits } = this.#known;
    const rejects = scores.filter((score) => score > this.value).length;
    const before = scores.filter((score) => score > threshold).length;
    const shades = limits ? [[this.#between[0], limits.low], [limits.high, this.#between[1]]] : [];
    this.chart.replaceChildren(histogram({ within: this.chart, values: scores, between: this.#between, shades,
      classOf: (middle) => (middle > this.value ? "bar reject" : "bar accept"),
      lines: [{ at: threshold, text: "in force", class: "now" }, { at: this.value, text: number(this.value), class: "tried" }],
      label: `Scores of the last ${scores.length} parts; ${rejects} above ${number(this.value)}` }));
    const more = rejects - before;
    this.outcome.replaceChildren(`Of the last ${count(scores.length)} parts: `, el("b", {}, `${count(scores.length - rejects)} accept, ${count(rejects)} reject`),
      ` (${percent(rejects, scores.length)})`, more === 0 ? ", as many as now" : `, ${count(Math.abs(more))} ${more > 0 ? "more" : "fewer"} rejects than now`);
  }

  async #ask() {
    const asked = ++this.#asked;
    let answer = null;
    try { answer = await get(this.#path(this.value)); } catch { return; }
    if (asked !== this.#asked) return;
    const rows = answer.changed.slice(0, MOST_ROWS).map((row) => el("li", {}, el("button", { type: "button", onclick: () => openPart(row.seq) },
      `part ${row.seq}`), ` score ${number(row.score)}: `, word(row.verdict), " would be ", word(row.would_be)));
    const more = answer.changed.length - rows.length;
    this.changed.replaceChildren(...(answer.changed.length ? [el("h3", {}, `${count(answer.changed.length)} would be decided otherwise than they were`), el("ul", {}, rows),
      more > 0 ? el("p", { class: "muted" }, `and ${count(more)} more`) : ""] : []));
  }

  #judge() {
    const { threshold, limits } = this.#known;
    const isAllowed = limits && this.value >= limits.low && this.value <= limits.high;
    const why = !isAllowed ? "outside of the bundle's limits" : this.value === threshold ? "this one is in force" : this.reason.value.trim() ? "" : "say why first";
    this.button.disabled = why !== "";
    this.button.title = why;
    this.button.textContent = why ? `Set this threshold: ${why}` : `Set ${number(this.value)}`;
  }

  async #send() {
    const { station, view } = this.#where;
    const name = view ? `${station}/${view}` : station;
    try {
      await post(`/api/v1/stations/${encodeURIComponent(station)}/threshold`, { view, image: this.value, reason: this.reason.value.trim() });
      tell(`The threshold of ${name} is ${number(this.value)} from the next part on.`);
      this.reason.value = "";
      await this.open({ ...this.#where, start: this.value });
      this.node.dispatchEvent(new Event("set"));
    } catch (error) { tell(error.message, true); }
  }
}

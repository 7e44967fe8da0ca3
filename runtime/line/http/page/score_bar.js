// A score against its threshold, as a bar.

import { el, say } from "./dom.js";
import { number } from "./format.js";

/** Scores that a bar shows: the threshold stands at three fifths of it. */
function range(threshold, scores) {
  if (threshold > 0) return [0, threshold / 0.6];
  const reach = Math.max(1e-9, ...scores.map((score) => Math.abs(score - threshold)));
  return [threshold - reach, threshold + reach * (0.4 / 0.6)];
}

export class ScoreBar {
  constructor() {
    this.fill = el("span", { class: "fill-bar" });
    this.tick = el("span", { class: "tick" });
    this.text = el("p", { class: "text" });
    this.track = el("div", { class: "track", "aria-hidden": "true" }, this.fill, this.tick);
    this.node = el("div", { class: "score" }, this.text, this.track);
  }

  /** Show a record's score; `scores` are recent ones, from which a range is taken where the threshold gives none. */
  show(record, scores) {
    const { score, threshold } = record;
    if (score === null || threshold === null || score === undefined) {
      say(this.text, "not scored");
      this.track.hidden = true;
      return;
    }
    const [low, high] = range(threshold, scores);
    const place = (value) => `${Math.min(100, Math.max(0, (100 * (value - low)) / (high - low)))}%`;
    this.track.hidden = false;
    this.fill.style.width = place(score);
    this.tick.style.left = place(threshold);
    this.fill.className = `fill-bar ${record.verdict}`;
    this.fill.classList.toggle("beyond", score > high);
    this.text.replaceChildren("score ", el("b", {}, number(score)), el("span", { class: "muted" }, ` · threshold ${number(threshold)}`));
  }
}

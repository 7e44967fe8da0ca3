// Times from the trigger to the verdict, of the last parts.

import { getIfThere, path } from "./api.js";
import { el } from "./dom.js";
import { count, number } from "./format.js";
import { histogram, quantile, range } from "./histogram.js";

const LAST = 500;

export class LatencyCard {
  constructor() {
    this.body = el("div", {});
    this.node = el("section", { class: "card", id: "card-latency", "aria-label": "Latency" }, el("h2", {}, "Trigger to verdict"), this.body);
  }

  /** Take the station. */
  async open({ station, late }) {
    const answer = await getIfThere(path("/api/v1/parts", { station, order: "newest", limit: LAST })).catch(() => null);
    const times = (answer?.parts ?? []).map((part) => part.latency_ms.verdict).filter((value) => value !== undefined);
    this.node.hidden = times.length === 0;
    if (!times.length) return;
    const [p50, p99] = [quantile(times, 0.5), quantile(times, 0.99)];
    const between = [0, range(times)[1]];
    this.body.replaceChildren(histogram({ within: this.body, values: times, between, unit: " ms", label: `Latency of the last ${times.length} parts: median ${number(p50, 3)} ms, 99 % below ${number(p99, 3)} ms`,
      lines: [{ at: p50, text: "p50", class: "now" }, { at: p99, text: "p99", class: "tried" }] }),
    el("dl", {}, [["Median", `${number(p50, 3)} ms`], ["99 % below", `${number(p99, 3)} ms`], ["Largest", `${number(Math.max(...times), 3)} ms`],
      ["Parts", count(times.length)], ["Late since the start", count(late)]].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  }
}

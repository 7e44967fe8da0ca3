// Whether the machine and the line are well: disk, memory, sinks, drift, self-test.

import { getIfThere } from "./api.js";
import { el, mark } from "./dom.js";
import { bytes, count, number } from "./format.js";
import { line } from "./line.js";

export class HealthCard {
  constructor() {
    this.body = el("div", { class: "health" });
    this.node = el("section", { class: "card", id: "card-health", "aria-label": "Health" }, el("h2", {}, "Health"), this.body);
  }

  /** Load and show it; what the line does not tell is left out. */
  async open() {
    const health = (await getIfThere("/api/v1/health").catch(() => null)) ?? {};
    const { state } = line;
    const rows = [
      row(state.account_holds, "Account", state.account_holds ? "parts = accept + reject + fault + open" : "wrong: tell whoever keeps the line"),
      row(!state.journal, "Journal", state.journal || "written"),
      ...Object.entries(health).filter(([name]) => !["sinks", "latency", "drift"].includes(name)).flatMap(([name, value]) => rowsOf(name, value)),
      ...state.sinks.map((sink) => row(!sink.last_error, `Sink ${sink.name}`, `${count(sink.sent)} sent, ${count(sink.behind)} behind${sink.last_error ? `: ${sink.last_error}` : ""}`)),
      ...(state.drift ?? health.drift ?? []).map(driftRow),
    ];
    this.body.replaceChildren(el("ul", { class: "checks" }, rows));
  }
}

function row(isWell, name, text) {
  return el("li", {}, mark(isWell ? "accept" : "fault"), el("b", {}, name), el("span", {}, text));
}

function driftRow(view) {
  const name = `Drift ${view.station}/${view.view}`;
  if (view.state === "learning") return row(true, name, `learning, ${count(view.learned ?? 0)} of ${count(view.reference ?? 0)}`);
  const drifting = (view.quantities ?? []).filter((one) => one.is_drifting).map((one) => `${one.name}: mean ${number(one.mean_before)} before, ${number(one.mean_now)} now`);
  return row(view.state !== "drift", name, drifting.join("; ") || (view.state === "drift" ? "drifting" : "as at first"));
}

/** Rows of what a room says of itself: `ok`, `problem`, `state` or `warning` tell whether it is well. */
function rowsOf(name, value) {
  if (Array.isArray(value)) return value.flatMap((one) => rowsOf(`${name} ${[one?.station, one?.view].filter(Boolean).join("/")}`.trim(), one));
  if (value === null || value === undefined || value === "") return [];
  const title = name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
  if (typeof value !== "object") return [row(value !== false, title, String(value))];
  const isWell = value.ok !== false && !value.problem && !value.warning && !["error", "fault", "degraded", "stop", "failed", "prune"].includes(value.state);
  const texts = Object.entries(value).filter(([key, one]) => !["station", "view", "ok"].includes(key) && one !== null && one !== "" && typeof one !== "object").map(([key, one]) => words(key, one));
  return [row(isWell, title, texts.join(", ") || (isWell ? "well" : "not well"))];
}

function words(key, value) {
  if (key.endsWith("_bytes")) return `${bytes(value)} ${key.slice(0, -6).replaceAll("_", " ")}`;
  if (key.endsWith("_s")) return `${number(value, 3)} s ${key.slice(0, -2).replaceAll("_", " ")}`;
  if (["state", "problem", "warning", "reason"].includes(key)) return String(value);
  return `${key.replaceAll("_", " ")} ${typeof value === "number" ? number(value) : value}`;
}

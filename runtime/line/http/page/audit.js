// Who did what: the events of the journal, and whether its chain is whole.

import { get, getIfThere, path } from "./api.js";
import { el, tell } from "./dom.js";
import { count, dayAndClock } from "./format.js";

const PAGE = 50;

export class AuditCard {
  #before = null;

  constructor() {
    this.rows = el("tbody", {});
    this.more = el("button", { type: "button", onclick: () => this.#load() }, "Older");
    this.verifyButton = el("button", { type: "button", id: "verify", onclick: () => this.#verify() }, "Verify the whole journal");
    this.verdict = el("p", { id: "verified", role: "status" });
    this.node = el("section", { class: "card wide", id: "card-audit", "aria-label": "Audit" },
      el("div", { class: "row" }, el("h2", { class: "fill" }, "Audit"), this.verifyButton), this.verdict,
      el("div", { class: "scroll audit" }, el("table", {}, el("thead", {}, el("tr", {}, ["When", "Who", "What", "Of", "Before → now", "Why"].map((name) => el("th", { scope: "col" }, name)))), this.rows)),
      el("p", { class: "row" }, this.more));
  }

  /** Load the newest events; hides itself where the line does not offer them. */
  async open() {
    this.#before = null;
    this.rows.replaceChildren();
    await this.#load();
  }

  async #load() {
    const answer = await getIfThere(path("/api/v1/audit", { order: "newest", before: this.#before, limit: PAGE })).catch(() => null);
    this.node.hidden = answer === null;
    if (answer === null) return;
    this.rows.append(...answer.events.map((event) => el("tr", {}, el("td", { class: "when" }, dayAndClock(event.utc)), el("td", {}, event.role ? `${event.actor} (${event.role})` : event.actor),
      el("td", {}, event.action.replaceAll("_", " ")), el("td", {}, short(event.object)), el("td", {}, [event.old, event.new].filter(Boolean).map(short).join(" → ")), el("td", {}, event.reason))));
    this.#before = answer.events.at(-1)?.link ?? this.#before;
    this.more.hidden = answer.events.length < PAGE;
  }

  async #verify() {
    this.verifyButton.disabled = true;
    this.verdict.className = "";
    this.verdict.textContent = "Verifying; the line goes on meanwhile.";
    try {
      const found = await get("/api/v1/audit/verify", 660000);
      this.verdict.className = found.is_whole === true ? "whole" : "wrong";
      const what = found.is_whole === true ? `The chain is whole: ${count(found.parts)} parts, ${count(found.events)} events, ${count(found.signed)} signed heads.`
        : `The journal is not whole, from entry ${found.wrong_link}: ${found.wrong}.`;
      this.verdict.textContent = [what, ...found.notes.map((note) => `Note: ${note}.`)].join(" ");
    } catch (error) {
      this.verdict.textContent = "";
      tell(error.message, true);
    } finally { this.verifyButton.disabled = false; }
  }
}

/** Digests are cut, other texts are bounded, and an object of JSON becomes `key value` without what is empty. */
function short(text) {
  if (text.startsWith("{")) {
    try { return short(Object.entries(JSON.parse(text)).filter(([, value]) => value !== "").map(([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ")); } catch { /* as it is */ }
  }
  const cut = text.replace(/\b[0-9a-f]{64}\b/g, (digest) => `${digest.slice(0, 12)}…`);
  return cut.length > 160 ? `${cut.slice(0, 160)}…` : cut;
}

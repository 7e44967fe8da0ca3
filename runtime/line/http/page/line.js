// The line as the page knows it: asked again after each `new` of the stream, and every two seconds in any case.
//
// Events: `state` after each answer, `parts` (detail: name of the station) when it has newer ones, `link` when the
// connection is lost or found again.

import { get } from "./api.js";
import { setZone } from "./format.js";

const POLL_MS = 2000;
const PAUSE_MS = 200;
const LOST_MS = 5000;
export const LAST = 20;

class Line extends EventTarget {
  state = null;
  parts = new Map(); // station -> its last parts, the newest first
  isLost = false;
  lostSince = null;
  canStream = true;
  #seen = new Map(); // station -> counts at which its parts were asked for
  #again = new Set(); // records follow a reject after its verdict: ask once more
  #answered = performance.now();
  #failures = 0;
  #isAsking = false;
  #isWanted = false;
  #stream = null;
  #timers = [];

  /** Begin to follow the line. */
  start() {
    if (this.#timers.length) return;
    this.#answered = performance.now();
    this.#open();
    this.#timers = [setInterval(() => this.refresh(), POLL_MS), setInterval(() => this.#check(), 500)];
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    this.refresh();
  }

  /** End, as when nobody is signed in. */
  stop() {
    this.#timers.forEach(clearInterval);
    this.#timers = [];
    this.#stream?.close();
  }

  /** Ask the line; calls while it is asked become one. */
  async refresh() {
    this.#isWanted = true;
    if (this.#isAsking || !this.#timers.length) return;
    this.#isAsking = true;
    while (this.#isWanted && this.#timers.length) {
      this.#isWanted = false;
      try {
        await this.#ask();
        if (this.#again.size) { setTimeout(() => this.refresh(), 300); }
      } catch (error) {
        if (error.status === undefined) console.error(error);
        // Refused twice, or once while the stream is gone, too: nobody is there.
        this.#failures += 1;
        if (error.status === 0 && (this.#failures > 1 || !this.canStream)) this.#lose();
      }
      await new Promise((go) => setTimeout(go, PAUSE_MS));
    }
    this.#isAsking = false;
  }

  async #ask() {
    const state = await get("/api/v1/state", 4000);
    state.askedAt = performance.now();
    this.state = state;
    setZone(state.timezone ?? "UTC");
    this.#find();
    this.dispatchEvent(new Event("state"));
    for (const station of state.stations) {
      const counts = `${state.pid} ${station.accept} ${station.reject} ${station.fault}`;
      const isNew = this.#seen.get(station.name) !== counts;
      if (!isNew && !this.#again.has(station.name)) continue;
      const name = encodeURIComponent(station.name);
      const { parts } = await get(`/api/v1/parts?station=${name}&order=newest&limit=${LAST}`, 4000);
      this.#seen.set(station.name, counts);
      if (isNew) this.#again.add(station.name); else this.#again.delete(station.name);
      this.parts.set(station.name, parts);
      this.#find();
      this.dispatchEvent(new CustomEvent("parts", { detail: station.name }));
    }
  }

  /** Seconds since a part was triggered, by the line's own clock that does not jump; null where nobody can know. */
  age(part) {
    const state = this.state;
    if (!state) return null;
    const since = (performance.now() - state.askedAt) / 1000;
    if (state.boot_id && state.boot_id === part.boot_id) return (state.mono_ns - part.mono_ns) / 1e9 + since;
    return (Date.parse(state.utc) - Date.parse(part.utc)) / 1000 + since;
  }

  /** The time of the line now, in milliseconds. */
  now() {
    return this.state ? Date.parse(this.state.utc) + performance.now() - this.state.askedAt : Date.now();
  }

  #open() {
    this.#stream = new EventSource("/api/v1/events");
    this.#stream.onmessage = () => this.refresh();
    this.#stream.onopen = () => { this.canStream = true; this.refresh(); };
    this.#stream.onerror = () => {
      this.canStream = false;
      // Refused, as with too many watchers: the browser gives up, and the page polls.
      if (this.#stream.readyState === EventSource.CLOSED && this.#timers.length) setTimeout(() => this.#open(), 10000);
    };
  }

  #find() {
    this.#answered = performance.now();
    this.#failures = 0;
    if (!this.isLost) return;
    this.isLost = false;
    this.lostSince = null;
    this.dispatchEvent(new Event("link"));
  }

  #check() {
    if (performance.now() - this.#answered > LOST_MS) this.#lose();
  }

  #lose() {
    if (this.isLost) return;
    this.isLost = true;
    this.lostSince = this.now();
    this.dispatchEvent(new Event("link"));
  }
}

export const line = new Line();

// An image on the page. It is drawn on a canvas from bytes that were fetched, so that it changes at once and as a whole,
// and there is never more than one request of a pane under way.

import { getImage } from "./api.js";
import { el, say } from "./dom.js";

const TRIES_MS = [0, 120, 300, 700];

export class Pane {
  seq = null; // part that is shown
  drawnAt = 0; // when it was drawn, by the page's clock
  #wanted = null;
  #isBusy = false;

  /** `name` is what the image shows, for those who do not see it. */
  constructor(name) {
    this.name = name;
    this.canvas = el("canvas", { role: "img", "aria-label": `${name}: no image`, width: 1, height: 1 });
    this.empty = el("p", { class: "empty" }, "No image yet");
    this.says = el("p", { class: "says" });
    this.node = el("div", { class: "pane" }, this.canvas, this.empty, this.says);
    this.says.hidden = true;
  }

  /**
   * Show the first image that is there of some paths.
   * `seq` is its part, `label` what stands below it, `gone` what is said if there is none.
   */
  show({ paths, seq, label, gone, tries = TRIES_MS.length }) {
    const key = paths.join(" ");
    if (this.#wanted?.key === key && !this.#wanted.isGone) return;
    this.#wanted = { key, paths, seq, label, gone, tries };
    if (!this.#isBusy) this.#work();
  }

  /** Show nothing, and say why. */
  clear(text) {
    this.#wanted = null;
    this.#none(text);
  }

  /** Mark the image as old, with these words over it; empty: as current. */
  age(text) {
    this.node.classList.toggle("old", text !== "");
    if (text) this.node.dataset.old = text; else delete this.node.dataset.old;
  }

  async #work() {
    this.#isBusy = true;
    let done = null;
    while (this.#wanted && this.#wanted !== done) {
      const wanted = this.#wanted;
      try {
        await this.#fetch(wanted);
      } catch (error) {
        if (this.#wanted === wanted) { wanted.isGone = true; if (this.seq !== wanted.seq) this.#none(error.message); }
      }
      done = wanted;
    }
    this.#isBusy = false;
  }

  async #fetch(wanted) {
    // What is kept of a part comes a moment after its verdict.
    for (const pause of TRIES_MS.slice(0, wanted.tries)) {
      if (pause) await new Promise((go) => setTimeout(go, pause));
      for (const path of wanted.paths) {
        if (this.#wanted !== wanted) return;
        const found = await getImage(path);
        if (found === null) continue;
        // Also when a newer one is wanted already: on a slow network there would never be any.
        if (this.#wanted) this.#draw(found.bitmap, wanted);
        found.bitmap.close();
        return;
      }
    }
    if (this.#wanted === wanted) { wanted.isGone = true; this.#none(wanted.gone); }
  }

  #draw(bitmap, wanted) {
    this.canvas.width = bitmap.width;
    this.canvas.height = bitmap.height;
    this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.canvas.setAttribute("aria-label", `${this.name}: ${wanted.label}`);
    this.canvas.dataset.key = wanted.key;
    this.seq = wanted.seq;
    this.drawnAt = performance.now();
    this.empty.hidden = true;
    this.says.hidden = false;
    say(this.says, wanted.label);
  }

  #none(text) {
    this.seq = null;
    this.canvas.width = this.canvas.height = 1;
    this.canvas.setAttribute("aria-label", `${this.name}: ${text}`);
    delete this.canvas.dataset.key;
    this.empty.hidden = false;
    this.says.hidden = true;
    say(this.empty, text);
  }
}

/** Path of an image from memory. */
export function livePath(station, view, seq, isMap) {
  return `/stations/${encodeURIComponent(station)}/live.jpg?view=${encodeURIComponent(view)}&map=${isMap ? 1 : 0}&seq=${seq}`;
}

/** Path of a stored image. */
export function storedPath(seq, view, isMap) {
  return `/api/v1/parts/${seq}/${encodeURIComponent(view)}${isMap ? "-map" : ""}.png`;
}

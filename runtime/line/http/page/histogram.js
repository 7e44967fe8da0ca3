// Histograms as SVG.

import { el, svg } from "./dom.js";
import { number } from "./format.js";

const FOOT = 24;
const HEAD = 34;

/** Edges of bins that hold all values, and the values in `holds` besides. */
export function range(values, holds = []) {
  const all = [...values, ...holds].filter(Number.isFinite);
  if (!all.length) return [0, 1];
  const low = Math.min(...all);
  const high = Math.max(...all);
  const margin = (high - low || Math.abs(high) || 1) * 0.04;
  return [low - margin, high + margin];
}

/** Counts of values in equal bins. */
export function bins(values, [low, high], how = 48) {
  const counts = new Array(how).fill(0);
  for (const value of values) {
    const place = Math.floor((how * (value - low)) / (high - low));
    counts[Math.max(0, Math.min(how - 1, place))] += 1;
  }
  return counts;
}

/**
 * Draw a histogram as wide as `within` is. `classOf` gives the class of a bin from its middle, `lines` are `{at, text, class}`, `shades` are
 * `[from, to]` that are crossed out. Counts stand on a square-root scale: one reject among thousands must be seen.
 */
export function histogram({ within, values, between, classOf = () => "bar", lines = [], shades = [], label, unit = "" }) {
  const WIDTH = Math.max(260, within.clientWidth || 640);
  const HEIGHT = WIDTH > 800 ? 290 : 200;
  const counts = bins(values, between, WIDTH < 400 ? 32 : 48);
  const top = Math.sqrt(Math.max(1, ...counts));
  const [low, high] = between;
  const x = (value) => (WIDTH * (Math.max(low, Math.min(high, value)) - low)) / (high - low);
  const floor = HEIGHT - FOOT;
  const step = WIDTH / counts.length;
  const bars = counts.map((count, place) => {
    if (!count) return null;
    const height = Math.max(2, ((floor - HEAD) * Math.sqrt(count)) / top);
    const middle = low + ((place + 0.5) * (high - low)) / counts.length;
    return svg("rect", { class: classOf(middle), x: place * step + 1, y: floor - height, width: step - 2, height },
      svg("title", {}, `${count} at ${number(middle, 3)}${unit}`));
  });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => svg("text", { class: "tick-text", x: WIDTH * share, y: HEIGHT - 6,
    "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, `${number(low + share * (high - low), 3)}${unit}`));
  const drawn = svg("svg", { class: "histogram", width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    shades.map(([from, to]) => svg("rect", { class: "shade", x: x(from), y: HEAD, width: Math.max(0, x(to) - x(from)), height: floor - HEAD })),
    bars, svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: floor, y2: floor }), ticks,
    lines.map(({ at, class: kind }) => svg("line", { class: `mark-line ${kind}`, x1: x(at), x2: x(at), y1: kind === "now" ? 31 : 15, y2: floor })),
    lines.map(({ at, text, class: kind }) => svg("text", { class: `mark-text ${kind}`, x: x(at), y: kind === "now" ? 28 : 12, "text-anchor": x(at) > WIDTH * 0.8 ? "end" : x(at) < WIDTH * 0.2 ? "start" : "middle" }, text)));
  return el("div", { class: "chart" }, drawn);
}

/** The value below which a share of the values lies. */
export function quantile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

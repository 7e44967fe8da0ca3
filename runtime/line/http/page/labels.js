// Labels of people for parts: each is a new row, and nothing that was said before is changed.

import { getIfThere, post } from "./api.js";
import { el, mark } from "./dom.js";
import { dayAndClock } from "./format.js";
import { keep, recall } from "./store.js";

const MOST_TYPES = 9;

/** Verdict whose shape stands for a label. */
export const SHAPE_OF = { normal: "accept", anomalous: "reject", unsure: "unknown" };

/** Defect types that were used last, at most nine. */
export const lastTypes = () => recall("types", []);

/** Say that a type was used. */
export function useType(type) {
  if (type) keep("types", [...lastTypes().filter((one) => one !== type), type].slice(-MOST_TYPES));
}

/** Record a label of a part. */
export async function label(seq, { label: what, type = "", note = "", view = "" }) {
  const body = { label: what, type, note };
  if (view) body.view = view;
  await post(`/api/v1/parts/${seq}/review`, body);
}

/** Rows of labels of a part, the newest first; null where the line keeps none. */
export async function labelsOf(seq) {
  const answer = await getIfThere(`/api/v1/parts/${seq}/reviews`);
  return answer === null ? null : [...(answer.reviews ?? [])].reverse();
}

/** A list of the labels of a part. */
export function labelList(reviews) {
  if (!reviews?.length) return el("p", { class: "muted" }, "No label yet.");
  return el("ul", { class: "labels" }, reviews.map((row) => el("li", {}, mark(SHAPE_OF[row.label] ?? "unknown"),
    el("span", {}, el("b", {}, row.type ? `${row.label}: ${row.type}` : row.label),
      ` by ${row.actor}, ${dayAndClock(row.utc)}${row.note ? ` – ${row.note}` : ""}`))));
}

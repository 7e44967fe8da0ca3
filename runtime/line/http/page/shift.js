// Counters since the shift began: a station counts since the start of the line, and what it had then is taken off.

import { getIfThere, post } from "./api.js";
import { clock } from "./format.js";

let shift = null;

/** Ask the line when the shift began. */
export async function loadShift() {
  shift = await getIfThere("/api/v1/shift");
}

/** Whether the line keeps shifts. */
export const hasShifts = () => shift !== null;

/** Begin a shift: all pages count from now. */
export async function beginShift() {
  shift = await post("/api/v1/shift");
}

/** Return the counts of a station since the shift began, since when, and why then. */
export function sinceShift(station) {
  const before = shift?.before?.[station.name] ?? { accept: 0, reject: 0, fault: 0 };
  const counts = {};
  for (const verdict of ["accept", "reject", "fault"]) counts[verdict] = Math.max(0, station[verdict] - before[verdict]);
  if (!shift) return { counts, since: "the line started", why: "" };
  return { counts, since: clock(shift.utc), why: shift.is_start ? "The line started then." : `${shift.actor} began the shift then.` };
}

// Numbers and times in words; times are those of the line's time zone.

let zone = "UTC";

/** Set the time zone of the line; one that the browser does not know is UTC. */
export function setZone(name) {
  try { new Intl.DateTimeFormat("en", { timeZone: name }); zone = name; } catch { zone = "UTC"; }
}

const parts = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

/** `14:03:59` of a date or an ISO text. */
export function clock(when) {
  return new Intl.DateTimeFormat("en-GB", { ...parts, timeZone: zone }).format(new Date(when));
}

/** `2026-11-30 14:03:59`. */
export function dayAndClock(when) {
  return new Intl.DateTimeFormat("sv-SE", { ...parts, year: "numeric", month: "2-digit", day: "2-digit", timeZone: zone }).format(new Date(when));
}

/** Name of the zone, as `CET`. */
export function zoneName() {
  const found = new Intl.DateTimeFormat("en-GB", { timeZone: zone, timeZoneName: "short" }).formatToParts(new Date());
  return found.find((part) => part.type === "timeZoneName")?.value ?? zone;
}

/** A time that has passed, in words. */
export function ago(seconds) {
  const s = Math.max(0, seconds);
  if (s < 1.5) return "now";
  if (s < 90) return `${Math.round(s)} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  return s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

/** A number with four digits; a dash for none. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return Math.abs(value) >= 10 ** digits ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}

/** A whole number with its thousands apart. */
export const count = (value) => new Intl.NumberFormat("en").format(value).replaceAll(",", "\u202f");

/** A share in percent. */
export function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  return `${share < 10 ? share.toFixed(1) : share.toFixed(0)} %`;
}

/** Bytes in the unit that fits. */
export function bytes(value) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${number(value, 3)} ${unit}`;
    value /= 1024;
  }
  return `${number(value, 3)} TiB`;
}

/** Reasons of faults in words. */
export const REASONS = {
  overrun: "too many parts at once", deadline: "no verdict in time", missing_view: "no image came",
  lost_frame: "the camera's image was lost", unexpected_image: "image without a trigger",
  incomplete_image: "parts of the image are missing", unreadable_image: "image is broken or has a wrong size",
  unlike_images: "unlike the images it learned from", scene: "too dark, too bright or blurred",
  frozen: "same image as before", inference: "could not be scored", not_ready: "station was not ready",
  record: "could not be recorded", interrupted: "the line ended before", stopped: "the line was being stopped",
};

/** A fault's reason in words, with its detail. */
export function reasonOf(record) {
  if (!record.reason) return "";
  const words = REASONS[record.reason] ?? record.reason;
  return record.detail ? `${words}: ${record.detail}` : words;
}

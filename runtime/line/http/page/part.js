// One part in a dialog: its images, what was found in each view, and what people said of it.

import { get } from "./api.js";
import { el, openDialog, tell, word } from "./dom.js";
import { dayAndClock, number, reasonOf, zoneName } from "./format.js";
import { label, labelList, labelsOf, lastTypes, useType } from "./labels.js";
import { may } from "./me.js";
import { Pane, livePath, storedPath } from "./pane.js";
import { recall } from "./store.js";

/** Paths by which an image of a part may be had: the stored one, then the one in memory. */
export function pathsOf(part, view, isMap) {
  const stored = view.image ? [storedPath(part.seq, view.view, isMap)] : [];
  return [...stored, livePath(part.station, view.view, part.seq, isMap)];
}

/** Show an image of a part in a pane. */
export function showImage(pane, part, view, isMap) {
  if (!view) { pane.clear(part.reason ? `No image: ${reasonOf(part)}` : "This part has no image"); return; }
  pane.show({ paths: pathsOf(part, view, isMap), seq: part.seq, label: `part ${part.seq} · ${view.view}${isMap ? " · map" : ""}`,
    gone: `The image of part ${part.seq} was not kept`, tries: 1 });
}

/** Facts of a part, as a list of terms. */
export function facts(part, view) {
  const rows = [
    ["Station", part.station], ["Part id", part.part_id || "–"], ["Triggered", `${dayAndClock(part.utc)} ${zoneName()}`],
    ["Score", number(view?.score ?? part.score)], ["Threshold", thresholdOf(view ?? part)],
    ["Why", reasonOf(view?.reason ? view : part) || "–"], ["Latency", latency(part)], ["Bundle", view?.bundle ? view.bundle.slice(0, 12) : "–"],
    ["Generation", String(part.generation)], ["Notes", view?.notes?.length ? view.notes.join("; ") : "–"],
  ];
  return el("dl", { class: "facts" }, rows.filter(([, value]) => value !== "–").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function thresholdOf(record) {
  if (record.threshold === null) return "–";
  return `${number(record.threshold)}${record.threshold_revision ? `, revision ${record.threshold_revision}` : ""}`;
}

function latency(part) {
  const { verdict } = part.latency_ms;
  return verdict === undefined ? "–" : `${number(verdict, 3)} ms to the verdict`;
}

/** Open a part, with its anomaly map or without. */
export async function openPart(seq, withMap = recall("map", false)) {
  let part;
  try { part = await get(`/api/v1/parts/${seq}`); } catch (error) { tell(error.message, true); return; }
  let isMap = withMap;
  let view = part.views.find((one) => one.verdict === part.verdict) ?? part.views[0];
  const pane = new Pane(`Part ${seq}`);
  const said = el("div", {});
  const about = el("div", {});
  const map = el("button", { type: "button", "aria-pressed": String(isMap), onclick: () => { isMap = !isMap; draw(); } }, "Map");
  const views = el("div", { class: "row" });
  const draw = () => {
    map.setAttribute("aria-pressed", String(isMap));
    views.replaceChildren(...(part.views.length < 2 ? [] : part.views.map((one) => el("button", { type: "button",
      "aria-pressed": String(one === view), onclick: () => { view = one; draw(); } }, one.view))));
    about.replaceChildren(facts(part, view));
    showImage(pane, part, view, isMap);
  };
  const loadLabels = async () => {
    const rows = await labelsOf(seq).catch(() => null);
    said.replaceChildren(...(rows === null ? [] : [el("h3", {}, "Labels"), labelList(rows), ...(may("operator") ? [buttons(seq, loadLabels)] : [])]));
  };
  openDialog(`Part ${seq}`, el("div", { class: "part" }, pane.node,
    el("div", { class: "about" }, el("div", { class: "row" }, word(part.verdict), map, views), about, said)));
  draw();
  loadLabels();
}

function buttons(seq, then) {
  const type = el("input", { name: "type", list: "types", placeholder: "defect type", "aria-label": "Defect type", maxlength: 40, autocomplete: "off" });
  const list = el("datalist", { id: "types" }, lastTypes().map((one) => el("option", { value: one })));
  const send = async (what) => {
    const named = what === "anomalous" ? type.value.trim() : "";
    try {
      await label(seq, { label: what, type: named });
      useType(named);
      tell(`Part ${seq}: ${what}.`);
      await then();
    } catch (error) { tell(error.message, true); }
  };
  return el("div", { class: "row" }, el("button", { type: "button", onclick: () => send("normal") }, "Normal"),
    el("button", { type: "button", onclick: () => send("anomalous") }, "Anomalous"), type, list,
    el("button", { type: "button", onclick: () => send("unsure") }, "Unsure"));
}

// Elements of the page. Text is only ever set as text: names and part ids come from strangers.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: `on…` are listeners, `class` and attributes are set as they are, false and null are left out. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return the element with this id. */
export const byId = (id) => document.getElementById(id);

/** Set the text of an element if it differs: a screen reader must not read again what has not changed. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const SHAPES = {
  accept: ["M16 2a14 14 0 1 0 0 28a14 14 0 0 0 0-28z", "M9 16.5l5 5l9.5-11"],
  reject: ["M10.2 2h11.6L30 10.2v11.6L21.8 30H10.2L2 21.8V10.2z", "M10.5 10.5l11 11M21.5 10.5l-11 11"],
  fault: ["M16 2.5L30.5 29h-29z", "M16 11.5v8M16 24v.6"],
  unknown: ["M16 1.5L30.5 16L16 30.5L1.5 16z", "M16 9.5v8M16 22v.6"],
};

/** Return the shape of a verdict: circle, octagon, triangle; a diamond for none. `inner` is the colour of its sign. */
export function mark(verdict, inner = "var(--card)") {
  const [outline, sign] = SHAPES[verdict] ?? SHAPES.unknown;
  const stroke = { fill: "none", stroke: inner, "stroke-width": 4, "stroke-linecap": "round", "stroke-linejoin": "round" };
  return svg("svg", { viewBox: "0 0 32 32", class: `mark ${verdict}`, "aria-hidden": "true" },
    svg("path", { d: outline, fill: "currentColor" }), svg("path", { d: sign, ...stroke }));
}

/** Return a verdict as shape and word. */
export function word(verdict) {
  return el("span", { class: `word ${verdict}` }, mark(verdict), verdict);
}

let toldTimer = 0;

/** Tell for a few seconds what has happened. */
export function tell(text, isBad = false) {
  const line = el("p", { class: isBad ? "bad" : "" }, text);
  byId("told").replaceChildren(line);
  clearTimeout(toldTimer);
  toldTimer = setTimeout(() => line.remove(), isBad ? 9000 : 4000);
}

/** Make a dialog with a title and a close button; it is removed when it is closed. */
export function openDialog(title, ...children) {
  const close = el("button", { type: "button", onclick: () => dialog.close(), "aria-label": "Close" }, "Close");
  const dialog = el("dialog", { "aria-label": title, onclose: () => dialog.remove() },
    el("div", { class: "top" }, el("h2", {}, title), close), ...children);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Return a button that must be pressed twice within four seconds. */
export function twice(text, again, act, attributes = {}) {
  let isArmed = false;
  let timer = 0;
  const calm = () => { isArmed = false; button.textContent = text; button.classList.remove("bad"); };
  const button = el("button", { type: "button", ...attributes, onclick: () => {
    clearTimeout(timer);
    if (isArmed) { calm(); act(); return; }
    isArmed = true;
    button.textContent = again;
    button.classList.add("bad");
    timer = setTimeout(calm, 4000);
  } }, text);
  return button;
}

/** Whether keys now belong to a field of text. */
export function isTyping(event) {
  return event.target instanceof Element && event.target.closest("input:not([type=range]):not([type=checkbox]), textarea, select") !== null;
}

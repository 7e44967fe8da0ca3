"use strict";
// The report is readable without this script. It adds what a reader may do: try a threshold, sort, filter, enlarge.
(() => {
  const SHOWN = 50;
  const find = (id) => document.getElementById(id);
  const make = (tag, options) => Object.assign(document.createElement(tag), options);

  // As `percent` and `number` of the report: the same figures read the same wherever they stand.
  const significant = (value, digits) => String(Number(value.toPrecision(digits)));
  const percent = (value) => {
    let text = value >= 0.01 ? (100 * value).toFixed(1) : significant(100 * value, 2);
    if (value < 1 && text === "100.0") text = "99.9";
    return text.replace(/\.0$/, "") + "%";
  };
  const number = (value) => significant(value, 4);
  // As the filter of the same name: a name goes on in the next line behind its separators.
  const breakable = (name) =>
    name.split(/(?<=[^/\\_,:=-][/\\_,:=-])(?=[^/\\_,:=-])/).flatMap((part, place) => (place ? [make("wbr", {}), part] : [part]));
  const share = (count, n) => (n ? `${percent(count / n)} of ${n}` : "none was tested");

  // ---- All images

  const table = find("all-images");
  const body = table ? table.tBodies[0] : null;
  const rows = body ? Array.from(body.rows, (element, place) => ({
    element,
    place,
    title: element.dataset.title,
    kind: element.dataset.kind,
    isAnomalous: element.dataset.anomalous === "1",
    score: element.dataset.score === "" ? null : Number(element.dataset.score),
    margins: JSON.parse(element.dataset.margins || "[]"),
    decision: element.dataset.decision,
    outcome: element.dataset.outcome,
  })) : [];
  let order = rows.slice();
  let limit = SHOWN;
  let visible = rows;

  const isWrong = (outcome) => !["", "correct", "both correct"].includes(outcome);

  function show() {
    const words = find("filter-name").value.toLowerCase();
    const outcome = find("filter-outcome").value;
    const kind = find("filter-kind").value;
    visible = order.filter((row) =>
      (row.title.toLowerCase().includes(words) || row.kind.toLowerCase().includes(words)) &&
      (kind === "" || row.kind === kind) &&
      (outcome === "" || row.outcome === outcome || (outcome === "wrong" && isWrong(row.outcome))));
    const seen = new Set(visible.slice(0, limit));
    for (const row of rows) row.element.hidden = !seen.has(row);
    const some = Math.min(limit, visible.length);
    find("images-shown").textContent = `${some} of ${visible.length} shown` +
      (visible.length < rows.length ? `, ${rows.length} in all` : "");
    find("show-more").hidden = visible.length <= limit;
    find("show-more").textContent = `Show ${Math.min(100, visible.length - limit)} more`;
  }

  function sortBy(heading, key) {
    const isAscending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const compare = (a, b) => {
      const [first, second] = [a[key], b[key]];
      if (first === second) return a.place - b.place;
      // A fault has no score: it stands last either way.
      if (first === null || second === null) return first === null ? 1 : -1;
      const sign = typeof first === "number" ? first - second : first.localeCompare(second, "en", { numeric: true });
      return isAscending ? sign : -sign;
    };
    order = rows.slice().sort(compare);
    // Whatever is hidden: the page stays in this order when more are shown.
    body.append(...order.map((row) => row.element));
    show();
  }

  function setUpTable() {
    for (const heading of table.tHead.rows[0].cells) {
      const key = heading.dataset.sort;
      if (!key) continue;
      const button = make("button", { type: "button", textContent: heading.textContent.trim() });
      button.addEventListener("click", () => sortBy(heading, key));
      heading.replaceChildren(button);
    }
    for (const row of rows) {
      for (const cell of row.element.cells) {
        const key = cell.dataset.number;
        if (key) row[key] = cell.dataset.value === "" ? null : Number(cell.dataset.value);
      }
    }
    const kinds = find("filter-kind");
    for (const kind of [...new Set(rows.map((row) => row.kind))].sort()) {
      kinds.append(make("option", { value: kind, textContent: kind }));
    }
    for (const id of ["filter-name", "filter-outcome", "filter-kind"]) {
      find(id).addEventListener("input", () => { limit = SHOWN; show(); });
    }
    find("show-more").addEventListener("click", () => { limit += 100; show(); });
    find("images-controls").hidden = false;
    show();
  }

  // ---- The threshold that is tried

  const tried = find("try");
  const dials = tried ? JSON.parse(tried.dataset.dials) : [];
  const hasThresholds = tried !== null && tried.dataset.decided === "1";
  const shifts = dials.map(() => 0);
  let dial = 0;

  const isRejected = (row) => row.margins.some(([which, margin]) => margin > shifts[which]);
  // Without a score no threshold can accept an image.
  const decide = (row) => (row.margins.length === 0 ? "fault" : isRejected(row) ? "reject" : "accept");

  function outcomeOf(row, decision) {
    if (decision === "fault") return "fault";
    if (row.isAnomalous) return decision === "accept" ? "miss" : "correct";
    return decision === "accept" ? "correct" : "false reject";
  }

  function count() {
    const counts = { misses: 0, anomalous: 0, alarms: 0, good: 0 };
    for (const row of rows) {
      const isAccepted = row.tried === "accept";
      counts[row.isAnomalous ? "anomalous" : "good"] += 1;
      if (row.isAnomalous && isAccepted) counts.misses += 1;
      if (!row.isAnomalous && !isAccepted) counts.alarms += 1;
    }
    return counts;
  }

  function own() {
    // What the threshold at hand does by itself: a zone rejects, or the images of one product are judged.
    const parts = [[0, 0], [0, 0]];
    for (const row of rows) {
      for (const [which, margin] of row.margins) {
        if (which !== dial) continue;
        const part = parts[row.isAnomalous ? 1 : 0];
        part[0] += margin > shifts[dial] ? 1 : 0;
        part[1] += 1;
      }
    }
    return `${dials[dial].name} alone rejects ${parts[0][0]} of ${parts[0][1]} normal and ` +
      `${parts[1][0]} of ${parts[1][1]} defective images.`;
  }

  function refresh() {
    const isMoved = shifts.some((shift) => shift !== 0) || !hasThresholds;
    for (const row of rows) {
      row.tried = decide(row);
      const outcome = outcomeOf(row, row.tried);
      if (outcome === row.outcome && row.tried === row.decision) continue;
      [row.outcome, row.decision] = [outcome, row.tried];
      row.element.querySelector(".decision").textContent = row.tried;
      const cell = row.element.querySelector(".outcome");
      cell.textContent = outcome;
      cell.className = `outcome ${outcome === "correct" ? "right" : "wrong"}`;
    }
    const counts = count();
    find("try-misses").textContent = counts.misses;
    find("try-misses-share").textContent = share(counts.misses, counts.anomalous);
    find("try-alarms").textContent = counts.alarms;
    find("try-alarms-share").textContent = share(counts.alarms, counts.good);
    const { name, value, low, high } = dials[dial];
    const now = value + shifts[dial];
    const text = find("try-number");
    if (document.activeElement !== text) text.value = significant(now, 6);
    const slider = find("try-slider");
    slider.setAttribute("aria-valuetext",
      `${number(now)}: ${counts.misses} missed, ${counts.alarms} false rejects`);
    for (const [id, at] of [["strip-now", now], ["strip-force", value]]) {
      const x = 1000 * Math.min(Math.max((at - low) / (high - low || 1), 0), 1);
      find(id).setAttribute("x1", x);
      find(id).setAttribute("x2", x);
    }
    if (name) find("try-own").textContent = own();
    find("try-reset").disabled = shifts.every((shift) => shift === 0);
    find("try-how").hidden = !isMoved || tried.dataset.moved === "product";
    find("try-command").textContent =
      `flawscope calibrate BUNDLE --image-threshold ${now}` + (name ? ` --zone "${name.replace(/(["\\$`])/g, "\\$1")}"` : "");
    find("images-tried").hidden = !isMoved;
    show();
  }

  function bars(kind, isUp) {
    const bins = new Array(80).fill(0);
    const { value, low, high } = dials[dial];
    for (const row of rows) {
      if (row.isAnomalous === isUp) continue;
      for (const [which, margin] of row.margins) {
        if (which !== dial) continue;
        bins[Math.min(Math.floor((bins.length * (margin + value - low)) / (high - low || 1)), bins.length - 1)] += 1;
      }
    }
    const most = Math.max(...bins, 1);
    const width = 1000 / bins.length;
    const parts = bins.map((n, bin) => {
      // Never too small to be seen: a single image may be the one that matters.
      const height = n ? Math.max((46 * n) / most, 3) : 0;
      return n ? `M${bin * width + 1} 50v${isUp ? -height : height}h${width - 2}V50z` : "";
    });
    find(`strip-${kind}`).setAttribute("d", parts.join("") || "M0 50");
  }

  function chooseDial(which) {
    dial = which;
    const { value, low, high } = dials[dial];
    const slider = find("try-slider");
    // A little room on both sides, so that all and none can be rejected.
    const room = (high - low || 1) / 50;
    [dials[dial].low, dials[dial].high] = dials[dial].roomy ? [low, high] : [low - room, high + room];
    dials[dial].roomy = true;
    [slider.min, slider.max] = [dials[dial].low, dials[dial].high];
    slider.value = value + shifts[dial];
    find("try-low").textContent = number(dials[dial].low);
    find("try-high").textContent = number(dials[dial].high);
    find("try-force").textContent = number(value);
    bars("normal", true);
    bars("anomalous", false);
    refresh();
  }

  function move(text) {
    const now = Number(text);
    if (text === "" || !Number.isFinite(now)) return;
    shifts[dial] = now - dials[dial].value;
    refresh();
  }

  function setUpThreshold() {
    const choice = find("try-dial");
    if (choice) {
      dials.forEach((each, which) => choice.append(make("option", { value: which, textContent: each.name })));
      choice.addEventListener("input", () => chooseDial(Number(choice.value)));
    }
    find("try-slider").addEventListener("input", (event) => move(event.target.value));
    find("try-number").addEventListener("input", (event) => {
      move(event.target.value);
      find("try-slider").value = dials[dial].value + shifts[dial];
    });
    for (const id of ["try-reset", "try-reset-too"]) {
      find(id).addEventListener("click", () => { shifts.fill(0); chooseDial(dial); });
    }
    tried.hidden = false;
    find("to-try").hidden = false;
    chooseDial(0);
  }

  // ---- Enlarged images

  const dialog = find("large");
  let gallery = [];
  let at = 0;

  const cards = new Map(Array.from(document.querySelectorAll(".card"), (card) => [
    card.dataset.row,
    { images: Array.from(card.querySelectorAll("img")), text: card.querySelector("figcaption").textContent.trim(),
      title: card.dataset.title, isWide: card.querySelector(".stack") !== null },
  ]));

  function ofRow(row) {
    const image = row.element.querySelector("img");
    const score = row.score === null ? "" : `, score ${number(row.score)}`;
    const text = `${row.kind}${score}${row.outcome ? `, ${row.outcome}` : ""}`;
    // The card of the same image is larger.
    const card = cards.get(row.element.dataset.row);
    const images = card ? card.images : [image];
    return image || card ? { images, text, title: row.title, isWide: card !== undefined && card.isWide } : null;
  }

  function enlarge(list, place) {
    gallery = list;
    at = (place + list.length) % list.length;
    const { images, text, title, isWide } = gallery[at];
    find("large-title").replaceChildren(...breakable(title));
    find("large-text").textContent = text;
    find("large-images").replaceChildren(...images.map((image) => make("img", { src: image.src, alt: image.alt })));
    find("large-images").classList.toggle("stack", isWide);
    if (!dialog.open) dialog.showModal();
  }

  function zoomable(images, title, open) {
    const button = make("button", { type: "button", className: "zoom" });
    button.setAttribute("aria-label", `Enlarge ${title}`);
    images[0].before(button);
    button.append(...images);
    button.addEventListener("click", open);
    return button;
  }

  function setUpEnlarging() {
    for (const row of rows) {
      const image = row.element.querySelector("img");
      if (!image) continue;
      zoomable([image], row.title, () => {
        const seen = visible.filter((each) => ofRow(each) !== null);
        enlarge(seen.map(ofRow), seen.indexOf(row));
      });
    }
    const all = [...cards.values()];
    all.forEach((card, place) => {
      const holder = card.images[0].parentElement;
      const button = zoomable(card.images, card.title, () => enlarge(all, place));
      button.classList.add(...holder.classList);
      holder.className = "";
    });
    find("large-before").addEventListener("click", () => enlarge(gallery, at - 1));
    find("large-after").addEventListener("click", () => enlarge(gallery, at + 1));
    find("large-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") enlarge(gallery, at - 1);
      if (event.key === "ArrowRight") enlarge(gallery, at + 1);
    });
    // A click beside the window closes it.
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  // ---- Tables that are wider than the screen

  function setUpScrolling() {
    const hints = new Map();
    const watch = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const isWide = target.scrollWidth > target.clientWidth + 1;
        target.classList.toggle("fits", !isWide);
        hints.get(target).hidden = !isWide;
      }
    });
    for (const box of document.querySelectorAll(".scroll")) {
      const hint = make("p", { className: "swipe", textContent: "There is more: scroll sideways \u2192", hidden: true });
      hint.setAttribute("aria-hidden", "true");
      box.before(hint);
      hints.set(box, hint);
      watch.observe(box);
    }
  }

  if (table) setUpTable();
  if (tried && table) setUpThreshold();
  if (dialog) setUpEnlarging();
  setUpScrolling();
})();

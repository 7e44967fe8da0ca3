// What a browser remembers between visits; one that may not remember forgets.

/** Return a value that was kept, or the default. */
export function recall(key, otherwise) {
  try {
    const text = localStorage.getItem(`flawscope.${key}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch { return otherwise; }
}

/** Keep a value. */
export function keep(key, value) {
  try { localStorage.setItem(`flawscope.${key}`, JSON.stringify(value)); } catch { /* private window, full disk */ }
}

// Requests to the line. Every answer is bounded in time, and what the line does not offer is remembered as missing.

const WAIT_MS = 10000;

let csrf = "";

/** Set the token that changes need where there are users. */
export function setCsrf(token) { csrf = token ?? ""; }

/** An answer that says no. */
export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Told to the document when the line no longer knows who asks. */
export const SIGNED_OUT = "flawscope-signed-out";

async function send(path, options, waitMs) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(waitMs), ...options });
  } catch (error) {
    throw new ApiError(0, error.name === "TimeoutError" ? "The line did not answer in time." : "The line cannot be reached.");
  }
  if (answer.ok) return answer;
  let text = `The line answered ${answer.status}.`;
  try { text = (await answer.json()).error ?? text; } catch { /* no JSON: the status says enough */ }
  if (answer.status === 401) document.dispatchEvent(new Event(SIGNED_OUT));
  throw new ApiError(answer.status, text);
}

/** GET JSON. */
export async function get(path, waitMs = WAIT_MS) {
  return (await send(path, {}, waitMs)).json();
}

/** GET JSON; null where the line does not offer it, or not to this user. */
export async function getIfThere(path, waitMs = WAIT_MS) {
  try {
    return await get(path, waitMs);
  } catch (error) {
    if (error instanceof ApiError && [400, 403, 404, 405].includes(error.status)) return null;
    throw error;
  }
}

/** GET an image as a bitmap, with its headers; null where there is none. */
export async function getImage(path, waitMs = WAIT_MS) {
  try {
    const answer = await send(path, {}, waitMs);
    return { bitmap: await createImageBitmap(await answer.blob()), headers: answer.headers };
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  }
}

/** POST JSON and return the answer's. */
export async function post(path, body = {}, waitMs = 30000) {
  return upload(path, JSON.stringify(body), "application/json", waitMs);
}

/** POST bytes and return the answer's JSON. */
export async function upload(path, body, type, waitMs = 600000) {
  const headers = { "Content-Type": type, "X-Flawscope": "1" };
  if (csrf) headers["X-Flawscope-CSRF"] = csrf;
  const answer = await send(path, { method: "POST", headers, body }, waitMs);
  return answer.status === 204 ? {} : answer.json();
}

/** A path with its parameters; empty ones are left out. */
export function path(base, parameters) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return query.size ? `${base}?${query}` : base;
}

// Signing in and out, where the line has users.

import { getIfThere, post, setCsrf } from "./api.js";
import { byId, el } from "./dom.js";
import { me } from "./me.js";

/** Ask who looks; false if somebody has to sign in first. */
export async function knowMe() {
  let found = null;
  try {
    found = await getIfThere("/api/v1/me");
  } catch (error) {
    if (error.status !== 401) throw error;
    Object.assign(me, { name: "", role: "", has_users: true });
    return false;
  }
  // A line without users: whoever sits at the machine may do all.
  Object.assign(me, found ?? { name: "local", role: "admin", has_users: false });
  setCsrf(found?.csrf);
  return me.role !== "";
}

/** Show the form; `then` is called when somebody has signed in. */
export function showLogin(then) {
  const name = el("input", { id: "login-name", name: "username", autocomplete: "username", required: true, maxlength: 64, autocapitalize: "none" });
  const password = el("input", { id: "login-password", type: "password", name: "password", autocomplete: "current-password", required: true });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const form = el("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    try {
      await post("/api/v1/login", { name: name.value, password: password.value });
      password.value = "";
      await then();
    } catch (error) { wrong.textContent = error.message; password.focus(); password.select(); }
  } }, el("h2", {}, "Sign in"), el("label", {}, "Name", name), el("label", {}, "Password", password), wrong,
  el("button", { class: "go" }, "Sign in"));
  byId("login").replaceChildren(form);
  name.focus();
}

/** Sign out. */
export async function signOut() {
  await post("/api/v1/logout");
}

// Who looks at the page, and what he may see. The line decides on each request anyway.

const RANKS = ["", "machine", "operator", "engineer", "admin"];

export const me = { name: "", role: "", has_users: false };

/** Whether who looks has at least a role. */
export const may = (role) => RANKS.indexOf(me.role) >= RANKS.indexOf(role);

/** Show what this role may use, and hide the rest, below a node. */
export function showByRole(node) {
  for (const one of node.querySelectorAll("[data-role]")) one.hidden = !may(one.dataset.role);
}

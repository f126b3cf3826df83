/** What is being erased: each receipt is followed until nothing is left in any file. */

import { ask } from "../api.js";
import { badge } from "../controls.js";
import { announce, h, many, moment } from "../dom.js";

/** @typedef {{id: string, status: "scrubbing" | "erased", subjects: number, faces: number, erased_at: string | null}} Receipt */

const EVERY_MS = 800;

export function erasures() {
  const list = h("ul", { class: "receipts" });
  const element = h(
    "section",
    { class: "panel", hidden: true, "aria-label": "Erasures" },
    h("h2", {}, "Erasures"),
    h(
      "p",
      { class: "hint" },
      "Gone from searches at once. The receipt turns to “erased” when no file holds anything of it any more.",
    ),
    list,
  );

  /**
   * @param {string} what
   * @param {Receipt} receipt
   */
  function add(what, receipt) {
    element.hidden = false;
    const row = h("li", { class: "receipt" });
    list.prepend(row);
    follow(what, receipt, row);
  }

  return { element, add };
}

/**
 * @param {string} what
 * @param {Receipt} receipt
 * @param {HTMLElement} row
 */
async function follow(what, receipt, row) {
  let now = receipt;
  for (;;) {
    const done = now.status === "erased";
    row.replaceChildren(
      badge(done ? "✓ erased" : "scrubbing …", done ? "good" : "warn"),
      h("strong", {}, what),
      h("span", {}, `${many(now.subjects, "subject")}, ${many(now.faces, "face")}`),
      h(
        "span",
        { class: "hint" },
        done && now.erased_at ? `${moment(now.erased_at)} · ` : "",
        "receipt ",
        h("code", {}, now.id),
      ),
    );
    if (done) return announce(`${what} is erased`);
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    try {
      now = await ask(`erasures/${now.id}`);
    } catch {
      // It goes on without being watched; the next answer tells.
    }
  }
}

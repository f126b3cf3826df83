/** The list of erasures: each receipt is polled until the data is erased from all files. */

import { requestJson } from "../api.js";
import { badge } from "../controls.js";
import { announce, h, plural, formatTime } from "../dom.js";

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
      "Excluded from searches at once. The status becomes “erased” when no file contains the data any more.",
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
      badge(done ? "✓ erased" : "erasing …", done ? "good" : "warn"),
      h("strong", {}, what),
      h("span", {}, `${plural(now.subjects, "subject")}, ${plural(now.faces, "face")}`),
      h(
        "span",
        { class: "hint" },
        done && now.erased_at ? `${formatTime(now.erased_at)} · ` : "",
        "receipt ",
        h("code", {}, now.id),
      ),
    );
    if (done) return announce(`${what} is erased`);
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    try {
      now = await requestJson(`erasures/${now.id}`);
    } catch {
      // The erasure continues in the service; poll again.
    }
  }
}

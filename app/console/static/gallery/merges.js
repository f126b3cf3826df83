/** The merges of a collection that can be undone. */

import { requestJson } from "../api.js";
import { attempt, errorNotice } from "../controls.js";
import { announce, formatTime, h, plural, replaceContent } from "../dom.js";

/**
 * @typedef {{id: string, subject: string, absorbed: string[], faces: number, created_at: string, undo_until: string}} Merge
 */

const LIMIT = 100;

/** @param {{path: string, onCurated: () => void}} options `path` is the collection's, in the API */
export function merges({ path, onCurated }) {
  const list = h("ul", { class: "receipts" });
  const more = h("button", { type: "button", class: "quiet", hidden: true }, "Newer merges");
  const problem = h("div");
  const element = h(
    "section",
    { class: "panel", "aria-label": "Merges", hidden: true },
    h("h2", {}, "Merges"),
    h("p", { class: "hint" }, "A merge can be undone until the time it states."),
    problem,
    list,
    h("div", { class: "row" }, more),
  );

  /** Load the first page. */
  function load() {
    replaceContent(list);
    return page(0);
  }

  /** @param {number} after where the page begins */
  async function page(after) {
    try {
      const answer = await requestJson(`${path}/merges`, { query: { limit: LIMIT, after } });
      if (!after) replaceContent(list);
      list.append(.../** @type {Merge[]} */ (answer.data).map(row));
      more.hidden = answer.next === null;
      more.onclick = () => page(answer.next);
      replaceContent(problem);
      element.hidden = !list.hasChildNodes();
    } catch (error) {
      element.hidden = false;
      replaceContent(problem, errorNotice(error, load));
    }
  }

  /** @param {Merge} merge */
  function row(merge) {
    const absorbed = merge.absorbed.join(", ");
    const undo = h("button", { type: "button", "aria-label": `Undo the merge of ${absorbed} into ${merge.subject}` }, "Undo");
    const message = h("div");
    undo.addEventListener("click", () =>
      attempt(undo, message, async () => {
        await requestJson(`${path}/merges/${encodeURIComponent(merge.id)}/undo`, { method: "POST" });
        announce(`The merge of ${absorbed} into ${merge.subject} is undone`);
        onCurated();
      }),
    );
    return h(
      "li",
      { class: "rule" },
      h("div", { class: "row spread" }, h("strong", {}, `${absorbed} → ${merge.subject}`), undo),
      h(
        "span",
        { class: "hint" },
        `${plural(merge.faces, "face")} · merged ${formatTime(merge.created_at)} · can be undone until ${formatTime(merge.undo_until)}`,
      ),
      message,
    );
  }

  load();
  return { element, load };
}

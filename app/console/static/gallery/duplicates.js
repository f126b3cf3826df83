/** Pairs of subjects that may be one person. A person decides whether to merge them. */

import { Latest, isAbort, requestJson } from "../api.js";
import { attempt, errorNotice, whileBusy } from "../controls.js";
import { announce, count, formatRate, h, plural, replaceContent } from "../dom.js";
import { noImage, storedImage } from "../stored_image.js";
import { cropPath } from "./faces.js";

/**
 * @typedef {{subjects: [string, string], names: [string | null, string | null], faces: [string, string],
 *   distance: number}} Pair
 */

const PAGE = 100; // subjects that a request compares with all others
const ENOUGH = 10; // pairs to show before the user asks for more

/**
 * @param {{path: string, keepsCrops: boolean, onCurated: () => void}} options `path` is the collection's, in the API
 */
export function duplicates({ path, keepsCrops, onCurated }) {
  const latest = new Latest();
  const find = h("button", { type: "button" }, "Find likely duplicates");
  const list = h("ul", { class: "pairs" });
  const summary = h("p", { class: "hint", role: "status" });
  const problem = h("div");
  const element = h(
    "section",
    { class: "panel", "aria-label": "Likely duplicates" },
    h("h2", {}, "Likely duplicates"),
    h("p", { class: "hint" }, "Pairs of subjects whose faces are so similar that they may be one person."),
    list,
    summary,
    problem,
    h("div", { class: "row" }, find),
  );
  /** Where the next page begins; null after the last page. @type {string | null} */
  let next = "";
  let compared = 0;
  find.addEventListener("click", () => whileBusy(find, search));

  /** Compare further subjects, until there are enough new pairs or all are compared. */
  async function search() {
    if (!next) {
      [next, compared] = ["", 0];
      replaceContent(list);
    }
    const enough = list.childElementCount + ENOUGH;
    const signal = latest.next();
    try {
      do {
        const answer = await requestJson(`${path}/duplicates`, { query: { limit: PAGE, after: next }, signal });
        replaceContent(problem);
        list.append(.../** @type {Pair[]} */ (answer.data).map(row));
        next = answer.next;
        compared += PAGE;
        describe(answer.threshold, answer.operating_point.fmr);
      } while (next !== null && list.childElementCount < enough);
      announce(plural(list.childElementCount, "pair"));
    } catch (error) {
      if (!isAbort(error)) replaceContent(problem, errorNotice(error));
    }
  }

  /**
   * @param {number} threshold
   * @param {number} fmr
   */
  function describe(threshold, fmr) {
    const pairs = list.childElementCount ? plural(list.childElementCount, "pair") : "No pairs";
    const subjects = next === null ? "all subjects" : `the first ${count(compared)} subjects`;
    summary.textContent = `${pairs} among ${subjects}. Their distance is at most ${threshold.toFixed(3)}, as that of ${formatRate(fmr)} pairs of different people.`;
    find.textContent = next === null ? "Compare again" : "Compare further subjects";
  }

  /** @param {Pair} pair */
  function row({ subjects, names, faces, distance }) {
    const message = h("div");
    const labels = subjects.map((id, index) => names[index] ?? id);
    const sides = subjects.map((id, index) => {
      const keep = h("button", { type: "button", "aria-label": `Keep ${labels[index]}` }, "Keep this one");
      keep.addEventListener("click", () =>
        attempt(keep, message, async () => {
          const into = `${path}/subjects/${encodeURIComponent(id)}/merge`;
          await requestJson(into, { method: "POST", json: { from: [subjects[1 - index]] } });
          announce(`${labels[1 - index]} is merged into ${labels[index]}`);
          item.remove();
          onCurated();
        }),
      );
      return h(
        "div",
        { class: "pair-side" },
        keepsCrops ? storedImage(cropPath(path, faces[index]), "") : noImage(),
        h("div", { class: "who" }, h("strong", {}, labels[index]), names[index] ? h("code", {}, id) : null),
        keep,
      );
    });
    const dismiss = h("button", { type: "button", class: "quiet" }, "Hide this pair");
    dismiss.setAttribute("aria-label", `Hide the pair ${labels.join(" and ")}`);
    dismiss.addEventListener("click", () => item.remove());
    const item = h(
      "li",
      { class: "likely" },
      ...sides,
      h("div", { class: "row spread" }, h("span", { class: "hint" }, `distance ${distance.toFixed(3)}`), dismiss),
      message,
    );
    return item;
  }

  return { element };
}

/** The candidates of a search, and the words for its result. */

import { bar } from "../controls.js";
import { h, percent } from "../dom.js";

/**
 * @typedef {"match" | "unknown" | "rejected"} Status
 * @typedef {{subject_id: string, name: string | null, probability: number | null, distance: number}} Candidate
 */

/** @type {Record<Status, [text: string, tone: "good" | "warn" | "plain"]>} */
export const STATUS = { match: ["✓ match", "good"], unknown: ["? unknown", "warn"], rejected: ["– rejected", "plain"] };

/**
 * @param {Candidate[]} candidates
 * @param {Status} status
 */
export function ranked(candidates, status) {
  return h(
    "ol",
    { class: "ranking", "aria-label": "Candidates" },
    ...candidates.map((item, rank) =>
      h(
        "li",
        { class: "ranked" },
        h("span", {}, item.name ?? item.subject_id, " ", item.name ? h("code", {}, item.subject_id) : null),
        h(
          "span",
          { class: "number hint" },
          item.probability === null
            ? `distance ${item.distance.toFixed(3)}`
            : `${percent(item.probability)} · distance ${item.distance.toFixed(3)}`,
        ),
        bar(item.probability ?? 1 - item.distance / 2, rank === 0 && status === "match" ? "good" : "faint"),
      ),
    ),
  );
}

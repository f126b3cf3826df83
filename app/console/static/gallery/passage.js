/** The result of a search for one person by several photos: one decision, and what became of each photo. */

import { badge } from "../controls.js";
import { announce, count, h, percent } from "../dom.js";
import { annotatedImage } from "../drawing.js";
import { describeReasons } from "../reasons.js";
import { STATUS, ranked } from "./candidates.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {{status: "fused" | "no_face" | "rejected" | "other_person" | "surplus", reasons: string[], weight: number,
 *   face: {box: number[], landmarks: import("../drawing.js").Points} | null}} Frame
 * @typedef {{problem: import("../api.js").ProblemDetails}} Failed
 * @typedef {{status: import("./candidates.js").Status, reasons: string[], frames: number,
 *   candidates: import("./candidates.js").Candidate[], data: (Frame | Failed)[]}} Decision
 */

/** @type {Record<Frame["status"], string>} */
const FRAMES = {
  fused: "used",
  no_face: "not used: there is no face",
  rejected: "not used",
  other_person: "not used: it looks like another person",
  surplus: "not used: other photos are sharper",
};

/**
 * @param {Decision} decision
 * @param {Picture[]} pictures
 * @param {() => void} onClear
 */
export function passageResult({ status, reasons, frames, candidates, data }, pictures, onClear) {
  const [text, tone] = STATUS[status];
  const first = candidates[0];
  /** @type {Record<Decision["status"], string>} */
  const titles = {
    match: first?.name ?? first?.subject_id ?? "",
    unknown: "Not enrolled",
    rejected: "No face to search for",
  };
  const clear = h("button", { type: "button", class: "quiet", onclick: onClear }, "Start over");
  announce(`${text} ${titles[status]}`);
  return h(
    "div",
    { class: "stack" },
    h(
      "div",
      { class: "row spread" },
      h("div", { class: "row" }, badge(text, tone), h("strong", {}, titles[status])),
      clear,
    ),
    h("p", { class: "hint" }, `One decision by ${count(frames)} of ${count(data.length)} photos.`),
    reasons.length ? h("p", { class: "notice warn" }, describeReasons(reasons)) : null,
    candidates.length ? ranked(candidates, status) : null,
    h(
      "ul",
      { class: "frames", "aria-label": "Photos" },
      ...pictures.map((picture, index) => frame(picture, data[index], status)),
    ),
  );
}

/**
 * @param {Picture} picture
 * @param {Frame | Failed} result
 * @param {Decision["status"]} decided
 */
function frame(picture, result, decided) {
  const image = annotatedImage(picture.url, picture.name);
  if ("problem" in result) {
    return h("li", {}, image.element, h("p", { class: "hint warn" }, result.problem.title));
  }
  const { status, face, reasons, weight } = result;
  if (face) image.mark([{ ...face, tone: status === "fused" ? decided : "rejected" }]);
  const words = [
    status === "fused" ? `${FRAMES.fused}, ${percent(weight)} of the decision` : FRAMES[status],
    reasons.length ? describeReasons(reasons) : "",
  ];
  return h("li", {}, image.element, h("p", { class: "hint" }, words.filter(Boolean).join(". ")));
}

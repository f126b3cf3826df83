/** Search a collection for the faces of images, each on its own or all as one person. */

import { Latest, Problem, requestJson, form, isAbort } from "../api.js";
import { badge, checkbox, terminalCommand, segmented, errorNotice, loading } from "../controls.js";
import { announce, h, plural, formatRate, replaceContent } from "../dom.js";
import { annotatedImage } from "../drawing.js";
import { picker, release } from "../image_picker.js";
import { describeReasons } from "../reasons.js";
import { STATUS, ranked } from "./candidates.js";
import { passageResult } from "./passage.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {{face: {box: number[], landmarks: import("../drawing.js").Points} | null,
 *   status: import("./candidates.js").Status, reasons: string[],
 *   candidates: import("./candidates.js").Candidate[]}} FaceResult
 * @typedef {{name: string, whole: boolean}} Options `name` is the collection's; `whole`: it holds whole images, not faces
 */

/** @param {Options} options */
export function search({ name, whole }) {
  /** @type {Picture[]} */
  let pictures = [];
  const latest = new Latest();
  const rate = segmented(
    "False positive identification rate, at most",
    [0.1, 0.01, 0.001].map((value) => ({ value: String(value), label: formatRate(value) })),
    "0.01",
    run,
  );
  const gate = checkbox("Skip low-quality faces", false, run);
  const passage = checkbox("All photos show one person: make one decision", false, run);
  const options = [
    rate.element,
    gate.element,
    passage.element,
    h("p", { class: "hint" }, "For the frames in which a camera sees a passer-by. Photos are then added to those chosen before."),
  ];
  const results = h("div", { class: "stack", "aria-live": "polite" });
  const terminal = terminalCommand(() => {
    const sent = pictures.slice(0, passage.box.checked ? undefined : 1).map((picture) => picture.name);
    const files = (sent.length ? sent : ["camera.jpg"]).map((file) => `-F file=@${file}`);
    return `curl ${files.join(" ")} '${location.origin}/search?${new URLSearchParams(query())}'`;
  });
  const element = h(
    "section",
    { class: "panel", "aria-label": "Search" },
    h("h2", {}, whole ? "Which images are similar?" : "Who is this?"),
    h(
      "div",
      { class: "asking" },
      picker({
        label: whole ? "Images to search for" : "Photos to search for",
        multiple: true,
        examples: whole ? ["coffee.jpg", "cat.jpg"] : ["astronaut.jpg", "hopper.jpg"],
        onPictures: setPictures,
      }).element,
      h("div", { class: "stack" }, ...(whole ? [] : options), terminal.element),
    ),
    results,
  );

  function query() {
    /** @type {Record<string, string>} */
    const params = { collection: name, limit: "5" };
    if (!whole) Object.assign(params, { fpir: rate.value, quality_gate: String(gate.box.checked) });
    if (passage.box.checked) params.passage = "true";
    return params;
  }

  /** @param {Picture[]} more */
  function setPictures(more) {
    if (passage.box.checked) {
      pictures.push(...more);
    } else {
      pictures.forEach(release);
      pictures = more;
    }
    run();
  }

  function clear() {
    pictures.forEach(release);
    pictures = [];
    replaceContent(results);
    terminal.update();
  }

  /** Search for the current images, also after the collection has changed. */
  async function run() {
    terminal.update();
    if (!pictures.length) return;
    const signal = latest.next();
    const together = passage.box.checked;
    if (!results.hasChildNodes()) replaceContent(results, loading("Searching …", 5));
    results.setAttribute("aria-busy", "true");
    try {
      const body = form({ file: pictures.map((picture) => picture.blob) });
      const answer = await requestJson("search", { method: "POST", query: query(), body, signal });
      const shown = together
        ? [passageResult(answer, pictures, clear)]
        : pictures.map((picture, index) => imageResult(picture, answer.data[index]));
      replaceContent(results, summary(answer), ...shown);
    } catch (error) {
      if (isAbort(error)) return;
      replaceContent(results, errorNotice(error, run));
    }
    results.removeAttribute("aria-busy");
  }

  /** @param {any} answer */
  function summary({ collection, threshold, frames }) {
    const size = `Searched ${plural(collection.faces, whole ? "image" : "face")} of ${plural(collection.subjects, "subject")}, ${collection.exact ? "exhaustively" : "with an index"}.`;
    const limit =
      threshold === null
        ? ""
        : ` The threshold for a match is a distance of ${threshold.toFixed(3)}; it depends on the number of faces${frames ? " and of frames" : ""}.`;
    return h("p", { class: "hint" }, size, limit);
  }

  return { element, run };
}

/**
 * Show the result for one image.
 * @param {Picture} picture
 * @param {{faces?: FaceResult[], problem?: import("../api.js").ProblemDetails}} answer
 */
function imageResult(picture, { faces, problem }) {
  const frame = annotatedImage(picture.url, picture.name);
  if (!faces) return h("div", { class: "result" }, frame.element, errorNotice(new Problem(/** @type {any} */ (problem))));
  frame.mark(
    faces.flatMap(({ face, status, candidates }, index) => {
      const who = status === "match" ? (candidates[0].name ?? candidates[0].subject_id) : status;
      return face ? [{ ...face, tone: status, label: faces.length > 1 ? `${index + 1} ${who}` : who }] : [];
    }),
  );
  const results = faces.length
    ? faces.map((face, index) => faceResult(face, index, faces.length))
    : [h("strong", {}, "There is no face in this image.")];
  announce(faces.map((face) => `${face.status} ${face.candidates[0]?.name ?? ""}`).join(", "));
  return h("div", { class: "result searched" }, frame.element, h("div", { class: "said" }, ...results));
}

/**
 * Show the result for one face.
 * @param {FaceResult} result
 * @param {number} index
 * @param {number} faces
 */
function faceResult({ face, status, reasons, candidates }, index, faces) {
  const [text, tone] = STATUS[status];
  const first = candidates[0];
  /** @type {Record<FaceResult["status"], string>} */
  const titles = {
    match: first?.name ?? first?.subject_id ?? "",
    unknown: face ? "Not enrolled" : "Most similar",
    rejected: "Not searched",
  };
  const heading = h(
    "div",
    { class: "row" },
    face ? badge(text, tone) : null,
    h("strong", {}, faces > 1 ? `${index + 1}. ` : "", titles[status]),
  );
  const why = reasons.length ? h("p", { class: "hint" }, describeReasons(reasons)) : null;
  return h(
    "div",
    { class: `found-face ${status}` },
    heading,
    why,
    candidates.length ? ranked(candidates, status) : null,
  );
}

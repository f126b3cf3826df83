/** Search a collection for the faces of images: matches, unknown faces, and rejected ones. */

import { Latest, Problem, requestJson, form, isAbort } from "../api.js";
import { badge, bar, checkbox, terminalCommand, segmented, errorNotice, loading } from "../controls.js";
import { announce, h, plural, formatRate, percent, replaceContent } from "../dom.js";
import { annotatedImage } from "../drawing.js";
import { picker, release } from "../image_picker.js";
import { describeReasons } from "../reasons.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {{subject_id: string, name: string | null, probability: number | null, distance: number}} Candidate
 * @typedef {{face: {box: number[], landmarks: import("../drawing.js").Points} | null,
 *   status: "match" | "unknown" | "rejected", reasons: string[], candidates: Candidate[]}} FaceResult
 * @typedef {{name: string, whole: boolean}} Options `name` is the collection's; `whole`: it holds whole images, not faces
 */

/** @type {Record<FaceResult["status"], [text: string, tone: "good" | "warn" | "plain"]>} */
const STATUS = { match: ["✓ match", "good"], unknown: ["? unknown", "warn"], rejected: ["– rejected", "plain"] };

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
  const results = h("div", { class: "stack", "aria-live": "polite" });
  const terminal = terminalCommand(
    () =>
      `curl -F file=@${pictures[0]?.name ?? "camera.jpg"} '${location.origin}/search?${new URLSearchParams(query())}'`,
  );
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
      h("div", { class: "stack" }, whole ? null : rate.element, whole ? null : gate.element, terminal.element),
    ),
    results,
  );

  function query() {
    /** @type {Record<string, string>} */
    const params = { collection: name, limit: "5" };
    if (!whole) Object.assign(params, { fpir: rate.value, quality_gate: String(gate.box.checked) });
    return params;
  }

  /** @param {Picture[]} more */
  function setPictures(more) {
    pictures.forEach(release);
    pictures = more;
    run();
  }

  /** Search for the current images, also after the collection has changed. */
  async function run() {
    terminal.update();
    if (!pictures.length) return;
    const signal = latest.next();
    if (!results.hasChildNodes()) replaceContent(results, loading("Searching …", 5));
    results.setAttribute("aria-busy", "true");
    try {
      const body = form({ file: pictures.map((picture) => picture.blob) });
      const answer = await requestJson("search", { method: "POST", query: query(), body, signal });
      replaceContent(results, summary(answer), ...pictures.map((picture, index) => imageResult(picture, answer.data[index])));
    } catch (error) {
      if (isAbort(error)) return;
      replaceContent(results, errorNotice(error, run));
    }
    results.removeAttribute("aria-busy");
  }

  /** @param {any} answer */
  function summary({ collection, threshold }) {
    const size = `Searched ${plural(collection.faces, whole ? "image" : "face")} of ${plural(collection.subjects, "subject")}, ${collection.exact ? "exhaustively" : "with an index"}.`;
    const limit =
      threshold === null
        ? ""
        : ` The threshold for a match is a distance of ${threshold.toFixed(3)}; it depends on the number of faces.`;
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

/**
 * @param {Candidate[]} candidates
 * @param {FaceResult["status"]} status
 */
function ranked(candidates, status) {
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

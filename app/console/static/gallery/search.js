/** Who of a collection is in a picture? A match, nobody known, or a face too poor to ask. */

import { Latest, Problem, ask, form, isAbort } from "../api.js";
import { badge, bar, checkbox, command, segmented, trouble, waiting } from "../controls.js";
import { announce, h, many, oneIn, percent, put } from "../dom.js";
import { framed } from "../drawing.js";
import { picker, release } from "../pictures.js";
import { sentence } from "../words.js";

/**
 * @typedef {import("../pictures.js").Picture} Picture
 * @typedef {{subject_id: string, name: string | null, probability: number | null, distance: number}} Candidate
 * @typedef {{face: {box: number[], landmarks: import("../drawing.js").Points} | null,
 *   status: "match" | "unknown" | "rejected", reasons: string[], candidates: Candidate[]}} Found
 * @typedef {{name: string, whole: boolean}} Options `name` is the collection's; `whole`: of pictures, not of faces
 */

/** @type {Record<Found["status"], [text: string, tone: "good" | "warn" | "plain"]>} */
const STATUS = { match: ["✓ match", "good"], unknown: ["? unknown", "warn"], rejected: ["– rejected", "plain"] };

/** @param {Options} options */
export function search({ name, whole }) {
  /** @type {Picture[]} */
  let pictures = [];
  const latest = new Latest();
  const rate = segmented(
    "Searches for a stranger that name somebody, at most",
    [0.1, 0.01, 0.001].map((value) => ({ value: String(value), label: oneIn(value) })),
    "0.01",
    run,
  );
  const gate = checkbox("Do not ask about faces of poor quality", false, run);
  const results = h("div", { class: "stack", "aria-live": "polite" });
  const terminal = command(
    () =>
      `curl -F file=@${pictures[0]?.name ?? "camera.jpg"} '${location.origin}/search?${new URLSearchParams(query())}'`,
  );
  const element = h(
    "section",
    { class: "panel", "aria-label": "Search" },
    h("h2", {}, whole ? "Which pictures are like this one?" : "Who is this?"),
    h(
      "div",
      { class: "asking" },
      picker({
        label: whole ? "A picture" : "Photos to ask about",
        multiple: true,
        examples: whole ? ["coffee.jpg", "cat.jpg"] : ["astronaut.jpg", "hopper.jpg"],
        onPictures: renew,
      }).element,
      h("div", { class: "stack" }, whole ? null : rate.element, whole ? null : gate.element, terminal.element),
    ),
    results,
  );

  function query() {
    /** @type {Record<string, string>} */
    const asked = { collection: name, limit: "5" };
    if (!whole) Object.assign(asked, { fpir: rate.value, quality_gate: String(gate.box.checked) });
    return asked;
  }

  /** @param {Picture[]} more */
  function renew(more) {
    pictures.forEach(release);
    pictures = more;
    run();
  }

  /** Ask again, where something was asked: who is enrolled may have changed. */
  async function run() {
    terminal.update();
    if (!pictures.length) return;
    const signal = latest.next();
    if (!results.hasChildNodes()) put(results, waiting("Searching …", 5));
    results.setAttribute("aria-busy", "true");
    try {
      const body = form({ file: pictures.map((picture) => picture.blob) });
      const answer = await ask("search", { method: "POST", query: query(), body, signal });
      put(results, summary(answer), ...pictures.map((picture, index) => one(picture, answer.data[index])));
    } catch (error) {
      if (isAbort(error)) return;
      put(results, trouble(error, run));
    }
    results.removeAttribute("aria-busy");
  }

  /** @param {any} answer */
  function summary({ collection, threshold }) {
    const among = `Searched ${many(collection.faces, whole ? "picture" : "face")} of ${many(collection.subjects, "subject")}${collection.exact ? ", each of them compared" : ", by an index"}.`;
    const limit =
      threshold === null
        ? ""
        : ` A match is at most ${threshold.toFixed(3)} away; that follows how many faces there are.`;
    return h("p", { class: "hint" }, among, limit);
  }

  return { element, run };
}

/**
 * @param {Picture} picture
 * @param {{faces?: Found[], problem?: import("../api.js").ProblemDetails}} answer
 */
function one(picture, { faces, problem }) {
  const frame = framed(picture.url, picture.name);
  if (!faces) return h("div", { class: "result" }, frame.element, trouble(new Problem(/** @type {any} */ (problem))));
  frame.mark(
    faces.flatMap(({ face, status, candidates }, index) => {
      const who = status === "match" ? (candidates[0].name ?? candidates[0].subject_id) : status;
      return face ? [{ ...face, tone: status, label: faces.length > 1 ? `${index + 1} ${who}` : who }] : [];
    }),
  );
  const found = faces.length
    ? faces.map((face, index) => told(face, index, faces.length))
    : [h("strong", {}, "There is no face in this picture.")];
  announce(faces.map((face) => `${face.status} ${face.candidates[0]?.name ?? ""}`).join(", "));
  return h("div", { class: "result searched" }, frame.element, h("div", { class: "said" }, ...found));
}

/**
 * @param {Found} found
 * @param {number} index
 * @param {number} faces
 */
function told({ face, status, reasons, candidates }, index, faces) {
  const [text, tone] = STATUS[status];
  const first = candidates[0];
  /** @type {Record<Found["status"], string>} */
  const titles = {
    match: first?.name ?? first?.subject_id ?? "",
    unknown: face ? "Nobody who is enrolled" : "The likest",
    rejected: "Not searched",
  };
  const heading = h(
    "div",
    { class: "row" },
    face ? badge(text, tone) : null,
    h("strong", {}, faces > 1 ? `${index + 1}. ` : "", titles[status]),
  );
  const why = reasons.length ? h("p", { class: "hint" }, sentence(reasons)) : null;
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
 * @param {Found["status"]} status
 */
function ranked(candidates, status) {
  return h(
    "ol",
    { class: "ranking", "aria-label": "Candidates" },
    ...candidates.map((one, rank) =>
      h(
        "li",
        { class: "ranked" },
        h("span", {}, one.name ?? one.subject_id, " ", one.name ? h("code", {}, one.subject_id) : null),
        h(
          "span",
          { class: "number hint" },
          one.probability === null
            ? `${one.distance.toFixed(3)} away`
            : `${percent(one.probability)} · ${one.distance.toFixed(3)} away`,
        ),
        bar(one.probability ?? 1 - one.distance / 2, rank === 0 && status === "match" ? "good" : "faint"),
      ),
    ),
  );
}

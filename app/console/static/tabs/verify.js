/** Compare the faces of two photos. */

import { Latest, requestJson, form, isAbort } from "../api.js";
import { detail, distanceAt, models } from "../model_cards.js";
import { badge, bar, terminalCommand, emptyState, segmented, errorNotice, loading } from "../controls.js";
import { announce, h, formatRate, percent, replaceContent } from "../dom.js";
import { annotatedImage } from "../drawing.js";
import { example, picker, toPicture, release } from "../image_picker.js";
import { scale } from "../scale.js";
import { describeReasons } from "../reasons.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {{box: number[], landmarks: import("../drawing.js").Points, reasons: string[]}} Face
 * @typedef {{verified: boolean, probability: number, distance: number, face: Face}} Compared
 * @typedef {{verified: boolean, probability: number, distance: number, threshold: number, source_face: Face,
 *   operating_point: {fmr: number, calibration: string, extrapolated: boolean, prior: number},
 *   face_matches: Compared[], unmatched_faces: Compared[]}} Verification
 */

const RATES = [0.01, 0.001, 0.0001];
const PEOPLE = ["astronaut.jpg", "hopper.jpg"];

/** @returns {import("../app.js").Tab} */
export default function verify() {
  const latest = new Latest();
  /** @type {any} */
  let matching = null;

  const verdict = h("div", { class: "panel verdict", "aria-live": "polite" });
  const source = slot("First photo", "the most prominent face is used", run);
  const target = slot("Second photo", "every face is compared", run);
  const rate = segmented(
    "False match rate, at most",
    [...RATES, 0.00001].map((value) => ({ value: String(value), label: formatRate(value) })),
    "0.001",
    run,
  );
  const swap = h("button", { type: "button", class: "swap", "aria-label": "Swap the photos", title: "Swap" }, "⇄");
  swap.addEventListener("click", () => {
    const [first, second] = [source.picture, target.picture];
    source.show(second, false);
    target.show(first, false);
    run();
  });
  const terminal = terminalCommand(
    () =>
      `curl -F source=@${source.picture?.name ?? "first.jpg"} -F target=@${target.picture?.name ?? "second.jpg"} '${location.origin}/verify?fmr=${rate.value}'`,
  );

  const element = h(
    "div",
    { class: "stack" },
    h("div", { class: "pair" }, source.element, swap, target.element),
    h("div", { class: "judged" }, verdict, h("div", { class: "panel" }, rate.element, help())),
    terminal.element,
  );
  showIntroduction();
  loadMatching();

  /** Load the thresholds from the card of the default embedder. */
  async function loadMatching() {
    try {
      const embedder = (await models("embed")).find((model) => model.default);
      if (embedder) matching = (await detail(embedder.name)).card.matching;
    } catch {
      // The scale shows only the threshold of the response.
    }
  }

  function help() {
    return h(
      "p",
      { class: "hint" },
      "At lower rates the threshold is stricter, and more photos of the same person are missed.",
    );
  }

  /** Return a listener that shows two examples. @param {string} first @param {() => Promise<Picture>} second */
  function showExamples(first, second) {
    return async () => {
      [source, target].forEach((side) => release(side.picture));
      source.show(await example(first), false);
      target.show(await second(), false);
      run();
    };
  }

  function showIntroduction() {
    replaceContent(
      verdict,
      emptyState(
        "Compare two photos",
        h("p", {}, "Choose a photo on each side, or try an example:"),
        h(
          "div",
          { class: "row" },
          h("button", { type: "button", onclick: showExamples(PEOPLE[0], () => example(PEOPLE[1])) }, "Different people"),
          h("button", { type: "button", onclick: showExamples(PEOPLE[0], () => altered(PEOPLE[0])) }, "Same person"),
        ),
        h("p", { class: "hint" }, "“Same person” is a photo and its mirrored, darkened copy. Photos are not stored."),
      ),
    );
  }

  async function run() {
    terminal.update();
    source.frame?.mark([]);
    target.frame?.mark([]);
    latest.stop();
    if (!source.picture || !target.picture) return showIntroduction();
    const signal = latest.next();
    replaceContent(verdict, loading("Comparing …", 5));
    try {
      const body = form({ source: source.picture.blob, target: target.picture.blob });
      showResult(await requestJson("verify", { method: "POST", query: { fmr: rate.value }, body, signal }));
    } catch (error) {
      if (!isAbort(error)) replaceContent(verdict, errorNotice(error, run));
    }
  }

  /** @param {Verification} answer */
  function showResult(answer) {
    const compared = [...answer.face_matches, ...answer.unmatched_faces].sort((a, b) => a.distance - b.distance);
    const several = compared.length > 1;
    source.frame?.mark([{ ...answer.source_face, tone: "accent", label: "compared" }]);
    target.frame?.mark(
      compared.map((item, index) => ({
        ...item.face,
        tone: /** @type {import("../drawing.js").Tone} */ (item.verified ? "match" : "unknown"),
        label: several ? String(index + 1) : item.verified ? "match" : "no match",
      })),
    );
    const marks = RATES.map((fmr) => ({ fmr, distance: matching && distanceAt(matching, fmr) })).filter(
      (mark) => mark.distance !== null,
    );
    const { fmr, extrapolated, prior, calibration } = answer.operating_point;
    const title = answer.verified ? "Same person" : "No match";
    replaceContent(
      verdict,
      h(
        "div",
        { class: "row" },
        badge(answer.verified ? "✓ match" : "✕ no match", answer.verified ? "good" : "warn"),
        h("h2", {}, title),
      ),
      h("p", {}, explained(answer)),
      scale({ distance: answer.distance, threshold: answer.threshold, fmr, marks }),
      several ? faces(compared) : null,
      warnings(
        answer.source_face,
        compared.map((item) => item.face),
      ),
      extrapolated
        ? h(
            "p",
            { class: "notice warn" },
            `${formatRate(fmr)} is below the calibrated rates; the threshold is extrapolated.`,
          )
        : null,
      h(
        "p",
        { class: "hint" },
        `Probability ${percent(answer.probability)}, if ${percent(prior)} of all compared pairs show the same person. Calibrated on ${calibration}.`,
      ),
    );
    announce(`${title}. Distance ${answer.distance.toFixed(3)}, threshold ${answer.threshold.toFixed(3)}.`);
  }

  return {
    title: "Verify",
    lead: "Check whether two photos show the same person, at a given false match rate.",
    element,
  };
}

/** @param {Verification} answer */
function explained({ verified, distance, threshold, operating_point: { fmr } }) {
  const comparison = `The distance ${distance.toFixed(3)} is ${verified ? "within" : "above"} the threshold ${threshold.toFixed(3)}`;
  return `${comparison}, at which ${formatRate(fmr)} pairs of different persons match.`;
}

/** @param {Compared[]} compared */
function faces(compared) {
  return h(
    "ol",
    { class: "ranking" },
    ...compared.map((item, index) =>
      h(
        "li",
        { class: "ranked" },
        h("span", {}, `Face ${index + 1}: ${item.verified ? "match" : "no match"}, distance ${item.distance.toFixed(3)}`),
        h("span", { class: "number" }, percent(item.probability)),
        bar(item.probability, item.verified ? "good" : "faint"),
      ),
    ),
  );
}

/**
 * A notice about the faces' quality, or null if there is nothing to report.
 * @param {Face} source
 * @param {Face[]} targets
 */
function warnings(source, targets) {
  const faces = [{ where: "first", face: source }, ...targets.map((face) => ({ where: "second", face }))];
  const lines = faces
    .filter(({ face }) => face.reasons.length)
    .map(({ where, face }) => h("p", {}, `In the ${where} photo: ${describeReasons(face.reasons).toLowerCase()}`));
  return lines.length ? h("div", { class: "notice warn" }, h("strong", {}, "The result may be unreliable"), ...lines) : null;
}

/**
 * One side of the comparison: a picker, replaced by the image once there is one.
 * @param {string} title
 * @param {string} hint
 * @param {() => void} onChange
 */
function slot(title, hint, onChange) {
  const element = h("div", { class: "slot" });
  const choose = picker({
    label: title,
    examples: PEOPLE,
    prefersPaste: () => !side.picture,
    onPictures: ([picture]) => side.show(picture),
  });
  const side = {
    element,
    /** @type {Picture | null} */
    picture: null,
    /** @type {ReturnType<typeof annotatedImage> | null} */
    frame: null,
    /** @param {Picture | null} picture @param {boolean} [notify] */
    show(picture, notify = true) {
      side.picture = picture;
      side.frame = picture && annotatedImage(picture.url, `${title}: ${picture.name}`);
      replaceContent(element, side.frame ? filled(side.frame.element) : choose.element);
      if (notify) onChange();
    },
  };
  /** @param {HTMLElement} frame */
  function filled(frame) {
    const change = h("button", { type: "button", class: "quiet" }, "Change");
    change.addEventListener("click", () => {
      release(side.picture);
      side.show(null);
    });
    return h(
      "figure",
      { class: "panel" },
      h(
        "figcaption",
        { class: "row spread" },
        h("span", {}, h("strong", {}, title), h("span", { class: "hint" }, ` · ${hint}`)),
        change,
      ),
      frame,
    );
  }
  replaceContent(element, choose.element);
  return side;
}

/**
 * Return an example, mirrored and darkened.
 * @param {string} name
 */
async function altered(name) {
  const original = await example(name);
  const bitmap = await createImageBitmap(original.blob);
  release(original);
  const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.filter = "brightness(0.6) contrast(0.9)";
  context.setTransform(-1, 0, 0, 1, bitmap.width, 0);
  context.drawImage(bitmap, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  return toPicture(blob, `mirrored-${name}`);
}

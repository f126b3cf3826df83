/** Do two photos show one person? */

import { Latest, ask, form, isAbort } from "../api.js";
import { detail, distanceAt, models } from "../catalogue.js";
import { badge, bar, command, empty, segmented, trouble, waiting } from "../controls.js";
import { announce, h, oneIn, percent, put } from "../dom.js";
import { framed } from "../drawing.js";
import { example, picker, pictureOf, release } from "../pictures.js";
import { scale } from "../scale.js";
import { sentence } from "../words.js";

/**
 * @typedef {import("../pictures.js").Picture} Picture
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
  const source = slot("First photo", "the most prominent face counts", run);
  const target = slot("Second photo", "every face is compared", run);
  const rate = segmented(
    "Strangers taken for one person, at most",
    [...RATES, 0.00001].map((value) => ({ value: String(value), label: oneIn(value) })),
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
  const terminal = command(
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
  rest();
  learn();

  /** The thresholds, from the card of the embedder that answers. */
  async function learn() {
    try {
      const embedder = (await models("embed")).find((model) => model.default);
      if (embedder) matching = (await detail(embedder.name)).card.matching;
    } catch {
      // The scale shows the one threshold that the answer has.
    }
  }

  function help() {
    return h(
      "p",
      { class: "hint" },
      "The stricter, the nearer two faces must lie, and the more photos of one person are missed.",
    );
  }

  /** Two photos that are there for the trying. @param {string} first @param {() => Promise<Picture>} second */
  function offer(first, second) {
    return async () => {
      [source, target].forEach((side) => release(side.picture));
      source.show(await example(first), false);
      target.show(await second(), false);
      run();
    };
  }

  function rest() {
    put(
      verdict,
      empty(
        "Two photos, one question",
        h("p", {}, "Give one photo on each side, or try it:"),
        h(
          "div",
          { class: "row" },
          h("button", { type: "button", onclick: offer(PEOPLE[0], () => example(PEOPLE[1])) }, "Two people"),
          h("button", { type: "button", onclick: offer(PEOPLE[0], () => altered(PEOPLE[0])) }, "One person"),
        ),
        h("p", { class: "hint" }, "“One person” is a photo and the same one mirrored and darkened. No photo is kept."),
      ),
    );
  }

  async function run() {
    terminal.update();
    source.frame?.mark([]);
    target.frame?.mark([]);
    latest.stop();
    if (!source.picture || !target.picture) return rest();
    const signal = latest.next();
    put(verdict, waiting("Comparing …", 5));
    try {
      const body = form({ source: source.picture.blob, target: target.picture.blob });
      tell(await ask("verify", { method: "POST", query: { fmr: rate.value }, body, signal }));
    } catch (error) {
      if (!isAbort(error)) put(verdict, trouble(error, run));
    }
  }

  /** @param {Verification} answer */
  function tell(answer) {
    const compared = [...answer.face_matches, ...answer.unmatched_faces].sort((a, b) => a.distance - b.distance);
    const several = compared.length > 1;
    source.frame?.mark([{ ...answer.source_face, tone: "accent", label: "compared" }]);
    target.frame?.mark(
      compared.map((one, index) => ({
        ...one.face,
        tone: /** @type {import("../drawing.js").Tone} */ (one.verified ? "match" : "unknown"),
        label: several ? String(index + 1) : one.verified ? "match" : "no match",
      })),
    );
    const marks = RATES.map((fmr) => ({ fmr, distance: matching && distanceAt(matching, fmr) })).filter(
      (mark) => mark.distance !== null,
    );
    const { fmr, extrapolated, prior, calibration } = answer.operating_point;
    const title = answer.verified ? "The same person" : "Not shown to be the same person";
    put(
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
        compared.map((one) => one.face),
      ),
      extrapolated
        ? h(
            "p",
            { class: "notice warn" },
            `${oneIn(fmr)} lies beyond what was counted; the threshold is an extrapolation.`,
          )
        : null,
      h(
        "p",
        { class: "hint" },
        `Probability ${percent(answer.probability)}, if ${percent(prior)} of all pairs that are asked about show one person. Counted on ${calibration}.`,
      ),
    );
    announce(`${title}. Distance ${answer.distance.toFixed(3)}, threshold ${answer.threshold.toFixed(3)}.`);
  }

  return {
    title: "Verify",
    lead: "Do two photos show one person, at the rate of mistakes that you can live with?",
    element,
  };
}

/** @param {Verification} answer */
function explained({ verified, distance, threshold, operating_point: { fmr } }) {
  const place = `The faces are ${distance.toFixed(3)} apart, ${verified ? "within" : "beyond"} the ${threshold.toFixed(3)} `;
  return `${place}at which ${oneIn(fmr)} pairs of strangers would be taken for one person.`;
}

/** @param {Compared[]} compared */
function faces(compared) {
  return h(
    "ol",
    { class: "ranking" },
    ...compared.map((one, index) =>
      h(
        "li",
        { class: "ranked" },
        h("span", {}, `Face ${index + 1}: ${one.verified ? "match" : "no match"}, ${one.distance.toFixed(3)} apart`),
        h("span", { class: "number" }, percent(one.probability)),
        bar(one.probability, one.verified ? "good" : "faint"),
      ),
    ),
  );
}

/**
 * @param {Face} source
 * @param {Face[]} others
 */
function warnings(source, others) {
  const faces = [{ where: "first", face: source }, ...others.map((face) => ({ where: "second", face }))];
  const told = faces
    .filter(({ face }) => face.reasons.length)
    .map(({ where, face }) => h("p", {}, `In the ${where} photo: ${sentence(face.reasons).toLowerCase()}`));
  return told.length ? h("div", { class: "notice warn" }, h("strong", {}, "Take the answer with care"), ...told) : null;
}

/**
 * One side: a picker until there is a picture, then the picture.
 * @param {string} title
 * @param {string} hint
 * @param {() => void} onChange
 */
function slot(title, hint, onChange) {
  const element = h("div", { class: "slot" });
  const choose = picker({
    label: title,
    examples: PEOPLE,
    wants: () => !side.picture,
    onPictures: ([picture]) => side.show(picture),
  });
  const side = {
    element,
    /** @type {Picture | null} */
    picture: null,
    /** @type {ReturnType<typeof framed> | null} */
    frame: null,
    /** @param {Picture | null} picture @param {boolean} [tell] */
    show(picture, tell = true) {
      side.picture = picture;
      side.frame = picture && framed(picture.url, `${title}: ${picture.name}`);
      put(element, side.frame ? filled(side.frame.element) : choose.element);
      if (tell) onChange();
    },
  };
  /** @param {HTMLElement} frame */
  function filled(frame) {
    const other = h("button", { type: "button", class: "quiet" }, "Change");
    other.addEventListener("click", () => {
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
        other,
      ),
      frame,
    );
  }
  put(element, choose.element);
  return side;
}

/**
 * The same photo as another camera might have taken it.
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
  return pictureOf(blob, `mirrored-${name}`);
}

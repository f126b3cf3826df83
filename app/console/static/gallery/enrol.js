/** Enrol a subject's photos in a collection and show the result for each. */

import { requestJson, form } from "../api.js";
import { badge, checkbox, whileBusy, field, idInput, errorNotice } from "../controls.js";
import { announce, h, plural, replaceContent } from "../dom.js";
import { annotatedImage } from "../drawing.js";
import { picker, release } from "../image_picker.js";
import { describeReasons } from "../reasons.js";

/**
 * @typedef {import("../image_picker.js").Picture} Picture
 * @typedef {{box: number[], landmarks: import("../drawing.js").Points}} Face
 * @typedef {{indexed: {index: number, face: Face | null}[], rejected: {index: number, face: Face, reasons: string[]}[],
 *   failed: {index: number, problem: import("../api.js").ProblemDetails}[]}} Enrolled
 * @typedef {{path: string, whole: boolean, onEnrolled: () => void}} Options `whole`: it holds whole images, not faces
 */

/** The subjects of the example images. @type {Record<string, [id: string, name: string]>} */
const EXAMPLE_SUBJECTS = {
  "astronaut.jpg": ["eileen", "Eileen Collins"],
  "hopper.jpg": ["grace", "Grace Hopper"],
  "coffee.jpg": ["coffee", "A cup of coffee"],
  "cat.jpg": ["cat", "A cat"],
};

/** @param {Options} options `path` is the collection's, in the API */
export function enrol({ path, whole, onEnrolled }) {
  /** @type {Picture[]} */
  let pictures = [];
  const id = idInput();
  const name = h("input", { type: "text", maxlength: 256, autocomplete: "off" });
  const gate = checkbox("Reject low-quality faces", true);
  const chosen = h("div", { class: "picked" });
  const send = h("button", { type: "button", class: "primary", disabled: true }, "Enrol");
  const outcomes = h("div", { class: "stack", "aria-live": "polite" });
  const examples = whole ? ["coffee.jpg", "cat.jpg"] : ["astronaut.jpg", "hopper.jpg"];
  const element = h(
    "section",
    { class: "panel", "aria-label": "Enrol" },
    h("h2", {}, "Enrol"),
    picker({
      label: whole ? "Images of one subject" : "Photos of one person",
      multiple: true,
      examples,
      onPictures: add,
      prefersPaste: () => false,
    }).element,
    chosen,
    field("Subject id", id, "Any id: letters, digits and . @ : + - _"),
    field("Name (optional)", name),
    whole ? null : gate.element,
    send,
    outcomes,
  );
  id.addEventListener("input", updateButton);
  send.addEventListener("click", () => whileBusy(send, run).then(updateButton));

  function updateButton() {
    send.disabled = !pictures.length || !id.value || !id.checkValidity();
    send.textContent = pictures.length > 1 ? `Enrol ${plural(pictures.length, "photo")}` : "Enrol";
  }

  /** @param {Picture[]} more */
  function add(more) {
    const subject = EXAMPLE_SUBJECTS[more[0].name];
    if (subject && !id.value) [id.value, name.value] = subject;
    pictures.push(...more);
    replaceContent(outcomes);
    show();
  }

  function show() {
    replaceContent(
      chosen,
      ...pictures.map((picture) => {
        const drop = h(
          "button",
          { type: "button", class: "thumb", title: "Remove", "aria-label": `Remove ${picture.name}` },
          h("img", { src: picture.url, alt: "" }),
        );
        drop.addEventListener("click", () => {
          pictures = pictures.filter((other) => other !== picture);
          release(picture);
          show();
        });
        return drop;
      }),
    );
    updateButton();
  }

  async function run() {
    const subject = `${path}/subjects/${encodeURIComponent(id.value)}`;
    try {
      const body = form({ file: pictures.map((picture) => picture.blob) });
      const query = { quality_gate: gate.box.checked };
      const answer = /** @type {Enrolled} */ (await requestJson(`${subject}/faces`, { method: "POST", query, body }));
      if (name.value && answer.indexed.length) await setName(subject, name.value);
      replaceContent(outcomes, ...pictures.map((picture, index) => outcome(picture, index, answer)));
      announce(
        `${plural(answer.indexed.length, "face")} enrolled, ${answer.rejected.length + answer.failed.length} rejected`,
      );
      pictures = [];
      [id.value, name.value] = ["", ""];
      show();
      onEnrolled();
    } catch (error) {
      replaceContent(outcomes, errorNotice(error));
    }
  }

  updateButton();
  return { element };
}

/**
 * Set a subject's name and keep its other attributes.
 * @param {string} subject
 * @param {string} name
 */
export async function setName(subject, name) {
  const { metadata, expires_at } = await requestJson(subject);
  await requestJson(subject, { method: "PUT", json: { name, metadata, expires_at } });
}

/**
 * Show the result of enrolling one image.
 * @param {Picture} picture
 * @param {number} index
 * @param {Enrolled} answer
 */
function outcome(picture, index, answer) {
  const indexed = answer.indexed.filter((item) => item.index === index);
  const rejected = answer.rejected.filter((item) => item.index === index);
  const failed = answer.failed.find((item) => item.index === index);
  const frame = annotatedImage(picture.url, picture.name);
  frame.mark([
    ...rejected.map((item) => ({ ...item.face, tone: /** @type {import("../drawing.js").Tone} */ ("rejected") })),
    ...indexed.flatMap((item) =>
      item.face ? [{ ...item.face, tone: /** @type {import("../drawing.js").Tone} */ ("match") }] : [],
    ),
  ]);
  const words = [
    indexed.length ? badge("✓ enrolled", "good") : badge("✕ not enrolled", "bad"),
    ...rejected.map((item) => h("p", {}, `Face rejected: ${describeReasons(item.reasons).toLowerCase()}`)),
    failed ? h("p", {}, [failed.problem.title, failed.problem.detail].filter(Boolean).join(": ")) : null,
    !indexed.length && !rejected.length && !failed ? h("p", {}, "There is no face in the image.") : null,
  ];
  return h("div", { class: "outcome" }, frame.element, h("div", {}, ...words));
}

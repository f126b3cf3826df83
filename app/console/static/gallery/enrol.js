/** A subject's photos into a collection, and what became of each. */

import { ask, form } from "../api.js";
import { badge, checkbox, during, field, keyInput, trouble } from "../controls.js";
import { announce, h, many, put } from "../dom.js";
import { framed } from "../drawing.js";
import { picker, release } from "../pictures.js";
import { sentence } from "../words.js";

/**
 * @typedef {import("../pictures.js").Picture} Picture
 * @typedef {{box: number[], landmarks: import("../drawing.js").Points}} Face
 * @typedef {{indexed: {index: number, face: Face | null}[], rejected: {index: number, face: Face, reasons: string[]}[],
 *   failed: {index: number, problem: import("../api.js").ProblemDetails}[]}} Enrolled
 * @typedef {{path: string, whole: boolean, onEnrolled: () => void}} Options `whole`: of pictures, not of faces
 */

/** Who is on the examples. @type {Record<string, [id: string, name: string]>} */
const KNOWN = {
  "astronaut.jpg": ["eileen", "Eileen Collins"],
  "hopper.jpg": ["grace", "Grace Hopper"],
  "coffee.jpg": ["coffee", "A cup of coffee"],
  "cat.jpg": ["cat", "A cat"],
};

/** @param {Options} options `path` is the collection's, in the API */
export function enrol({ path, whole, onEnrolled }) {
  /** @type {Picture[]} */
  let pictures = [];
  const id = keyInput();
  const name = h("input", { type: "text", maxlength: 256, autocomplete: "off" });
  const gate = checkbox("Refuse faces of poor quality", true);
  const chosen = h("div", { class: "picked" });
  const send = h("button", { type: "button", class: "primary", disabled: true }, "Enrol");
  const told = h("div", { class: "stack", "aria-live": "polite" });
  const examples = whole ? ["coffee.jpg", "cat.jpg"] : ["astronaut.jpg", "hopper.jpg"];
  const element = h(
    "section",
    { class: "panel", "aria-label": "Enrol" },
    h("h2", {}, "Enrol"),
    picker({
      label: whole ? "Pictures of one subject" : "Photos of one person",
      multiple: true,
      examples,
      onPictures: add,
      wants: () => false,
    }).element,
    chosen,
    field("Subject id", id, "Yours to choose: letters, digits and . @ : + - _"),
    field("Name (optional)", name),
    whole ? null : gate.element,
    send,
    told,
  );
  id.addEventListener("input", settle);
  send.addEventListener("click", () => during(send, run).then(settle));

  function settle() {
    send.disabled = !pictures.length || !id.value || !id.checkValidity();
    send.textContent = pictures.length > 1 ? `Enrol ${many(pictures.length, "photo")}` : "Enrol";
  }

  /** @param {Picture[]} more */
  function add(more) {
    const known = KNOWN[more[0].name];
    if (known && !id.value) [id.value, name.value] = known;
    pictures.push(...more);
    put(told);
    show();
  }

  function show() {
    put(
      chosen,
      ...pictures.map((picture) => {
        const drop = h(
          "button",
          { type: "button", class: "thumb", title: "Leave it out", "aria-label": `Leave out ${picture.name}` },
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
    settle();
  }

  async function run() {
    const subject = `${path}/subjects/${encodeURIComponent(id.value)}`;
    try {
      const body = form({ file: pictures.map((picture) => picture.blob) });
      const query = { quality_gate: gate.box.checked };
      const answer = /** @type {Enrolled} */ (await ask(`${subject}/faces`, { method: "POST", query, body }));
      if (name.value && answer.indexed.length) await call(subject, name.value);
      put(told, ...pictures.map((picture, index) => outcome(picture, index, answer)));
      announce(
        `${many(answer.indexed.length, "face")} enrolled, ${answer.rejected.length + answer.failed.length} refused`,
      );
      pictures = [];
      [id.value, name.value] = ["", ""];
      show();
      onEnrolled();
    } catch (error) {
      put(told, trouble(error));
    }
  }

  settle();
  return { element };
}

/**
 * Give a subject a name, and leave what else it has.
 * @param {string} subject
 * @param {string} name
 */
async function call(subject, name) {
  const { metadata, expires_at } = await ask(subject);
  await ask(subject, { method: "PUT", json: { name, metadata, expires_at } });
}

/**
 * @param {Picture} picture
 * @param {number} index
 * @param {Enrolled} answer
 */
function outcome(picture, index, answer) {
  const indexed = answer.indexed.filter((one) => one.index === index);
  const rejected = answer.rejected.filter((one) => one.index === index);
  const failed = answer.failed.find((one) => one.index === index);
  const frame = framed(picture.url, picture.name);
  frame.mark([
    ...rejected.map((one) => ({ ...one.face, tone: /** @type {import("../drawing.js").Tone} */ ("rejected") })),
    ...indexed.flatMap((one) =>
      one.face ? [{ ...one.face, tone: /** @type {import("../drawing.js").Tone} */ ("match") }] : [],
    ),
  ]);
  const words = [
    indexed.length ? badge("✓ enrolled", "good") : badge("✕ not enrolled", "bad"),
    ...rejected.map((one) => h("p", {}, `Not this face: ${sentence(one.reasons).toLowerCase()}`)),
    failed ? h("p", {}, [failed.problem.title, failed.problem.detail].filter(Boolean).join(": ")) : null,
    !indexed.length && !rejected.length && !failed ? h("p", {}, "There is no face in the picture.") : null,
  ];
  return h("div", { class: "outcome" }, frame.element, h("div", {}, ...words));
}

/** The faces of a subject: their crops, how to erase them, and how to move them to another subject. */

import { requestJson } from "../api.js";
import { attempt, errorNotice, idInput, loading } from "../controls.js";
import { announce, formatTime, h, plural, replaceContent, uniqueId } from "../dom.js";
import { storedImage } from "../stored_image.js";

/**
 * @typedef {import("./subjects.js").Subject} Subject
 * @typedef {{id: string, created_at: string, details: {side?: number, sharpness?: number}}} Face
 * @typedef {{path: string, keepsCrops: boolean, onErased: (what: string, receipt: any) => void, onCurated: () => void}}
 *   Options `path` is the collection's, in the API; `onCurated`: after faces were moved or subjects merged
 */

/**
 * @param {Subject} subject
 * @param {Options} options
 */
export function subjectFaces(subject, { path, keepsCrops, onErased, onCurated }) {
  const label = subject.name ?? subject.id;
  const list = h("div", { class: "stack" });
  const message = h("div");
  const element = h("div", { class: "stack", hidden: true }, list, message);
  /** The ids of the selected faces. @type {Set<string>} */
  const selected = new Set();
  const move = idForm("Move the selected faces to the subject", "Move", async (to) => {
    const moved = await requestJson(`${path}/faces/move`, { method: "POST", json: { faces: [...selected], to } });
    announce(`${plural(moved.faces.length, "face")} moved to ${to}`);
    onCurated();
  });
  const merge = idForm(`Merge ${label} into the subject`, "Merge", async (to) => {
    const into = `${path}/subjects/${encodeURIComponent(to)}/merge`;
    await requestJson(into, { method: "POST", json: { from: [subject.id] } });
    announce(`${label} is merged into ${to}`);
    onCurated();
  });

  /** Offer to move faces once some are selected. */
  function update() {
    move.button.disabled = !selected.size;
    move.button.textContent = selected.size ? `Move ${plural(selected.size, "face")}` : "Move";
  }

  async function load() {
    selected.clear();
    update();
    replaceContent(list, loading("Loading faces …", 1));
    try {
      const { data } = await requestJson(`${path}/subjects/${encodeURIComponent(subject.id)}/faces`);
      const faces = /** @type {Face[]} */ (data);
      replaceContent(
        list,
        faces.length ? h("ul", { class: "faces" }, ...faces.map(row)) : h("p", { class: "hint" }, "No faces yet."),
        faces.length ? move.element : null,
        merge.element,
      );
    } catch (error) {
      replaceContent(list, errorNotice(error, load));
    }
  }

  /** @param {Face} face */
  function row(face) {
    const name = `a face of ${label}`;
    const drop = h("button", { type: "button", class: "quiet", "aria-label": `Erase ${name}` }, "Erase this face");
    drop.addEventListener("click", () =>
      attempt(drop, message, async () => onErased(name, await requestJson(`${path}/faces/${face.id}`, { method: "DELETE" }))),
    );
    const box = h("input", { type: "checkbox" });
    box.addEventListener("change", () => {
      if (box.checked) selected.add(face.id);
      else selected.delete(face.id);
      update();
    });
    const size = face.details.side ? `${Math.round(face.details.side)} px wide, ` : "";
    return h(
      "li",
      { class: "row spread" },
      h(
        "label",
        { class: "check face" },
        box,
        keepsCrops ? storedImage(cropPath(path, face.id), "") : null,
        h("span", {}, `${size}enrolled ${formatTime(face.created_at)}`),
      ),
      drop,
    );
  }

  return { element, load };
}

/**
 * Return the path of the crop that is stored of a face.
 * @param {string} path of the collection
 * @param {string} face
 */
export function cropPath(path, face) {
  return `${path}/faces/${encodeURIComponent(face)}/crop`;
}

/**
 * A form for the id of a subject, with a button that runs `action` and shows its errors.
 * @param {string} label
 * @param {string} verb
 * @param {(id: string) => Promise<void>} action
 */
function idForm(label, verb, action) {
  const input = idInput();
  input.id = uniqueId("subject");
  const button = h("button", { type: "submit" }, verb);
  const message = h("div");
  const element = h(
    "form",
    { class: "id-form" },
    h("label", { for: input.id }, label),
    input,
    button,
    message,
  );
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(button, message, () => action(input.value));
  });
  return { element, button };
}

/** Image input: by file dialog, drag and drop, paste, camera, or an example. */

import { address } from "./api.js";
import { cameraAvailable, takePhoto } from "./camera.js";
import { h, replaceContent, uniqueId } from "./dom.js";

/**
 * @typedef {{name: string, blob: Blob, url: string}} Picture `url` is an object URL; revoke it with `release`
 */

/** The titles of the example images, by file name. */
const EXAMPLE_TITLES = {
  "coffee.jpg": "A cup of coffee",
  "cat.jpg": "A cat",
  "astronaut.jpg": "Eileen Collins, astronaut",
  "hopper.jpg": "Grace Hopper, computer scientist",
  "digits.png": "A string of digits",
};

/**
 * @param {Blob} blob
 * @param {string} [name]
 * @returns {Picture}
 */
export function toPicture(blob, name = blob instanceof File ? blob.name : "image") {
  return { name, blob, url: URL.createObjectURL(blob) };
}

/** @param {Picture | null | undefined} picture */
export function release(picture) {
  if (picture) URL.revokeObjectURL(picture.url);
}

/** @type {Promise<string[]> | undefined} */
let exampleNames;

/** Return the names of the service's example images. @returns {Promise<string[]>} */
function examples() {
  exampleNames ??= fetch(address("web/examples.json")).then((response) => (response.ok ? response.json() : []));
  return exampleNames.catch(() => []);
}

/**
 * @param {string} name
 * @returns {Promise<Picture>}
 */
export async function example(name) {
  const response = await fetch(address(`web/examples/${name}`));
  return toPicture(await response.blob(), name);
}

/** @type {{element: HTMLElement, take: (files: File[]) => void, prefersPaste: () => boolean}[]} */
const pickers = [];
/** @type {typeof pickers[number] | undefined} */
let lastUsed;

/**
 * An input for images.
 * @param {{label: string, multiple?: boolean, examples?: string[], prefersPaste?: () => boolean,
 *   onPictures: (pictures: Picture[]) => void, extra?: HTMLElement}} options `prefersPaste`: whether pasted images go
 *   to this picker before others; `extra`: shown below the examples
 */
export function picker({ label, multiple = false, examples: exampleFiles = [], prefersPaste = () => true, onPictures, extra }) {
  const id = uniqueId("choose");
  const refused = h("p", { class: "hint warn", role: "status" });
  const input = h("input", { type: "file", accept: "image/*", multiple, id, class: "visually-hidden" });
  const take = (/** @type {File[]} */ files) => {
    const fit = files.filter((file) => file.type.startsWith("image/"));
    refused.textContent = fit.length < files.length || files.length === 0 ? "Only image files are accepted." : "";
    if (fit.length) onPictures((multiple ? fit : fit.slice(0, 1)).map((file) => toPicture(file)));
  };
  input.addEventListener("change", () => {
    take([...(input.files ?? [])]);
    input.value = ""; // the same file can be chosen again
  });
  const camera = h("button", { type: "button" }, "Camera");
  camera.addEventListener("click", async () => {
    const taken = await takePhoto();
    if (taken) take([taken]);
    camera.focus();
  });
  const shelf = h("div", { class: "shelf" });
  const element = h(
    "div",
    { class: "picker", role: "group", "aria-label": label },
    h("p", { class: "picker-title" }, label),
    h(
      "div",
      { class: "row" },
      input,
      h("label", { for: id, class: "button primary" }, multiple ? "Choose images" : "Choose an image"),
      cameraAvailable() ? camera : null,
    ),
    h("p", { class: "hint" }, "or drag and drop, or paste"),
    shelf,
    extra,
    refused,
  );
  const self = { element, take, prefersPaste };
  pickers.push(self);
  for (const event of ["pointerdown", "focusin"]) element.addEventListener(event, () => (lastUsed = self));
  listenForDrops(element, take);
  if (exampleFiles.length) showExamples(shelf, exampleFiles, (picture) => onPictures([picture]));
  return { element };
}

/**
 * Accept files dropped on an element.
 * @param {HTMLElement} element
 * @param {(files: File[]) => void} take
 */
function listenForDrops(element, take) {
  element.addEventListener("dragover", () => element.classList.add("over"));
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    element.classList.remove("over");
    take([...(event.dataTransfer?.files ?? [])]);
  });
}

/**
 * Show a button for each of these example images that the service has.
 * @param {HTMLElement} container
 * @param {string[]} names
 * @param {(picture: Picture) => void} onPicture
 */
async function showExamples(container, names, onPicture) {
  const available = await examples();
  const buttons = names
    .filter((name) => available.includes(name))
    .map((name) => {
      const title = EXAMPLE_TITLES[/** @type {keyof typeof EXAMPLE_TITLES} */ (name)] ?? name;
      return h(
        "button",
        { type: "button", class: "thumb", title, onclick: async () => onPicture(await example(name)) },
        h("img", { src: address(`web/examples/${name}`), alt: title, width: 48, height: 48 }),
      );
    });
  if (buttons.length) replaceContent(container, h("span", { class: "hint" }, "Examples:"), ...buttons);
}

/** @returns {typeof pickers[number] | undefined} the picker for images that are pasted, or dropped outside of pickers */
function defaultPicker() {
  const visible = pickers.filter((picker) => picker.element.isConnected && picker.element.checkVisibility());
  const preferred = visible.filter((picker) => picker.prefersPaste());
  if (lastUsed && preferred.includes(lastUsed)) return lastUsed;
  return preferred[0] ?? (lastUsed && visible.includes(lastUsed) ? lastUsed : visible[0]);
}

/** Pass pasted images, and images dropped outside of pickers, to the default picker. */
export function listenForPastedPictures() {
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) defaultPicker()?.take(files);
  });
  // Without this, the browser would open an image dropped outside of a picker in place of the page.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) defaultPicker()?.take(files);
  });
}

/** How pictures come into the page: chosen, dropped, pasted, photographed, or one of the examples. */

import { address } from "./api.js";
import { hasCamera, photograph } from "./camera.js";
import { h, put, uniqueId } from "./dom.js";

/**
 * @typedef {{name: string, blob: Blob, url: string}} Picture `url` is of the page's own; give it back by `release`
 */

/** What each example shows, by the name of its file. */
const SHOWN = {
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
export function pictureOf(blob, name = blob instanceof File ? blob.name : "picture") {
  return { name, blob, url: URL.createObjectURL(blob) };
}

/** @param {Picture | null | undefined} picture */
export function release(picture) {
  if (picture) URL.revokeObjectURL(picture.url);
}

/** @type {Promise<string[]> | undefined} */
let offered;

/** Names of the examples that this service has. @returns {Promise<string[]>} */
function examples() {
  offered ??= fetch(address("web/examples.json")).then((response) => (response.ok ? response.json() : []));
  return offered.catch(() => []);
}

/**
 * @param {string} name
 * @returns {Promise<Picture>}
 */
export async function example(name) {
  const response = await fetch(address(`web/examples/${name}`));
  return pictureOf(await response.blob(), name);
}

/** @type {{element: HTMLElement, take: (files: File[]) => void, wants: () => boolean}[]} */
const pickers = [];
/** @type {typeof pickers[number] | undefined} */
let touched;

/**
 * A place where pictures come in.
 * @param {{label: string, multiple?: boolean, examples?: string[], wants?: () => boolean,
 *   onPictures: (pictures: Picture[]) => void, extra?: HTMLElement}} options `wants`: whether a pasted picture is rather
 *   for this one; `extra`: shown below the examples
 */
export function picker({ label, multiple = false, examples: wanted = [], wants = () => true, onPictures, extra }) {
  const id = uniqueId("choose");
  const refused = h("p", { class: "hint warn", role: "status" });
  const input = h("input", { type: "file", accept: "image/*", multiple, id, class: "heard" });
  const take = (/** @type {File[]} */ files) => {
    const fit = files.filter((file) => file.type.startsWith("image/"));
    refused.textContent = fit.length < files.length || files.length === 0 ? "That was not a picture." : "";
    if (fit.length) onPictures((multiple ? fit : fit.slice(0, 1)).map((file) => pictureOf(file)));
  };
  input.addEventListener("change", () => {
    take([...(input.files ?? [])]);
    input.value = ""; // the same file can be chosen again
  });
  const camera = h("button", { type: "button" }, "Camera");
  camera.addEventListener("click", async () => {
    const taken = await photograph();
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
      h("label", { for: id, class: "button primary" }, multiple ? "Choose pictures" : "Choose a picture"),
      hasCamera() ? camera : null,
    ),
    h("p", { class: "hint" }, "or drop, or paste"),
    shelf,
    extra,
    refused,
  );
  const self = { element, take, wants };
  pickers.push(self);
  for (const event of ["pointerdown", "focusin"]) element.addEventListener(event, () => (touched = self));
  listenForDrops(element, take);
  if (wanted.length) offerExamples(shelf, wanted, (picture) => onPictures([picture]));
  return { element };
}

/**
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
 * @param {HTMLElement} shelf
 * @param {string[]} wanted
 * @param {(picture: Picture) => void} onPicture
 */
async function offerExamples(shelf, wanted, onPicture) {
  const there = await examples();
  const buttons = wanted
    .filter((name) => there.includes(name))
    .map((name) => {
      const title = SHOWN[/** @type {keyof typeof SHOWN} */ (name)] ?? name;
      return h(
        "button",
        { type: "button", class: "thumb", title, onclick: async () => onPicture(await example(name)) },
        h("img", { src: address(`web/examples/${name}`), alt: title, width: 48, height: 48 }),
      );
    });
  if (buttons.length) put(shelf, h("span", { class: "hint" }, "Try one:"), ...buttons);
}

/** @returns {typeof pickers[number] | undefined} where a picture goes that was not given to any picker */
function nearest() {
  const seen = pickers.filter((picker) => picker.element.isConnected && picker.element.checkVisibility());
  const waiting = seen.filter((picker) => picker.wants());
  if (touched && waiting.includes(touched)) return touched;
  return waiting[0] ?? (touched && seen.includes(touched) ? touched : seen[0]);
}

/** Pictures that are pasted, or dropped beside a picker, go to the picker that waits for one. */
export function listenForPictures() {
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) nearest()?.take(files);
  });
  // A picture that misses the picker must not replace the page.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) nearest()?.take(files);
  });
}

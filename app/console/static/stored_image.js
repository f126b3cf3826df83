/** Images that the API returns with a key only. They load when they come into view, a few at a time. */

import { Problem, call, isFinal } from "./api.js";
import { h } from "./dom.js";

const AT_ONCE = 4; // fewer than the connections of a browser to one host
const RETRY_MS = 5000;

/** @type {(() => Promise<void>)[]} */
const queue = [];
let running = 0;
/** @type {WeakMap<Element, () => Promise<void>>} */
const loaders = new WeakMap();

const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const load = loaders.get(target);
      if (!isIntersecting || !load) continue;
      observer.unobserve(target);
      queue.push(load);
      next();
    }
  },
  { rootMargin: "200px" },
);

function next() {
  while (running < AT_ONCE && queue.length) {
    running += 1;
    const load = /** @type {() => Promise<void>} */ (queue.shift());
    load().finally(() => {
      running -= 1;
      next();
    });
  }
}

/**
 * An image of the API. If it cannot be loaded, a text says why.
 * @param {string} path
 * @param {string} alt
 */
export function storedImage(path, alt) {
  const note = h("span", { class: "hint", hidden: true });
  const image = h("img", { alt, draggable: "false" });
  const element = h("span", { class: "shot" }, image, note);
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));

  async function load() {
    try {
      image.src = URL.createObjectURL(await (await call(path)).blob());
      note.hidden = true;
    } catch (error) {
      note.hidden = false;
      const isMissing = error instanceof Problem && error.status === 404;
      note.textContent = isMissing ? "No image" : "Image not loaded";
      if (error instanceof Problem) note.title = [error.title, error.detail].filter(Boolean).join(": ");
      if (!isFinal(error)) setTimeout(() => observer.observe(element), RETRY_MS);
    }
  }

  loaders.set(element, load);
  observer.observe(element);
  return element;
}

/** A placeholder of the same size where no image is stored. */
export function noImage() {
  return h("span", { class: "shot" }, h("span", { class: "hint" }, "No image"));
}

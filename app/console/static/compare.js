/** Two images of one size, one over the other, with a draggable edge between them. */

import { h } from "./dom.js";

/**
 * @param {{url: string, name: string}} before left of the edge
 * @param {{url: string, name: string}} after right of it
 */
export function comparison(before, after) {
  const under = h("img", { src: before.url, alt: before.name, draggable: "false" });
  const over = h("img", { src: after.url, alt: after.name, draggable: "false" });
  const edge = h("span", { class: "edge", "aria-hidden": "true" });
  const left = h("span", { class: "side-name left", "aria-hidden": "true" }, before.name);
  const right = h("span", { class: "side-name right", "aria-hidden": "true" }, after.name);
  const picture = h("div", { class: "compared" }, under, over, edge, left, right);
  const input = h("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 0.5,
    value: 50,
    "aria-label": `Edge between ${before.name} and ${after.name}`,
  });
  const move = () => {
    const at = `${input.value}%`;
    over.style.clipPath = `inset(0 0 0 ${at})`;
    edge.style.left = at;
    input.style.setProperty("--at", at);
    input.setAttribute("aria-valuetext", `${Math.round(input.valueAsNumber)} % ${before.name}`);
  };
  input.addEventListener("input", move);
  const drag = (/** @type {PointerEvent} */ event) => {
    const box = picture.getBoundingClientRect();
    input.value = String(((event.clientX - box.left) / box.width) * 100);
    move();
  };
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    drag(event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (picture.hasPointerCapture(event.pointerId)) drag(event);
  });
  under.addEventListener("load", () => picture.classList.toggle("small", under.naturalWidth < 300));
  move();
  return {
    element: h("div", { class: "compare" }, picture, input),
    /** @param {{url: string, name: string}} next */
    setBefore(next) {
      under.src = next.url;
      under.alt = left.textContent = next.name;
    },
  };
}

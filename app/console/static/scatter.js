/** Points over two axes, the horizontal one logarithmic: drawn as SVG, and told as a table to those who do not see it. */

import { h, s } from "./dom.js";

/** @typedef {{name: string, x: number, y: number, href: string}} Point */
/** @typedef {{x: string, y: string, writeX: (value: number) => string, writeY: (value: number) => string, points: Point[]}} Plot */

const HEIGHT = 320;
const MARGIN = { left: 64, right: 24, top: 16, bottom: 48 };

/**
 * As wide as there is room, so that letters keep their size.
 * @param {Plot} plot
 */
export function scatter(plot) {
  const element = h("div", { class: "scatter" });
  new ResizeObserver(() =>
    element.replaceChildren(draw(plot, Math.max(280, element.clientWidth)), table(plot)),
  ).observe(element);
  return element;
}

/**
 * Numbers between two ends that are 1, 2 or 5 times a power of ten.
 * @param {number} low
 * @param {number} high
 */
function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
  }
  return found.filter((value) => value >= low && value <= high);
}

/**
 * Round numbers between two ends, some four to eight of them.
 * @param {number} low
 * @param {number} high
 */
function rounds(low, high) {
  const rough = (high - low) / 8;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((one) => one >= rough) ?? rough;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

/**
 * @param {Plot} plot
 * @param {number} width
 */
function draw({ x, y, writeX, writeY, points }, width) {
  const [lowX, highX] = [Math.min(...points.map((one) => one.x)) / 1.6, Math.max(...points.map((one) => one.x)) * 1.6];
  const spread = Math.max(0.01, Math.max(...points.map((one) => one.y)) - Math.min(...points.map((one) => one.y)));
  const lowY = Math.max(0, Math.min(...points.map((one) => one.y)) - spread * 0.25);
  const highY = Math.min(1, Math.max(...points.map((one) => one.y)) + spread * 0.25);
  const right = width - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const atX = (/** @type {number} */ value) =>
    MARGIN.left + (Math.log(value / lowX) / Math.log(highX / lowX)) * (right - MARGIN.left);
  const atY = (/** @type {number} */ value) => bottom - ((value - lowY) / (highY - lowY)) * (bottom - MARGIN.top);
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "group", "aria-label": `${y} over ${x}` },
    ...decades(lowX, highX).map((value) =>
      s(
        "g",
        { class: "grid" },
        s("line", { x1: atX(value), x2: atX(value), y1: MARGIN.top, y2: bottom }),
        s("text", { x: atX(value), y: bottom + 18, "text-anchor": "middle" }, writeX(value)),
      ),
    ),
    ...rounds(lowY, highY).map((value) =>
      s(
        "g",
        { class: "grid" },
        s("line", { x1: MARGIN.left, x2: right, y1: atY(value), y2: atY(value) }),
        s("text", { x: MARGIN.left - 8, y: atY(value) + 4, "text-anchor": "end" }, writeY(value)),
      ),
    ),
    s("text", { class: "axis", x: right, y: HEIGHT - 6, "text-anchor": "end" }, `${x}, logarithmic →`),
    s("text", { class: "axis", x: 4, y: MARGIN.top - 4 }, `↑ ${y}`),
    ...labelled(
      points.map((one) => ({ ...one, left: atX(one.x), top: atY(one.y) })),
      right,
    ).map((one) =>
      s(
        "a",
        { href: one.href, "aria-label": `${one.name}: ${y} ${writeY(one.y)}, ${x} ${writeX(one.x)}` },
        s("circle", { cx: one.left, cy: one.top, r: 6 }),
        s(
          "text",
          { x: one.left + (one.end ? -11 : 11), y: one.label, "text-anchor": one.end ? "end" : "start" },
          one.text,
        ),
      ),
    ),
  );
}

/**
 * Names beside their points, on the side where there is room, and over nothing that is there already.
 * @template {Point & {left: number, top: number}} T
 * @param {T[]} points
 * @param {number} right
 * @returns {(T & {text: string, label: number, end: boolean})[]}
 */
function labelled(points, right) {
  const taken = points.map((one) => ({ from: one.left - 7, to: one.left + 7, y: one.top + 4 }));
  const shared = sharedEnd(points.map((one) => one.name));
  return points.map((one) => {
    const text = one.name.slice(0, one.name.length - shared.length);
    const width = text.length * 7.5;
    const places = [0, 15, -15, 30, -30].flatMap((shift) => [
      { from: one.left + 9, to: one.left + 9 + width, y: one.top + 4 + shift, end: false },
      { from: one.left - 9 - width, to: one.left - 9, y: one.top + 4 + shift, end: true },
    ]);
    const free = (/** @type {typeof places[number]} */ place) =>
      place.to <= right + MARGIN.right &&
      place.from >= MARGIN.left &&
      !taken.some((other) => place.from < other.to && place.to > other.from && Math.abs(other.y - place.y) < 14);
    const place = places.find(free) ?? places[0];
    taken.push(place);
    return { ...one, text, label: place.y, end: place.end };
  });
}

/**
 * What all names end with, from a hyphen on: what tells nothing apart need not be read.
 * @param {string[]} names
 */
function sharedEnd(names) {
  const end = names[0]?.match(/-[^-]+$/)?.[0] ?? "";
  return names.length > 1 && names.every((name) => name.endsWith(end)) ? end : "";
}

/** @param {Plot} plot */
function table({ x, y, writeX, writeY, points }) {
  return h(
    "table",
    { class: "heard" },
    h("caption", {}, `${y} over ${x}`),
    h(
      "tbody",
      {},
      ...points.map((one) =>
        h("tr", {}, h("th", { scope: "row" }, one.name), h("td", {}, writeX(one.x)), h("td", {}, writeY(one.y))),
      ),
    ),
  );
}

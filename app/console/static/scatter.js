/** A scatter plot with a logarithmic x axis, as SVG and, for screen readers, as a table. */

import { h, s } from "./dom.js";

/** @typedef {{name: string, x: number, y: number, href: string}} Point */
/** @typedef {{x: string, y: string, writeX: (value: number) => string, writeY: (value: number) => string, points: Point[]}} Plot */

const HEIGHT = 320;
const MARGIN = { left: 64, right: 24, top: 16, bottom: 48 };

/**
 * Return a plot that fills the available width; its text keeps its size.
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
 * Return the numbers in a range that are 1, 2 or 5 times a power of ten.
 * @param {number} low
 * @param {number} high
 */
function decades(low, high) {
  const values = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of [1, 2, 5]) values.push(digit * 10 ** power);
  }
  return values.filter((value) => value >= low && value <= high);
}

/**
 * Return about four to eight round numbers in a range.
 * @param {number} low
 * @param {number} high
 */
function roundNumbers(low, high) {
  const rough = (high - low) / 8;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((item) => item >= rough) ?? rough;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

/**
 * @param {Plot} plot
 * @param {number} width
 */
function draw({ x, y, writeX, writeY, points }, width) {
  const [lowX, highX] = [Math.min(...points.map((item) => item.x)) / 1.6, Math.max(...points.map((item) => item.x)) * 1.6];
  const spread = Math.max(0.01, Math.max(...points.map((item) => item.y)) - Math.min(...points.map((item) => item.y)));
  const lowY = Math.max(0, Math.min(...points.map((item) => item.y)) - spread * 0.25);
  const highY = Math.min(1, Math.max(...points.map((item) => item.y)) + spread * 0.25);
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
    ...roundNumbers(lowY, highY).map((value) =>
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
      points.map((item) => ({ ...item, left: atX(item.x), top: atY(item.y) })),
      right,
    ).map((item) =>
      s(
        "a",
        { href: item.href, "aria-label": `${item.name}: ${y} ${writeY(item.y)}, ${x} ${writeX(item.x)}` },
        s("circle", { cx: item.left, cy: item.top, r: 6 }),
        s(
          "text",
          { x: item.left + (item.end ? -11 : 11), y: item.label, "text-anchor": item.end ? "end" : "start" },
          item.text,
        ),
      ),
    ),
  );
}

/**
 * Return the points with their labels' positions, left or right of the point and without overlaps.
 * @template {Point & {left: number, top: number}} T
 * @param {T[]} points
 * @param {number} right
 * @returns {(T & {text: string, label: number, end: boolean})[]}
 */
function labelled(points, right) {
  const taken = points.map((item) => ({ from: item.left - 7, to: item.left + 7, y: item.top + 4 }));
  const shared = sharedEnd(points.map((item) => item.name));
  return points.map((item) => {
    const text = item.name.slice(0, item.name.length - shared.length);
    const width = text.length * 7.5;
    const places = [0, 15, -15, 30, -30].flatMap((shift) => [
      { from: item.left + 9, to: item.left + 9 + width, y: item.top + 4 + shift, end: false },
      { from: item.left - 9 - width, to: item.left - 9, y: item.top + 4 + shift, end: true },
    ]);
    const free = (/** @type {typeof places[number]} */ place) =>
      place.to <= right + MARGIN.right &&
      place.from >= MARGIN.left &&
      !taken.some((other) => place.from < other.to && place.to > other.from && Math.abs(other.y - place.y) < 14);
    const place = places.find(free) ?? places[0];
    taken.push(place);
    return { ...item, text, label: place.y, end: place.end };
  });
}

/**
 * Return the common ending of all names, from a hyphen on: labels leave it out.
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
    { class: "visually-hidden" },
    h("caption", {}, `${y} over ${x}`),
    h(
      "tbody",
      {},
      ...points.map((item) =>
        h("tr", {}, h("th", { scope: "row" }, item.name), h("td", {}, writeX(item.x)), h("td", {}, writeY(item.y))),
      ),
    ),
  );
}

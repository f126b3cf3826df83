/** An image with annotations: labelled boxes and the five landmarks of a face. */

import { h } from "./dom.js";

/**
 * @typedef {{left_eye: number[], right_eye: number[], nose: number[], left_mouth: number[], right_mouth: number[]}} Points
 * @typedef {"accent" | "match" | "unknown" | "rejected"} Tone
 * @typedef {{box: number[], label?: string, tone?: Tone, landmarks?: Points}} Mark `box` is (left, top, right, bottom),
 *   in pixels of the upright image
 */

// Light colours with a dark outline, visible on any image. The dashes differ, too, for users who cannot see colours.
/** @type {Record<Tone, {colour: string, dash: number[]}>} */
const TONES = {
  accent: { colour: "#5fe0f5", dash: [] },
  match: { colour: "#5df0a0", dash: [] },
  unknown: { colour: "#ffc766", dash: [8, 5] },
  rejected: { colour: "#d8dde2", dash: [2, 4] },
};

/**
 * Return an image with a canvas over it, and a function that sets its marks.
 * @param {string} url
 * @param {string} alt
 */
export function annotatedImage(url, alt) {
  const image = h("img", { src: url, alt, draggable: "false" });
  const canvas = h("canvas", { "aria-hidden": "true" });
  const element = h("div", { class: "framed" }, image, canvas);
  /** @type {Mark[]} */
  let marks = [];
  const paint = () => draw(canvas, image, marks);
  image.addEventListener("load", paint);
  image.addEventListener("error", () => element.classList.add("unseen"));
  new ResizeObserver(paint).observe(image);
  return {
    element,
    image,
    /** @param {Mark[]} next */
    mark(next) {
      marks = next;
      paint();
    },
  };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {HTMLImageElement} image
 * @param {Mark[]} marks
 */
function draw(canvas, image, marks) {
  const { clientWidth: width, clientHeight: height, naturalWidth } = image;
  const context = canvas.getContext("2d");
  if (!context || !width || !naturalWidth) return;
  const density = devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  context.scale(density, density);
  const scale = width / naturalWidth;
  for (const mark of marks) drawMark(context, mark, scale, { width, height });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Mark} mark
 * @param {number} scale
 * @param {{width: number, height: number}} size of the image on screen
 */
function drawMark(context, { box, label, tone = "accent", landmarks }, scale, size) {
  const { colour, dash } = TONES[tone];
  const [left, top, right, bottom] = box.map((value) => value * scale);
  context.lineJoin = "round";
  for (const [style, line, dashes] of /** @type {[string, number, number[]][]} */ ([
    ["rgb(0 0 0 / 55%)", 4.5, []],
    [colour, 2, dash],
  ])) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.setLineDash(dashes);
    context.beginPath();
    context.roundRect(left, top, right - left, bottom - top, 4);
    context.stroke();
  }
  context.setLineDash([]);
  for (const [x, y] of Object.values(landmarks ?? {})) {
    context.beginPath();
    context.arc(x * scale, y * scale, 2.6, 0, 2 * Math.PI);
    context.fillStyle = colour;
    context.strokeStyle = "rgb(0 0 0 / 65%)";
    context.lineWidth = 1.5;
    context.stroke();
    context.fill();
  }
  if (label) drawLabel(context, label, colour, { left, top, bottom }, size);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} label
 * @param {string} colour
 * @param {{left: number, top: number, bottom: number}} box
 * @param {{width: number, height: number}} picture
 */
function drawLabel(context, label, colour, { left, top, bottom }, { width, height }) {
  context.font = "600 12px system-ui, sans-serif";
  const chip = { width: context.measureText(label).width + 10, height: 18 };
  const x = Math.max(0, Math.min(left - 1, width - chip.width));
  const [above, below] = [top - chip.height - 3, bottom + 3];
  // Above the box if it fits, else below, else inside.
  const y = above >= 0 ? above : below + chip.height <= height ? below : top + 3;
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(x, y, chip.width, chip.height, 4);
  context.fill();
  context.fillStyle = "#0b1214";
  context.textBaseline = "middle";
  context.fillText(label, x + 5, y + chip.height / 2 + 0.5);
}

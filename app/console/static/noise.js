/** Add white noise to an image: always the same noise, so that results differ by its strength only. */

import { h } from "./dom.js";

/**
 * Return a generator of numbers in 0..1: mulberry32, by Tommy Ettinger (public domain).
 * @param {number} seed
 */
function uniform(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Gaussian numbers of mean 0 and deviation 1, by Box and Muller.
 * @param {number} seed
 */
export function gaussian(seed) {
  const draw = uniform(seed);
  /** @type {number | undefined} */
  let spare;
  return () => {
    if (spare !== undefined) {
      const last = spare;
      spare = undefined;
      return last;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - draw()));
    const angle = 2 * Math.PI * draw();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

/**
 * Return an image's pixels, scaled down to at most `most` pixels and converted to grey if `grey`.
 * @param {Blob} blob
 * @param {number} most
 * @param {boolean} grey
 */
export async function pixels(blob, most, grey) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, Math.sqrt(most / (bitmap.width * bitmap.height)));
  const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.fillStyle = "white"; // the service's background for transparent pixels, too
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const data = context.getImageData(0, 0, canvas.width, canvas.height);
  if (grey) convertToGrey(data.data);
  return { data, scaled: scale < 1 };
}

/**
 * Convert to ITU-R BT.601's luma, like Pillow's mode L.
 * @param {Uint8ClampedArray} values
 */
function convertToGrey(values) {
  for (let i = 0; i < values.length; i += 4) {
    values.fill(Math.round(0.299 * values[i] + 0.587 * values[i + 1] + 0.114 * values[i + 2]), i, i + 3);
  }
}

/**
 * Return an image with added noise of this standard deviation in grey levels; values are clipped to 0..255.
 * @param {ImageData} clean
 * @param {number} sigma
 * @param {boolean} grey the same noise in all three channels
 */
export function noisy(clean, sigma, grey) {
  const next = gaussian(1);
  const values = new Uint8ClampedArray(clean.data);
  for (let i = 0; i < values.length; i += 4) {
    const shared = grey ? next() : 0;
    for (let channel = 0; channel < 3; channel += 1) values[i + channel] += sigma * (grey ? shared : next());
  }
  return new ImageData(values, clean.width, clean.height);
}

/**
 * @param {ImageData} data
 * @returns {Promise<Blob>} a PNG
 */
export function png(data) {
  const canvas = h("canvas", { width: data.width, height: data.height });
  canvas.getContext("2d")?.putImageData(data, 0, 0);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the browser could not encode a PNG"))), "image/png");
  });
}

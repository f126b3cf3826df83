/** Descriptions of the reason codes in the API's responses. */

/** @type {Record<string, string>} */
const REASONS = {
  SMALL_BOUNDING_BOX: "the face is too small",
  LOW_SHARPNESS: "the face is blurred",
  EXTREME_POSE: "the face is turned too far to the side",
  LOW_BRIGHTNESS: "the face is too dark",
  LOW_CONFIDENCE: "it may not be a face",
  EXCEEDS_MAX_FACES: "only the most prominent face of an image is enrolled, and this is another one",
  BEYOND_CALIBRATION: "the requested error rate is below the calibration's range: a person must review the candidates",
  SEVERAL_PEOPLE: "photos were left out whose faces look like another person's",
  NOT_CALIBRATED: "there is no calibrated threshold for this kind of image",
};

/**
 * Return the description of a reason code.
 * @param {string} code
 * @returns {string}
 */
export function describeReason(code) {
  return REASONS[code] ?? code.toLowerCase().replaceAll("_", " ");
}

/**
 * Return several reasons as one sentence: "The face is too small; the face is blurred."
 * @param {string[]} codes
 */
export function describeReasons(codes) {
  const text = codes.map(describeReason).join("; ");
  return text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "";
}

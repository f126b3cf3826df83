/** What the service says in codes, in words. */

/** @type {Record<string, string>} */
const REASONS = {
  SMALL_BOUNDING_BOX: "the face is too small",
  LOW_SHARPNESS: "the face is blurred",
  EXTREME_POSE: "the face is turned too far away",
  LOW_BRIGHTNESS: "the face is too dark",
  LOW_CONFIDENCE: "it may not be a face at all",
  EXCEEDS_MAX_FACES: "the picture has more prominent faces, and only the most prominent is enrolled",
  BEYOND_CALIBRATION: "so few false alarms were never counted for so many faces: a person has to look",
  NOT_CALIBRATED: "for this kind of picture nobody has counted which distance means the same",
};

/**
 * @param {string} code
 * @returns {string}
 */
export function reason(code) {
  return REASONS[code] ?? code.toLowerCase().replaceAll("_", " ");
}

/**
 * Several reasons as one sentence: "The face is too small, and it is blurred."
 * @param {string[]} codes
 */
export function sentence(codes) {
  const text = codes.map(reason).join("; ");
  return text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "";
}

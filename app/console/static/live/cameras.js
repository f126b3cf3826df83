/** The cameras of a collection's latest sightings, as a filter. */

import { Latest, requestJson } from "../api.js";
import { errorNotice, loading } from "../controls.js";
import { count, formatClock, h, plural, replaceContent, replaceRows } from "../dom.js";
import { polling } from "../polling.js";

/** @typedef {import("./sightings.js").Sighting} Sighting */

const EVERY_MS = 10_000;
const LIMIT = 500;
const HOURS = 24;

/** @param {{onSelect: (camera: string) => void}} options `camera` is empty for all of them */
export function cameras({ onSelect }) {
  let collection = "";
  let selected = "";
  const latest = new Latest();
  const list = h("ul", { class: "cameras", "aria-label": "Cameras" });
  const hint = h("p", { class: "hint" });
  const problem = h("div");
  const element = h("div", { class: "stack" }, problem, list, hint);
  const poll = polling(EVERY_MS, load, (error) => replaceContent(problem, errorNotice(error, poll.now)));
  /** @type {Map<string, ReturnType<typeof cameraButton>>} */
  const buttons = new Map();

  async function load() {
    if (!collection) return;
    const since = new Date(Date.now() - HOURS * 3_600_000).toISOString();
    const query = { collection, since, limit: LIMIT, newest_first: true };
    const answer = await requestJson("sightings", { query, signal: latest.next() });
    replaceContent(problem);
    show(answer.data);
  }

  /** @param {Sighting[]} sightings newest first */
  function show(sightings) {
    /** @type {Map<string, Sighting[]>} */
    const byCamera = new Map(selected ? [[selected, []]] : []);
    for (const sighting of sightings) {
      const seen = byCamera.get(sighting.camera);
      if (seen) seen.push(sighting);
      else byCamera.set(sighting.camera, [sighting]);
    }
    const names = ["", ...[...byCamera.keys()].sort()];
    for (const name of buttons.keys()) {
      if (!names.includes(name)) buttons.delete(name);
    }
    for (const name of names) {
      let button = buttons.get(name);
      if (!button) buttons.set(name, (button = cameraButton(name, () => select(name))));
      button.describe(name ? (byCamera.get(name) ?? []) : sightings);
      button.pressed = name === selected;
    }
    replaceRows(list, names.map((name) => /** @type {any} */ (buttons.get(name)).element));
    hint.textContent =
      sightings.length < LIMIT ? `Seen in the last ${HOURS} hours.` : `Of the newest ${count(LIMIT)} sightings.`;
  }

  /** @param {string} camera */
  function select(camera) {
    selected = camera;
    for (const [name, button] of buttons) button.pressed = name === camera;
    onSelect(camera);
  }

  return {
    element,
    poll,
    /** @param {string} name of the collection */
    setCollection(name) {
      collection = name;
      selected = "";
      buttons.clear();
      replaceContent(hint);
      replaceContent(list, h("li", {}, loading("Loading cameras …", 1)));
      poll.now();
    },
  };
}

/**
 * @param {string} name empty for all cameras
 * @param {() => void} onClick
 */
function cameraButton(name, onClick) {
  const facts = h("span", { class: "hint" });
  const button = h(
    "button",
    { type: "button", class: "camera-choice", onclick: onClick },
    h("strong", {}, name || "All cameras"),
    facts,
  );
  return {
    element: h("li", {}, button),
    /** @param {Sighting[]} sightings newest first */
    describe(sightings) {
      const unknown = sightings.filter((sighting) => sighting.subject_id === null).length;
      facts.textContent = sightings.length
        ? `${plural(sightings.length, "sighting")}, ${count(unknown)} unknown · last ${formatClock(sightings[0].ended_at)}`
        : "no sightings";
    },
    /** @param {boolean} value */
    set pressed(value) {
      button.setAttribute("aria-pressed", String(value));
    },
  };
}

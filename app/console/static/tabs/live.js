/** Sightings and alerts as they arrive. `#live/doors` shows the sightings of the collection “doors”. */

import { Problem, requestJson } from "../api.js";
import { emptyState, errorNotice, field, idInput, loading, segmented } from "../controls.js";
import { h, replaceContent } from "../dom.js";
import { erasures } from "../gallery/erasures.js";
import { alerts } from "../live/alerts.js";
import { cameras } from "../live/cameras.js";
import { rules } from "../live/rules.js";
import { openSighting } from "../live/sighting_dialog.js";
import { sightings } from "../live/sightings.js";

const PEOPLE = [
  { value: "", label: "Everyone" },
  { value: "false", label: "Subjects" },
  { value: "true", label: "Unknown" },
];

/** @returns {import("../app.js").Tab} */
export default function live() {
  const receipts = erasures();
  const place = h("div", { class: "stack" });
  const chooser = h("div");
  const erased = (/** @type {string} */ what, /** @type {any} */ receipt) => {
    receipts.add(what, receipt);
    for (const part of [seen, cameraList, alertList]) part.poll.now();
  };
  const seen = sightings({ onOpen: (sighting) => openSighting(sighting, erased) });
  const people = segmented("People", PEOPLE, "", (value) => seen.choose({ unknown: /** @type {any} */ (value) }));
  const cameraList = cameras({ onSelect: (camera) => seen.choose({ camera }) });
  const ruleList = rules({ onChanged: () => alertList.poll.now() });
  const alertList = alerts({
    rules: ruleList,
    onAlert: () => seen.poll.now(),
    onOpen: async (id) => openSighting(await requestJson(`sightings/${encodeURIComponent(id)}`), erased),
  });
  const parts = [seen.poll, cameraList.poll, alertList];
  const view = h(
    "div",
    { class: "split" },
    h(
      "div",
      { class: "side" },
      h("section", { class: "panel", "aria-label": "Filter" }, chooser, cameraList.element, people.element),
      h(
        "section",
        { class: "panel", "aria-label": "Alerts" },
        h("div", { class: "row spread" }, h("h2", {}, "Alerts"), alertList.state),
        alertList.element,
        ruleList.element,
      ),
    ),
    h(
      "div",
      { class: "stage" },
      h("section", { class: "panel", "aria-label": "Sightings" }, h("h2", {}, "Sightings"), seen.element),
      receipts.element,
    ),
  );
  /** The collection that is shown. */
  let shown = "";
  let visible = false;

  /** @param {string} requested name of a collection, or empty */
  async function open(requested) {
    if (!place.hasChildNodes()) replaceContent(place, loading("Loading collections …"));
    try {
      const names = await collectionNames();
      const name = requested || shown || names?.[0] || "";
      if (!name && names) {
        replaceContent(place, noCollections());
        return;
      }
      replaceContent(chooser, names ? select(names, name) : input(name));
      if (view.parentElement !== place) replaceContent(place, view);
      if (name) choose(name);
      setActive(visible);
    } catch (error) {
      replaceContent(place, errorNotice(error, () => open(requested)));
    }
  }

  /** @param {string} name */
  function choose(name) {
    if (name === shown) return;
    shown = name;
    people.value = "";
    cameraList.setCollection(name);
    ruleList.setCollection(name);
    seen.choose({ collection: name, camera: "", unknown: "" });
  }

  /** @param {boolean} value */
  function setActive(value) {
    for (const part of parts) part.active = value;
  }

  return {
    title: "Live",
    lead: "Sightings of people by the cameras, and alerts about them.",
    element: place,
    show(name) {
      visible = true;
      open(name);
    },
    hide() {
      visible = false;
      setActive(false);
    },
  };
}

/**
 * @returns {Promise<string[] | null>} null if the key may not list collections: it has the scope `review` only
 */
async function collectionNames() {
  try {
    const { data } = await requestJson("collections", { query: { limit: 1000 } });
    return data.map((/** @type {{name: string}} */ collection) => collection.name);
  } catch (error) {
    if (error instanceof Problem && error.status === 403) return null;
    throw error;
  }
}

/** @param {string} name */
function go(name) {
  location.hash = `#live/${encodeURIComponent(name)}`;
}

/**
 * @param {string[]} names
 * @param {string} name
 */
function select(names, name) {
  const all = names.includes(name) ? names : [name, ...names];
  const control = h("select", { value: name }, ...all.map((item) => h("option", { value: item }, item)));
  control.addEventListener("change", () => go(control.value));
  return field("Collection", control);
}

/** @param {string} name */
function input(name) {
  const control = idInput();
  control.value = name;
  control.addEventListener("change", () => control.checkValidity() && go(control.value));
  return field("Collection", control, "The key may not list collections: enter a name.");
}

function noCollections() {
  return emptyState(
    "No collections yet",
    h("p", {}, "Cameras compare faces with a collection, and store their sightings for it."),
    h("a", { class: "button primary", href: "#gallery" }, "Create a collection"),
  );
}

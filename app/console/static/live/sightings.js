/** The newest sightings of a collection, with their best shots. */

import { Latest, requestJson } from "../api.js";
import { badge, emptyState, errorNotice, loading } from "../controls.js";
import { formatClock, h, percent, replaceContent, replaceRows } from "../dom.js";
import { polling } from "../polling.js";
import { noImage, storedImage } from "../stored_image.js";

/**
 * @typedef {{id: string, position: number, collection: string, camera: string, started_at: string, ended_at: string,
 *   expires_at: string, frames: number, subject_id: string | null, name: string | null, probability: number | null,
 *   distance: number | null, fpir: number | null, threshold: number | null, has_crop: boolean}} Sighting
 * @typedef {"" | "true" | "false"} Unknown whether only sightings of unknown people are shown, or only of subjects
 */

const EVERY_MS = 2000;
const PAGE = 48;
const MOST = 960; // the API returns at most 1000

/** @param {Sighting} sighting */
export function nameOf(sighting) {
  return sighting.name ?? sighting.subject_id ?? "Unknown person";
}

/** @param {string} id */
export function shotPath(id) {
  return `sightings/${encodeURIComponent(id)}/crop`;
}

/** @param {{onOpen: (sighting: Sighting) => void}} options */
export function sightings({ onOpen }) {
  const filter = { collection: "", camera: "", unknown: /** @type {Unknown} */ ("") };
  let limit = PAGE;
  const latest = new Latest();
  const list = h("ul", { class: "sightings", "aria-label": "Sightings" });
  const more = h("button", { type: "button", hidden: true }, "Older sightings");
  const empty = h("div");
  const problem = h("div");
  const element = h("div", { class: "stack" }, problem, empty, list, h("div", { class: "row" }, more));
  const poll = polling(EVERY_MS, load, (error) => replaceContent(problem, errorNotice(error, poll.now)));
  /** @type {Map<string, HTMLElement>} */
  const cards = new Map();
  more.addEventListener("click", () => {
    limit += PAGE;
    poll.now();
  });

  async function load() {
    if (!filter.collection) return;
    const query = { ...filter, limit, newest_first: true };
    const answer = await requestJson("sightings", { query, signal: latest.next() });
    replaceContent(problem);
    show(answer.data);
  }

  /** @param {Sighting[]} data newest first */
  function show(data) {
    const rows = data.map((sighting) => {
      // A subject's name can change; everything else of a sighting stays as it is.
      const key = `${sighting.id} ${nameOf(sighting)}`;
      const card = cards.get(key) ?? sightingCard(sighting, onOpen);
      cards.set(key, card);
      return card;
    });
    replaceRows(list, rows);
    for (const [key, card] of cards) {
      if (!card.isConnected) cards.delete(key);
    }
    more.hidden = data.length < limit || limit >= MOST;
    replaceContent(empty, data.length ? null : noSightings());
  }

  function noSightings() {
    const isFiltered = filter.camera || filter.unknown;
    return emptyState(
      isFiltered ? "No such sightings" : "No sightings yet",
      h("p", {}, isFiltered ? "Choose another camera or other people." : "A sighting appears here when a camera has seen someone."),
    );
  }

  return {
    element,
    poll,
    /** @param {Partial<typeof filter>} changes */
    choose(changes) {
      Object.assign(filter, changes);
      limit = PAGE;
      cards.clear();
      more.hidden = true;
      replaceContent(list);
      replaceContent(problem);
      replaceContent(empty, loading("Loading sightings …"));
      poll.now();
    },
  };
}

/**
 * @param {Sighting} sighting
 * @param {(sighting: Sighting) => void} onOpen
 */
function sightingCard(sighting, onOpen) {
  const name = nameOf(sighting);
  const isUnknown = sighting.subject_id === null;
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: "sighting", onclick: () => onOpen(sighting) },
      sighting.has_crop ? storedImage(shotPath(sighting.id), "") : noImage(),
      h(
        "span",
        { class: "sighting-facts" },
        h("strong", { class: "name-line" }, name),
        h(
          "span",
          { class: "row" },
          badge(isUnknown ? "? unknown" : "✓ match", isUnknown ? "warn" : "good"),
          isUnknown || sighting.probability === null ? null : h("span", { class: "hint number" }, percent(sighting.probability)),
        ),
        h("span", { class: "hint" }, `${sighting.camera} · ${formatClock(sighting.ended_at)}`),
      ),
    ),
  );
}

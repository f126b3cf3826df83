/** Unknown people on the cameras: group the best shots of their sightings by person, and enrol a group as a subject. */

import { Latest, Problem, call, form, isAbort, requestJson } from "../api.js";
import { attempt, errorNotice, field, idInput, whileBusy } from "../controls.js";
import { announce, count, formatClock, h, plural, replaceContent } from "../dom.js";
import { shotPath } from "../live/sightings.js";
import { describeReasons } from "../reasons.js";
import { setName } from "./enrol.js";

/**
 * @typedef {import("../live/sightings.js").Sighting} Sighting
 * @typedef {import("../api.js").ProblemDetails} ProblemDetails
 * @typedef {{sighting: Sighting, blob: Blob, embedding: number[]}} Shot
 * @typedef {{name: string, path: string, embedder: string, onEnrolled: () => void}} Options `name` and `path` are the
 *   collection's
 */

const MOST_SHOTS = 192;
const BATCH = 8; // images of a request: a slow service embeds them within its deadline
const NO_FACE = "urn:vestibule:problem:no-face";
const MOST_ENROLLED = 64; // the API's limit of a request

/** @param {Options} options */
export function unknownPeople(options) {
  const latest = new Latest();
  const start = h("button", { type: "button" }, "Group unknown people");
  const groups = h("div", { class: "stack" });
  const summary = h("p", { class: "hint", role: "status" });
  const problem = h("div");
  /** @type {Shot[]} */
  let shots = [];
  const element = h(
    "section",
    { class: "panel", "aria-label": "Unknown people" },
    h("h2", {}, "Unknown people"),
    h(
      "p",
      { class: "hint" },
      "Groups the best shots of unknown people on the cameras by person. Nothing is stored until you enrol a group.",
    ),
    problem,
    groups,
    summary,
    h("div", { class: "row" }, start),
  );
  start.addEventListener("click", () => whileBusy(start, run));

  async function run() {
    const signal = latest.next();
    replaceContent(problem);
    replaceContent(groups);
    shots = [];
    try {
      const sightings = await unknownSightings(options.name, signal);
      for (let at = 0; at < sightings.length; at += BATCH) {
        summary.textContent = `Reading ${count(at)} of ${plural(sightings.length, "best shot")} …`;
        const batch = await embedded(sightings.slice(at, at + BATCH), options, signal);
        shots.push(...batch.shots);
        for (const failure of batch.failures) problem.append(errorNotice(new Problem(failure)));
      }
      if (!shots.length) {
        summary.textContent = "There are no best shots of people who are not enrolled.";
        return;
      }
      const json = { embeddings: shots.map((shot) => shot.embedding) };
      const query = { model: options.embedder };
      const answer = await requestJson("cluster/embeddings", { method: "POST", query, json, signal });
      show(answer.clusters, answer.single);
    } catch (error) {
      summary.textContent = "";
      if (!isAbort(error)) replaceContent(problem, errorNotice(error, run));
    }
  }

  /**
   * @param {number[][]} clusters positions in `shots`
   * @param {number[]} single
   */
  function show(clusters, single) {
    const all = [...clusters, ...single.map((position) => [position])];
    replaceContent(groups, ...all.map((positions) => group(positions.map((position) => shots[position]), options)));
    const people = [
      clusters.length ? `${plural(clusters.length, "group")} of several sightings` : "",
      single.length ? `${plural(single.length, "person", "people")} seen once` : "",
    ];
    summary.textContent = `${people.filter(Boolean).join(" and ")}, in ${plural(shots.length, "best shot")} of people who are not enrolled.`;
    announce(summary.textContent);
    start.textContent = "Group again";
  }

  return { element };
}

/**
 * Return the newest sightings of unknown people that have a best shot.
 * @param {string} collection
 * @param {AbortSignal} signal
 */
async function unknownSightings(collection, signal) {
  const query = { collection, unknown: true, newest_first: true, limit: MOST_SHOTS };
  const { data } = await requestJson("sightings", { query, signal });
  return /** @type {Sighting[]} */ (data).filter((sighting) => sighting.has_crop);
}

/**
 * Return the best shots with their embeddings, except those without a face and those of people enrolled since.
 * @param {Sighting[]} sightings
 * @param {Options} options
 * @param {AbortSignal} signal
 * @returns {Promise<{shots: Shot[], failures: ProblemDetails[]}>} `failures`: one for each reason why shots are missing
 */
async function embedded(sightings, { name, embedder }, signal) {
  const blobs = await Promise.all(
    sightings.map(async ({ id }) => (await call(shotPath(id), { signal })).blob()),
  );
  const found = await requestJson("embed", {
    method: "POST",
    query: { model: embedder },
    body: form({ file: blobs }),
    signal,
  });
  const items = /** @type {{index: number, embedding?: number[], problem?: ProblemDetails}[]} */ (found.data);
  const problems = items.flatMap(({ problem }) => (problem && problem.type !== NO_FACE ? [problem] : []));
  const failures = [...new Map(problems.map((problem) => [problem.title, problem])).values()];
  const faces = items.filter((item) => item.embedding);
  if (!faces.length) return { shots: [], failures };
  const json = { embeddings: faces.map((face) => face.embedding) };
  const searched = await requestJson("search/embeddings", { method: "POST", query: { collection: name }, json, signal });
  const shots = faces
    .filter((_, position) => searched.data[position].faces[0].status !== "match")
    .map(({ index, embedding }) => ({
      sighting: sightings[index],
      blob: blobs[index],
      embedding: /** @type {number[]} */ (embedding),
    }));
  return { shots, failures };
}

/**
 * A group of shots of one person, with a form to enrol them. A click on a shot excludes it.
 * @param {Shot[]} shots
 * @param {Options} options
 */
function group(shots, { path, onEnrolled }) {
  /** @type {Set<Shot>} */
  const included = new Set(shots);
  const id = idInput();
  const name = h("input", { type: "text", maxlength: 256, autocomplete: "off" });
  const send = h("button", { type: "submit" }, "Enrol");
  const message = h("div");
  const cameras = [...new Set(shots.map((shot) => shot.sighting.camera))].sort().join(", ");
  const facts = `${plural(shots.length, "sighting")} · ${cameras} · last ${formatClock(shots[0].sighting.ended_at)}`;

  /** @param {Shot} shot */
  function choice(shot) {
    const title = `${shot.sighting.camera}, ${formatClock(shot.sighting.ended_at)}`;
    const image = h("img", { src: URL.createObjectURL(shot.blob), alt: "" });
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    const button = h(
      "button",
      { type: "button", class: "thumb choice", "aria-pressed": "true", "aria-label": `Include the shot ${title}`, title },
      image,
    );
    button.addEventListener("click", () => {
      if (!included.delete(shot)) included.add(shot);
      button.setAttribute("aria-pressed", String(included.has(shot)));
      update();
    });
    return button;
  }

  function update() {
    const number = Math.min(included.size, MOST_ENROLLED);
    send.disabled = !number;
    send.textContent = number > 1 ? `Enrol ${count(number)} shots` : "Enrol";
  }

  async function enrol() {
    const chosen = [...included].slice(0, MOST_ENROLLED);
    const subject = `${path}/subjects/${encodeURIComponent(id.value)}`;
    const body = form({ file: chosen.map((shot) => shot.blob) });
    const answer = await requestJson(`${subject}/faces`, { method: "POST", body });
    const { indexed, rejected, failed } = answer;
    if (name.value && indexed.length) await setName(subject, name.value);
    const reasons = rejected.flatMap((/** @type {{reasons: string[]}} */ item) => item.reasons);
    const words = [
      `${plural(indexed.length, "face")} enrolled as ${name.value || id.value}.`,
      rejected.length + failed.length ? `${plural(rejected.length + failed.length, "shot")} not enrolled.` : "",
      describeReasons([...new Set(/** @type {string[]} */ (reasons))]),
    ];
    const text = words.filter(Boolean).join(" ");
    announce(text);
    if (!indexed.length) return h("p", { class: "hint warn" }, text);
    replaceContent(element, h("p", {}, text));
    onEnrolled();
    return null;
  }

  const fields = h("div", { class: "fields" }, field("Subject id", id), field("Name (optional)", name), send);
  const element = h(
    "form",
    { class: "group", "aria-label": facts },
    h("p", { class: "hint" }, facts),
    h("div", { class: "picked" }, ...shots.map(choice)),
    fields,
    message,
  );
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(send, message, enrol);
  });
  update();
  return element;
}

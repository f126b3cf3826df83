/** A dialog with all data of a sighting, from which it can be erased. */

import { requestJson } from "../api.js";
import { attempt } from "../controls.js";
import { count, formatClock, formatRate, formatTime, h, percent, replaceContent, uniqueId } from "../dom.js";
import { noImage, storedImage } from "../stored_image.js";
import { nameOf, shotPath } from "./sightings.js";

/**
 * @param {import("./sightings.js").Sighting} sighting
 * @param {(what: string, receipt: any) => void} onErased
 */
export function openSighting(sighting, onErased) {
  const heading = h("h2", { id: uniqueId("sighting") }, nameOf(sighting));
  const dialog = h("dialog", { class: "sighting-dialog", "aria-labelledby": heading.id });
  const message = h("div");
  const erase = h("button", { type: "button", class: "danger" }, "Erase sighting");
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  erase.addEventListener("click", () =>
    attempt(erase, message, async () => {
      const receipt = await requestJson(`sightings/${encodeURIComponent(sighting.id)}`, { method: "DELETE" });
      dialog.close();
      onErased(`A sighting of ${nameOf(sighting)}`, receipt);
    }),
  );
  replaceContent(
    dialog,
    heading,
    sighting.has_crop ? storedImage(shotPath(sighting.id), `Best shot of ${nameOf(sighting)}`) : noImage(),
    h(
      "dl",
      { class: "facts" },
      ...facts(sighting).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    message,
    h("div", { class: "row end" }, erase, close),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
}

/**
 * @param {import("./sightings.js").Sighting} sighting
 * @returns {[string, string][]}
 */
function facts({ collection, camera, started_at, ended_at, expires_at, frames, subject_id, probability, distance, fpir, threshold }) {
  /** @type {[string, string | null][]} */
  const all = [
    ["Collection", collection],
    ["Subject id", subject_id],
    ["Camera", camera],
    ["From", formatClock(started_at)],
    ["Until", formatClock(ended_at)],
    ["Frames", count(frames)],
    ["Probability", probability === null ? null : percent(probability)],
    ["Distance", distance === null ? null : distance.toFixed(3)],
    ["Threshold", threshold === null ? null : threshold.toFixed(3)],
    ["False alarms", fpir ? `at most ${formatRate(fpir)}` : null],
    ["Kept until", formatTime(expires_at)],
  ];
  return /** @type {[string, string][]} */ (all.filter(([, value]) => value !== null));
}

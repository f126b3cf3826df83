/** Who is in a collection: by page, with their faces; and how to erase them. */

import { ask } from "../api.js";
import { confirmed, empty, trouble, waiting } from "../controls.js";
import { count, h, many, moment, put } from "../dom.js";

/**
 * @typedef {{id: string, name: string | null, faces: number, created_at: string}} Subject
 * @typedef {{id: string, created_at: string, details: {side?: number, sharpness?: number}}} Face
 * @typedef {{path: string, onErased: (what: string, receipt: any) => void}} Options
 */

const PAGE = 10;

/** @param {Options} options `path` is the collection's, in the API */
export function subjects({ path, onErased }) {
  /** Where each page seen so far began. @type {string[]} */
  let starts = [""];
  const body = h("div", { class: "stack" }, waiting("Asking who is there …"));
  const place = h("span", { class: "hint" });
  const back = h("button", { type: "button", onclick: () => turn(-1) }, "‹ Before");
  const on = h("button", { type: "button", onclick: () => turn(1) }, "Next ›");
  const pages = h("nav", { class: "row end", "aria-label": "Pages of subjects", hidden: true }, place, back, on);
  const element = h("section", { class: "panel", "aria-label": "Subjects" }, h("h2", {}, "Subjects"), body, pages);
  /** @type {string | null} */
  let next = null;

  /** @param {number} step */
  function turn(step) {
    if (step > 0 && next !== null) starts.push(next);
    if (step < 0) starts.pop();
    return load();
  }

  async function load() {
    try {
      let answer = await ask(`${path}/subjects`, { query: { limit: PAGE, after: starts.at(-1) } });
      if (!answer.data.length && starts.length > 1) {
        starts.pop(); // the last of this page is gone
        answer = await ask(`${path}/subjects`, { query: { limit: PAGE, after: starts.at(-1) } });
      }
      next = answer.next;
      show(answer.data);
    } catch (error) {
      put(body, trouble(error, load));
    }
  }

  /** @param {Subject[]} found */
  function show(found) {
    pages.hidden = next === null && starts.length === 1;
    back.disabled = starts.length === 1;
    on.disabled = next === null;
    const first = (starts.length - 1) * PAGE + 1;
    place.textContent = `${count(first)} to ${count(first + found.length - 1)}`;
    if (!found.length) {
      put(
        body,
        empty("Nobody is enrolled yet", h("p", {}, "Give a subject an id of your own and a photo or several, above.")),
      );
      return;
    }
    put(body, h("ul", { class: "people" }, ...found.map(row)));
  }

  /** @param {Subject} subject */
  function row(subject) {
    const called = subject.name ?? subject.id;
    const faces = h("div", { class: "stack", hidden: true });
    const open = h("button", { type: "button", class: "quiet", "aria-expanded": "false" }, many(subject.faces, "face"));
    open.addEventListener("click", async () => {
      faces.hidden = !faces.hidden;
      open.setAttribute("aria-expanded", String(!faces.hidden));
      if (!faces.hidden) await list(subject, faces);
    });
    const erase = h("button", { type: "button", class: "danger", "aria-label": `Erase ${called}` }, "Erase");
    erase.addEventListener("click", async () => {
      const text = `${many(subject.faces, "face")} and all else that is kept of ${called} will be erased, in searches at once and then in every file. This cannot be undone.`;
      if (!(await confirmed({ title: `Erase ${called}?`, text, action: "Erase" }))) return;
      await remove(called, `${path}/subjects/${encodeURIComponent(subject.id)}`);
    });
    return h(
      "li",
      { class: "person" },
      h("div", { class: "who" }, h("strong", {}, called), subject.name ? h("code", {}, subject.id) : null),
      h("span", { class: "hint since" }, moment(subject.created_at)),
      open,
      erase,
      faces,
    );
  }

  /**
   * @param {Subject} subject
   * @param {HTMLElement} place
   */
  async function list(subject, place) {
    put(place, waiting("Asking for the faces …", 1));
    try {
      const { data } = await ask(`${path}/subjects/${encodeURIComponent(subject.id)}/faces`);
      const rows = /** @type {Face[]} */ (data).map((face) => {
        const name = `a face of ${subject.name ?? subject.id}`;
        const drop = h("button", { type: "button", class: "quiet", "aria-label": `Erase ${name}` }, "Erase this face");
        drop.addEventListener("click", () => remove(name, `${path}/faces/${face.id}`));
        const size = face.details.side ? `${Math.round(face.details.side)} px wide, ` : "";
        return h("li", { class: "row spread" }, h("span", {}, `${size}enrolled ${moment(face.created_at)}`), drop);
      });
      put(place, rows.length ? h("ul", { class: "faces" }, ...rows) : h("p", { class: "hint" }, "No face yet."));
    } catch (error) {
      put(place, trouble(error));
    }
  }

  /**
   * @param {string} what
   * @param {string} where
   */
  async function remove(what, where) {
    try {
      onErased(what, await ask(where, { method: "DELETE" }));
      await load();
    } catch (error) {
      body.prepend(trouble(error));
    }
  }

  load();
  return { element, load };
}

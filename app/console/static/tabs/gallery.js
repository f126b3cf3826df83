/** Collections: make them, look into one, erase. `#gallery` lists them, `#gallery/doors` is one of them. */

import { ask } from "../api.js";
import { models } from "../catalogue.js";
import { badge, checkbox, command, confirmed, during, empty, field, keyInput, trouble, waiting } from "../controls.js";
import { h, many, moment, put } from "../dom.js";
import { enrol } from "../gallery/enrol.js";
import { erasures } from "../gallery/erasures.js";
import { search } from "../gallery/search.js";
import { subjects } from "../gallery/subjects.js";

/**
 * @typedef {{name: string, embedder: string, encrypted: boolean, created_at: string}} Collection
 * @typedef {Collection & {subjects: number, faces: number, exact: boolean, keep_crops: boolean, encrypted: boolean}} Detail
 */

/** @param {string} name */
const pathOf = (name) => `collections/${encodeURIComponent(name)}`;

/** @param {string} name */
const hashOf = (name) => `#gallery/${encodeURIComponent(name)}`;

/** @returns {import("../app.js").Tab} */
export default function gallery() {
  const receipts = erasures();
  const view = h("div");
  const element = h("div", { class: "stack" }, view, receipts.element);
  /** @type {string | undefined} */
  let shown;

  return {
    title: "Gallery",
    lead: "Enrol people or things, and ask later who or what a picture shows.",
    element,
    show(name) {
      // An open collection keeps what is in it; the list is asked for anew.
      if (name && name === shown) return;
      shown = name;
      put(view, name ? collection(name, receipts.add) : overview());
    },
  };
}

function overview() {
  const list = h("div", { class: "stage" }, waiting("Asking for the collections …"));
  const name = keyInput();
  const embedder = h("select");
  const crops = checkbox("Keep aligned faces, so that a later model can embed them anew", false);
  const encrypted = checkbox("Encrypt it by the operator's key; it stays so for good", false);
  const make = h("button", { type: "submit", class: "primary" }, "Make it");
  const told = h("div");
  const maker = h(
    "form",
    { class: "panel", "aria-label": "New collection" },
    h("h2", {}, "New collection"),
    field("Name", name, "Letters, digits and . @ : + - _"),
    field("What it compares", embedder),
    crops.element,
    encrypted.element,
    make,
    told,
  );
  maker.addEventListener("submit", (event) => {
    event.preventDefault();
    during(make, async () => {
      try {
        await ask(pathOf(name.value), {
          method: "PUT",
          json: { embedder: embedder.value || null, keep_crops: crops.box.checked, encrypted: encrypted.box.checked },
        });
        location.hash = hashOf(name.value);
      } catch (error) {
        put(told, trouble(error));
      }
    });
  });
  embedder.addEventListener("change", () => {
    crops.box.disabled = embedder.selectedOptions[0]?.dataset.task !== "embed";
    if (crops.box.disabled) crops.box.checked = false;
  });
  const terminal = command(
    () =>
      `curl -X PUT --json '{"embedder": "${embedder.value}"}' '${location.origin}/${pathOf(name.value || "doors")}'`,
  );
  const element = h("div", { class: "split" }, h("div", { class: "side" }, maker, terminal.element), list);
  offer(embedder);
  load(list);
  return element;
}

/** @param {HTMLSelectElement} embedder */
async function offer(embedder) {
  const found = [...(await models("embed")), ...(await models("classify"))];
  put(
    embedder,
    ...found.map((model) =>
      h(
        "option",
        { value: model.name, "data-task": model.task },
        `${model.task === "embed" ? "Faces" : "Whole pictures"}: ${model.name}`,
      ),
    ),
  );
}

/** @param {HTMLElement} list */
async function load(list) {
  const rows = h("ul", { class: "collections" });
  const more = h("button", { type: "button", hidden: true }, "More");
  /** @param {string} after */
  async function page(after) {
    const answer = await ask("collections", { query: { limit: 50, after } });
    rows.append(...answer.data.map(listed));
    more.hidden = answer.next === null;
    more.onclick = () => page(answer.next);
    return rows.childElementCount;
  }
  try {
    if (await page("")) put(list, rows, more);
    else put(list, nothing());
  } catch (error) {
    put(
      list,
      trouble(error, () => load(list)),
    );
  }
}

function nothing() {
  return empty(
    "No collection yet: make one",
    h(
      "p",
      {},
      "A collection holds faces, or whole pictures, under ids of your own. For a first look, make one named “doors”, enrol one of the two example photos, and search with the other.",
    ),
    h(
      "p",
      {},
      "Enrol only people who agreed. Whoever is erased is gone from searches at once and from the disk soon after.",
    ),
  );
}

/** @param {Collection} one */
function listed(one) {
  return h(
    "li",
    {},
    h(
      "a",
      { class: "panel collection", href: hashOf(one.name) },
      h("strong", {}, one.name),
      h("span", { class: "hint" }, `compared by ${one.embedder} · made ${moment(one.created_at)}`),
    ),
  );
}

/**
 * One collection.
 * @param {string} name
 * @param {(what: string, receipt: any) => void} onErased
 */
function collection(name, onErased) {
  const path = pathOf(name);
  const head = h("div", { class: "stack" }, waiting("Opening …", 1));
  const body = h("div");
  const back = h("a", { href: "#gallery" }, "‹ All collections");
  /** @type {ReturnType<typeof search> | undefined} */
  let searching;

  /** @param {Detail} detail */
  function title(detail) {
    const drop = h("button", { type: "button", class: "danger" }, "Erase the collection");
    drop.addEventListener("click", async () => {
      const text = `${many(detail.subjects, "subject")} with ${many(detail.faces, "face")} will be erased, in searches at once and then in every file. This cannot be undone.`;
      if (!(await confirmed({ title: `Erase ${name}?`, text, action: "Erase" }))) return;
      try {
        onErased(name, await ask(path, { method: "DELETE" }));
        location.hash = "#gallery";
      } catch (error) {
        head.append(trouble(error));
      }
    });
    put(
      head,
      h(
        "div",
        { class: "row spread" },
        h(
          "div",
          { class: "row" },
          h("h2", {}, name),
          badge(many(detail.subjects, "subject")),
          badge(many(detail.faces, "face")),
          badge(detail.embedder),
          detail.encrypted && badge("encrypted"),
        ),
        drop,
      ),
    );
  }

  async function open() {
    try {
      const detail = /** @type {Detail} */ (await ask(path));
      title(detail);
      if (searching) return;
      const whole = (await models("embed")).every((model) => model.name !== detail.embedder);
      const erased = (/** @type {string} */ what, /** @type {any} */ receipt) => {
        onErased(what, receipt);
        renew();
      };
      const who = subjects({ path, onErased: erased });
      const enrolled = () => {
        renew();
        who.load();
      };
      searching = search({ name, whole });
      put(
        body,
        h(
          "div",
          { class: "split" },
          h("div", { class: "side" }, enrol({ path, whole, onEnrolled: enrolled }).element),
          h("div", { class: "stage" }, searching.element, who.element),
        ),
      );
    } catch (error) {
      put(head, trouble(error, open));
    }
  }

  /** Counts, and the answer of the last search, follow what is enrolled. */
  function renew() {
    open();
    searching?.run();
  }

  open();
  return h("div", { class: "stack" }, h("p", {}, back), head, body);
}

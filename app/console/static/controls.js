/** Parts that every tab is made of: fields, choices, sliders, notices, questions. */

import { Problem } from "./api.js";
import { announce, h, put, uniqueId } from "./dom.js";
import { held } from "./keyring.js";

/** @typedef {import("./dom.js").Child} Child */

/**
 * A control under its name, with a hint below.
 * @param {string} name
 * @param {HTMLInputElement | HTMLSelectElement} control
 * @param {Child} [hint]
 */
export function field(name, control, hint) {
  control.id ||= uniqueId("field");
  const told = hint ? h("p", { class: "hint", id: `${control.id}-hint` }, hint) : null;
  if (told) control.setAttribute("aria-describedby", told.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, name), control, told);
}

/**
 * Do something with what is chosen from now on; what goes wrong is told in `place`.
 * @param {HTMLSelectElement} select
 * @param {HTMLElement} place
 * @param {(value: string) => Promise<void>} act
 */
export function onChoice(select, place, act) {
  select.addEventListener("change", async () => {
    try {
      await act(select.value);
    } catch (error) {
      put(place, trouble(error));
    }
  });
}

/** Where a name is written that goes into addresses: a collection's or a subject's. */
export function keyInput() {
  return h("input", {
    type: "text",
    required: true,
    maxlength: 128,
    pattern: "[\\p{L}\\p{M}\\p{N}_\\u200c\\u200d.@:+ \\-]{1,128}",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
  });
}

/**
 * A box to tick, with what it means.
 * @param {string} name
 * @param {boolean} checked
 * @param {() => void} [onChange]
 */
export function checkbox(name, checked, onChange) {
  const box = h("input", { type: "checkbox", checked, onchange: onChange ?? null });
  const words = h("span", {}, name);
  const element = h("label", { class: "check" }, box, words);
  return { element, box, words };
}

/**
 * One of a few, all of them in sight.
 * @param {string} legend
 * @param {{value: string, label: string}[]} options
 * @param {string} value
 * @param {(value: string) => void} onChange
 */
export function segmented(legend, options, value, onChange) {
  const name = uniqueId("choice");
  const choices = options.map((option) =>
    h(
      "label",
      {},
      h("input", {
        type: "radio",
        name,
        value: option.value,
        checked: option.value === value,
        onchange: () => onChange(option.value),
      }),
      h("span", {}, option.label),
    ),
  );
  const row = h("div", { class: "segments" }, ...choices);
  const element = h("fieldset", { class: "field" }, h("legend", {}, legend), row);
  return {
    element,
    get value() {
      return /** @type {HTMLInputElement} */ (row.querySelector("input:checked")).value;
    },
    set value(next) {
      for (const input of row.querySelectorAll("input")) input.checked = input.value === next;
    },
  };
}

/**
 * A number to slide, beside what it is now.
 * @param {{label: string, min: number, max: number, step: number, value: number,
 *   format?: (value: number) => string, onInput?: (value: number) => void, hint?: Child}} options
 */
export function slider({ label, min, max, step, value, format = String, onInput, hint }) {
  const id = uniqueId("slider");
  const output = h("output", { for: id }, format(value));
  const input = h("input", { type: "range", id, min, max, step, value });
  const tell = () => {
    output.textContent = format(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.textContent);
    const [low, high] = [Number(input.min), Number(input.max)];
    input.style.setProperty("--at", `${((input.valueAsNumber - low) / (high - low || 1)) * 100}%`);
  };
  input.addEventListener("input", () => {
    tell();
    onInput?.(input.valueAsNumber);
  });
  tell();
  const told = hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (told) input.setAttribute("aria-describedby", told.id);
  const element = h(
    "div",
    { class: "field" },
    h("div", { class: "named" }, h("label", { for: id }, label), output),
    input,
    told,
  );
  return {
    element,
    input,
    get value() {
      return input.valueAsNumber;
    },
    set value(next) {
      input.value = String(next);
      tell();
    },
    /** @param {number} high */
    set max(high) {
      input.max = String(high);
      tell();
    },
  };
}

/**
 * What went wrong, in the service's words.
 * @param {unknown} error
 * @param {(() => void) | null} [retry]
 */
export function trouble(error, retry) {
  const known = error instanceof Problem;
  if (!known) console.error(error);
  const title = known ? error.title : "This page made a mistake";
  const detail = known ? error.detail : "Reload it; if it happens again, the browser's console says more.";
  return h(
    "div",
    { class: "notice problem", role: "alert" },
    h("strong", {}, title),
    detail ? h("p", {}, detail) : null,
    retry ? h("button", { type: "button", onclick: retry }, "Try again") : null,
  );
}

/**
 * What is to be seen where there is nothing yet.
 * @param {string} title
 * @param {...Child} children
 */
export function empty(title, ...children) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), ...children);
}

/**
 * While something is on its way: as high as what will come.
 * @param {string} text
 * @param {number} [lines]
 */
export function waiting(text, lines = 3) {
  const bars = Array.from({ length: lines }, () => h("span", { class: "bone" }));
  return h("div", { class: "waiting", "aria-busy": "true" }, h("p", { class: "hint" }, text), ...bars);
}

/**
 * A button has no effect again until its work is done. It is not disabled: it would lose the keyboard's focus.
 * @param {HTMLButtonElement} button
 * @param {() => Promise<void>} work
 */
export async function during(button, work) {
  if (button.hasAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  try {
    await work();
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/**
 * Ask before what cannot be undone.
 * @param {{title: string, text: string, action: string}} question
 * @returns {Promise<boolean>}
 */
export function confirmed({ title, text, action }) {
  const heading = h("h2", { id: uniqueId("question") }, title);
  const dialog = h("dialog", { "aria-labelledby": heading.id });
  const end = (/** @type {string} */ answer) => () => dialog.close(answer);
  put(
    dialog,
    heading,
    h("p", {}, text),
    h(
      "div",
      { class: "row end" },
      h("button", { type: "button", onclick: end("") }, "Cancel"),
      h("button", { type: "button", class: "danger", onclick: end("yes") }, action),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}

/**
 * The same by hand: what a terminal would be told. Written anew whenever it is opened or `update` is called.
 * @param {() => string} write
 */
export function command(write) {
  const text = h("code");
  const copy = h("button", { type: "button", class: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent ?? "");
      announce("Copied");
      copy.textContent = "Copied";
    } catch {
      getSelection()?.selectAllChildren(text);
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const element = h(
    "details",
    { class: "command" },
    h("summary", {}, "The same in a terminal"),
    h("div", { class: "code" }, h("pre", { tabindex: "0", "aria-label": "Command" }, text), copy),
  );
  const update = () => {
    // The key itself is not shown: it would be on pictures of the screen.
    text.textContent = held() ? write().replaceAll("curl ", 'curl -H "Authorization: Bearer $VESTIBULE_API_KEY" ') : write();
  };
  element.addEventListener("toggle", update);
  update();
  return { element, update };
}

/**
 * A word on a coloured ground; the colour says nothing that the word does not.
 * @param {string} text
 * @param {"good" | "warn" | "bad" | "plain"} [tone]
 */
export function badge(text, tone = "plain") {
  return h("span", { class: `badge ${tone}` }, text);
}

/**
 * A share as a bar, beside its number.
 * @param {number} share 0..1
 * @param {string} [tone]
 */
export function bar(share, tone = "") {
  const filled = h("span", { class: `filled ${tone}` });
  filled.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** Controls shared by all tabs: fields, choices, sliders, notices, dialogs. */

import { Problem } from "./api.js";
import { announce, h, replaceContent, uniqueId } from "./dom.js";
import { storedKey } from "./key_storage.js";

/** @typedef {import("./dom.js").Child} Child */

/**
 * A control with its label above and a hint below.
 * @param {string} name
 * @param {HTMLInputElement | HTMLSelectElement} control
 * @param {Child} [hint]
 */
export function field(name, control, hint) {
  control.id ||= uniqueId("field");
  const hintElement = hint ? h("p", { class: "hint", id: `${control.id}-hint` }, hint) : null;
  if (hintElement) control.setAttribute("aria-describedby", hintElement.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, name), control, hintElement);
}

/**
 * Run `act` with the selected value on each change; errors are shown in `place`.
 * @param {HTMLSelectElement} select
 * @param {HTMLElement} place
 * @param {(value: string) => Promise<void>} act
 */
export function onSelect(select, place, act) {
  select.addEventListener("change", async () => {
    try {
      await act(select.value);
    } catch (error) {
      replaceContent(place, errorNotice(error));
    }
  });
}

/** An input for the name of a collection or the id of a subject. */
export function idInput() {
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
 * A labelled checkbox.
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
 * A group of radio buttons in a row.
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
 * A slider with its label and current value.
 * @param {{label: string, min: number, max: number, step: number, value: number,
 *   format?: (value: number) => string, onInput?: (value: number) => void, hint?: Child}} options
 */
export function slider({ label, min, max, step, value, format = String, onInput, hint }) {
  const id = uniqueId("slider");
  const output = h("output", { for: id }, format(value));
  const input = h("input", { type: "range", id, min, max, step, value });
  const showValue = () => {
    output.textContent = format(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.textContent);
    const [low, high] = [Number(input.min), Number(input.max)];
    input.style.setProperty("--at", `${((input.valueAsNumber - low) / (high - low || 1)) * 100}%`);
  };
  input.addEventListener("input", () => {
    showValue();
    onInput?.(input.valueAsNumber);
  });
  showValue();
  const hintElement = hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (hintElement) input.setAttribute("aria-describedby", hintElement.id);
  const element = h(
    "div",
    { class: "field" },
    h("div", { class: "named" }, h("label", { for: id }, label), output),
    input,
    hintElement,
  );
  return {
    element,
    input,
    get value() {
      return input.valueAsNumber;
    },
    set value(next) {
      input.value = String(next);
      showValue();
    },
    /** @param {number} high */
    set max(high) {
      input.max = String(high);
      showValue();
    },
  };
}

/**
 * A notice with an error's title and detail.
 * @param {unknown} error
 * @param {(() => void) | null} [retry]
 */
export function errorNotice(error, retry) {
  const isProblem = error instanceof Problem;
  if (!isProblem) console.error(error);
  const title = isProblem ? error.title : "An error occurred in this page";
  const detail = isProblem ? error.detail : "Reload the page; the browser's console has the details.";
  return h(
    "div",
    { class: "notice problem", role: "alert" },
    h("strong", {}, title),
    detail ? h("p", {}, detail) : null,
    retry ? h("button", { type: "button", onclick: retry }, "Try again") : null,
  );
}

/**
 * A placeholder for content that does not exist yet.
 * @param {string} title
 * @param {...Child} children
 */
export function emptyState(title, ...children) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), ...children);
}

/**
 * A placeholder while content loads, about as high as the content.
 * @param {string} text
 * @param {number} [lines]
 */
export function loading(text, lines = 3) {
  const bars = Array.from({ length: lines }, () => h("span", { class: "skeleton" }));
  return h("div", { class: "waiting", "aria-busy": "true" }, h("p", { class: "hint" }, text), ...bars);
}

/**
 * Run `work` unless the button's previous work is still running. The button is not disabled: it would lose the focus.
 * @param {HTMLButtonElement} button
 * @param {() => Promise<void>} work
 */
export async function whileBusy(button, work) {
  if (button.hasAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  try {
    await work();
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/**
 * Run the action of a button, and show in `place` its error, or the message that it returns.
 * @param {HTMLButtonElement} button
 * @param {HTMLElement} place
 * @param {() => Promise<HTMLElement | null | void>} action
 */
export function attempt(button, place, action) {
  return whileBusy(button, async () => {
    try {
      replaceContent(place, (await action()) ?? null);
    } catch (error) {
      replaceContent(place, errorNotice(error));
    }
  });
}

/**
 * Show a confirmation dialog and return whether the user confirmed.
 * @param {{title: string, text: string, action: string}} question
 * @returns {Promise<boolean>}
 */
export function confirmDialog({ title, text, action }) {
  const heading = h("h2", { id: uniqueId("question") }, title);
  const dialog = h("dialog", { "aria-labelledby": heading.id });
  const end = (/** @type {string} */ answer) => () => dialog.close(answer);
  replaceContent(
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
 * An equivalent terminal command that can be copied, updated when it is opened or `update` is called.
 * @param {() => string} write
 */
export function terminalCommand(write) {
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
    h("summary", {}, "Terminal command"),
    h("div", { class: "code" }, h("pre", { tabindex: "0", "aria-label": "Command" }, text), copy),
  );
  const update = () => {
    // The key itself is not shown, so that it is not on screenshots.
    text.textContent = storedKey() ? write().replaceAll("curl ", 'curl -H "Authorization: Bearer $VESTIBULE_API_KEY" ') : write();
  };
  element.addEventListener("toggle", update);
  update();
  return { element, update };
}

/**
 * A word on a coloured background. The word alone must carry the meaning.
 * @param {string} text
 * @param {"good" | "warn" | "bad" | "plain"} [tone]
 */
export function badge(text, tone = "plain") {
  return h("span", { class: `badge ${tone}` }, text);
}

/**
 * A share as a bar.
 * @param {number} share 0..1
 * @param {string} [tone]
 */
export function bar(share, tone = "") {
  const filled = h("span", { class: `filled ${tone}` });
  filled.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, filled);
}

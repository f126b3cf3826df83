/** The dialog for the API key, which is stored in this browser tab's session only. */

import { field } from "./controls.js";
import { h, replaceContent, uniqueId } from "./dom.js";
import { storedKey, storeKey } from "./key_storage.js";

/** Open the dialog on a click on its button, and once when the service first requires a key. */
export function initKeyButton() {
  const button = /** @type {HTMLButtonElement} */ (document.getElementById("key"));
  button.textContent = storedKey() ? "Key ✓" : "Key";
  button.addEventListener("click", open);
  addEventListener("keyneeded", open, { once: true });
}

function open() {
  if (document.querySelector("dialog[open]")) return;
  const heading = h("h2", { id: uniqueId("key") }, "API key");
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", value: storedKey() });
  const dialog = h("dialog", { "aria-labelledby": heading.id });
  const message = h("div");
  const hint = "The operator creates keys with: vestibule keys create. The key is deleted when this tab is closed.";
  const form = h(
    "form",
    {
      class: "stack",
      onsubmit: (/** @type {SubmitEvent} */ event) => {
        event.preventDefault();
        try {
          storeKey(input.value.trim());
        } catch {
          replaceContent(message, h("p", { class: "notice problem", role: "alert" }, "The browser does not allow this page to store the key."));
          return;
        }
        location.reload(); // repeats the requests that failed for want of a key
      },
    },
    heading,
    field("Key", input, hint),
    message,
    h(
      "div",
      { class: "row end" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "submit", class: "primary" }, "Use key"),
    ),
  );
  replaceContent(dialog, form);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** The API key that this page sends: kept by this tab of the browser until it is closed, and nowhere else. */

import { field } from "./controls.js";
import { h, put, uniqueId } from "./dom.js";
import { held, keep } from "./keyring.js";

/** Let the key be entered by its button, and ask for it the first time that the service wants one. */
export function listenForKey() {
  const button = /** @type {HTMLButtonElement} */ (document.getElementById("key"));
  button.textContent = held() ? "Key ✓" : "Key";
  button.addEventListener("click", open);
  addEventListener("keyneeded", open, { once: true });
}

function open() {
  if (document.querySelector("dialog[open]")) return;
  const heading = h("h2", { id: uniqueId("key") }, "API key");
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", value: held() });
  const dialog = h("dialog", { "aria-labelledby": heading.id });
  const told = h("div");
  const hint = "Whoever runs this service makes keys: vestibule keys create. This tab keeps it until it is closed.";
  const form = h(
    "form",
    {
      class: "stack",
      onsubmit: (/** @type {SubmitEvent} */ event) => {
        event.preventDefault();
        try {
          keep(input.value.trim());
        } catch {
          put(told, h("p", { class: "notice problem", role: "alert" }, "This browser lets the page keep nothing."));
          return;
        }
        location.reload(); // all that was asked in vain is asked again
      },
    },
    heading,
    field("Key", input, hint),
    told,
    h(
      "div",
      { class: "row end" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "submit", class: "primary" }, "Use it"),
    ),
  );
  put(dialog, form);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// Not a module, so that it runs before anything is painted: the page does not flash in the other theme.
const THEMES = ["auto", "light", "dark"];

/** @param {string} theme */
function wear(theme) {
  document.documentElement.dataset.theme = theme;
}

/** @returns {string} the theme that was chosen; `auto` follows the system */
function chosenTheme() {
  try {
    const kept = localStorage.getItem("theme") ?? "auto";
    return THEMES.includes(kept) ? kept : "auto";
  } catch {
    return "auto"; // a browser that keeps nothing
  }
}

wear(chosenTheme());

addEventListener("DOMContentLoaded", () => {
  const button = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));
  const tell = () => {
    button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[chosenTheme()] ?? "Auto";
    button.setAttribute("aria-label", `Theme: ${button.textContent}`);
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length];
    wear(next);
    try {
      localStorage.setItem("theme", next);
    } catch {
      // It holds until the page is closed.
    }
    tell();
  });
  tell();
});

// Not a module, so that it runs before the first paint: otherwise the page would flash in the wrong theme.
const THEMES = ["auto", "light", "dark"];

/** @param {string} theme */
function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

/** @returns {string} the stored theme; `auto` follows the system */
function chosenTheme() {
  try {
    const stored = localStorage.getItem("theme") ?? "auto";
    return THEMES.includes(stored) ? stored : "auto";
  } catch {
    return "auto"; // storage is disabled
  }
}

applyTheme(chosenTheme());

addEventListener("DOMContentLoaded", () => {
  const button = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));
  const showTheme = () => {
    button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[chosenTheme()] ?? "Auto";
    button.setAttribute("aria-label", `Theme: ${button.textContent}`);
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length];
    applyTheme(next);
    try {
      localStorage.setItem("theme", next);
    } catch {
      // Storage is disabled: the theme lasts until the page is closed.
    }
    showTheme();
  });
  showTheme();
});

/** Where the API key is kept: in this tab's session, which ends when the tab is closed. */

const NAME = "vestibule-key";

/** @returns {string} empty for none */
export function held() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

/** @param {string} key empty for none */
export function keep(key) {
  if (key) sessionStorage.setItem(NAME, key);
  else sessionStorage.removeItem(NAME);
}

/** A line chart of a metric's last minutes. */

import { h, s } from "./dom.js";

const WIDTH = 200;
const HEIGHT = 44;
export const KEPT = 90;

/**
 * @param {string} name
 * @param {(value: number) => string} write
 * @param {string} hint
 */
export function sparkline(name, write, hint) {
  /** @type {(number | null)[]} */
  const values = [];
  const value = h("strong", {}, "–");
  const line = s("polyline", { points: "", class: "curve" });
  const area = s("polygon", { points: "", class: "area" });
  const drawing = s(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    area,
    line,
  );
  const most = h("span", { class: "hint most" });
  const element = h(
    "div",
    { class: "panel tile" },
    h("div", { class: "row spread" }, h("h3", {}, name), most),
    value,
    drawing,
    h("p", { class: "hint" }, hint),
  );

  /** @param {number | null} next null: there is no value for this interval */
  function push(next) {
    values.push(next);
    if (values.length > KEPT) values.shift();
    value.textContent = next === null ? "–" : write(next);
    const seen = values.filter((item) => item !== null);
    const top = Math.max(...seen, 0);
    most.textContent = seen.length > 1 ? `max ${write(top)}` : "";
    const points = values.flatMap((item, index) => {
      const x = WIDTH - ((values.length - 1 - index) * WIDTH) / (KEPT - 1);
      return item === null ? [] : [`${x.toFixed(1)},${(HEIGHT - 2 - (top ? item / top : 0) * (HEIGHT - 4)).toFixed(1)}`];
    });
    line.setAttribute("points", points.join(" "));
    const [first, last] = [points[0], points.at(-1)].map((point) => point?.split(",")[0]);
    area.setAttribute("points", points.length > 1 ? `${first},${HEIGHT} ${points.join(" ")} ${last},${HEIGHT}` : "");
  }

  return { element, push };
}

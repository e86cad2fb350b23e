// Bars of the most probable classes: a list that reads well, drawn as a chart.

import { make } from "./dom.js";
import { formatShare, nameOf } from "./words.js";

export function drawBars(answers, { said = null } = {}) {
  const bars = answers.map((one) =>
    make(
      "li",
      { className: one.label === said ? "said" : "" },
      make("span", { className: "name" }, nameOf(one)),
      make("span", { className: "track", attributes: { "aria-hidden": "true" } }, make("i", { style: { "--share": one.score.toFixed(4) } })),
      make("span", { className: "num" }, formatShare(one.score)),
    ),
  );
  return make("ol", { className: "bars" }, ...bars);
}

// Where a share lies, with its interval, on a line from 0 to 1.
export function drawRange({ share, low, high }) {
  const style = { "--low": low.toFixed(4), "--high": high.toFixed(4), "--value": share.toFixed(4) };
  return make("span", { className: "range", style, attributes: { "aria-hidden": "true" } }, make("i"), make("b"));
}

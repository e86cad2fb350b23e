// One photo with its answer: what is said, how sure, why, and the photos it is like.
//
// In: a photo and its prediction. Out: an element that is drawn anew where the language changes.

import { drawBars } from "./chart.js";
import { make } from "./dom.js";
import { paintMap } from "./heat_map.js";
import { formatNumber, formatShare, hasWord, listNames, nameOf, say } from "./words.js";

const N_SHORTLIST = 6;
const LEAST_SHOWN = 0.0005;

export const nameFault = ({ fault, error }) => (fault && hasWord(`fault_${fault}`) ? say(`fault_${fault}`) : (error ?? ""));

const inHundred = (share) => formatNumber(Math.round(share * 1000) / 10);

// The same in one sentence, for who listens.
export function tellAnswer(prediction) {
  const { file, error, fault, answer, unknown, sure, top } = prediction;
  if (error || fault) return say("said_fault", { file, reason: nameFault(prediction) });
  if (unknown) return say("said_unknown", { file, answer: nameOf(top[0]) });
  return say(sure === false ? "said_unsure" : "said_answer", { file, answer: nameOf(answer), share: formatShare(answer.score) });
}

function explainAnswer(model, { answer, unknown, sure, top, label }) {
  if (unknown) return say("unknown_line", { names: listNames(top.slice(0, 2)) });
  const parts = [];
  if (sure === true && model.promise) parts.push(say("sure", { share: inHundred(model.promise) }));
  if (sure === false) parts.push(say("unsure"));
  if (answer.label !== label) parts.push(say("coarse", { name: nameOf(top[0]) }));
  return parts.join(say("gap"));
}

// The answer in large letters, with what is to be known of it; also what is under the camera.
export function drawAnswer(model, prediction, { nBars = 5 } = {}) {
  const { answer, unknown, sure, top } = prediction;
  const shown = top.slice(0, nBars).filter((one, i) => i === 0 || one.score >= LEAST_SHOWN);
  const name = make("span", { className: unknown ? "unknown" : "" }, nameOf(answer));
  const mark = sure === false && !unknown ? make("span", { className: "light" }, " ?") : null;
  const share = unknown ? null : make("span", { className: "light share" }, ` ${formatShare(answer.score)}`);
  const code = !unknown && answer.plu ? make("p", { className: "code" }, say("plu", { code: answer.plu })) : null;
  return [
    make("h3", { className: "answer" }, name, mark, share),
    make("p", { className: "line" }, explainAnswer(model, prediction)),
    code,
    make("h4", {}, say("probable")),
    drawBars(shown, { said: unknown ? null : answer.label }),
  ];
}

function drawShortlist(model, { shortlist, unknown }) {
  if (!model.promise || unknown || shortlist.length < 2) return [];
  const chips = shortlist.slice(0, N_SHORTLIST).map((one) => make("li", {}, nameOf(one), one.plu ? make("small", {}, ` ${one.plu}`) : null));
  const rest = shortlist.length - N_SHORTLIST;
  if (rest > 0) chips.push(make("li", { className: "rest" }, say("shortlist_more", { n: rest })));
  return [make("h4", {}, say("shortlist", { share: inHundred(model.promise) })), make("ul", { className: "chips" }, ...chips)];
}

function drawNearest({ nearest, label }) {
  if (!nearest?.length) return [];
  const items = nearest.map((one) =>
    make(
      "li",
      {},
      one.photo ? make("img", { src: one.photo, alt: "" }) : make("span", { className: "none" }, say("no_picture")),
      make("p", { className: one.label === label ? "" : "said" }, nameOf(one)),
      make("small", {}, say("similarity", { value: one.similarity.toFixed(2) })),
    ),
  );
  return [make("h4", {}, say("nearest")), make("ul", { className: "nearest" }, ...items)];
}

export class Card {
  constructor(model, { file, blob, onRemove, teaching = null }) {
    Object.assign(this, { model, file, blob, onRemove, teaching, prediction: null, isMapOn: false, ratio: 1, url: URL.createObjectURL(blob) });
    this.element = make("li", { className: "card", tabIndex: -1 });
    this.draw();
  }

  show(prediction) {
    this.prediction = { ...prediction, file: this.file };
    this.draw();
  }

  close() {
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  draw() {
    const { prediction } = this;
    const hasAnswer = Boolean(prediction?.answer);
    this.element.setAttribute("aria-busy", String(!prediction));
    const remove = make("button", { type: "button", className: "close", onclick: () => this.onRemove(this), attributes: { "aria-label": say("remove", { file: this.file }) } }, "×");
    const told = make("div", { className: "told" }, remove, ...(hasAnswer ? this.#drawTold() : this.#drawRest()));
    this.element.replaceChildren(make("div", { className: "view" }, ...this.#drawView()), told);
  }

  #drawView() {
    const { prediction } = this;
    const isFaulty = prediction && !prediction.answer;
    const picture = make("div", { className: "picture", style: { "--ratio": this.isMapOn && this.#isSquare ? 1 : this.ratio } });
    const frame = make("div", { className: "frame" }, isFaulty ? make("span", { className: "none" }, say("no_picture")) : picture);
    picture.append(this.#drawPhoto(picture));
    const name = make("p", { className: "file", title: this.file }, this.file);
    if (!prediction?.heat_map) return [frame, name];
    const button = make("button", { type: "button", attributes: { "aria-pressed": String(this.isMapOn) } }, say("map_show"));
    button.onclick = () => {
      this.isMapOn = !this.isMapOn;
      this.draw();
      this.element.querySelector(".map-tools button").focus();
    };
    const legend = make("span", { className: "legend", hidden: !this.isMapOn }, say("map_against"), make("i", { attributes: { "aria-hidden": "true" } }), say("map_for"));
    if (this.isMapOn) picture.append(this.#drawMap());
    return [frame, make("div", { className: "map-tools" }, button, legend), name];
  }

  // Whether the network sees another part of a photo than the whole; its map then lies on that square alone.
  get #isSquare() {
    return (this.model.preprocessing?.fit ?? "squash") !== "squash";
  }

  #drawPhoto(picture) {
    const image = make("img", { alt: say("photo_of", { file: this.file }), decoding: "async" });
    image.onload = () => {
      this.ratio = image.naturalWidth / image.naturalHeight;
      if (!this.isMapOn) picture.style.setProperty("--ratio", this.ratio);
    };
    image.src = this.url;
    return image;
  }

  #drawMap() {
    const canvas = make("canvas", { attributes: { role: "img", "aria-label": say("map_of", { file: this.file }) } });
    const image = new Image();
    image.onload = () => paintMap(canvas, image, this.prediction.heat_map);
    image.src = this.prediction.seen;
    return canvas;
  }

  #drawTold() {
    const { model, prediction } = this;
    const taught = this.teaching ? [this.teaching.drawForm(this)] : [];
    return [...drawAnswer(model, prediction), ...drawShortlist(model, prediction), ...drawNearest(prediction), ...taught];
  }

  #drawRest() {
    if (!this.prediction) return [make("p", { className: "line waiting" }, say("working"))];
    return [make("h3", { className: "answer fault" }, say("cannot")), make("p", { className: "line" }, nameFault(this.prediction))];
  }
}

// A folder of photos as a table: progress with the time left, rows that can be sorted, a file to download.

import { nameFault } from "./card.js";
import { writeCsv } from "./csv.js";
import { find, make } from "./dom.js";
import { formatDuration, formatShare, nameOf, say } from "./words.js";

const REFRESH_MS = 250;

const scoreOf = ({ answer }) => answer?.score ?? -1;

function remarkOf(prediction) {
  if (!prediction.answer) return nameFault(prediction);
  if (prediction.unknown) return say("unknown_mark");
  return prediction.sure === false ? say("unsure_mark") : "";
}

const COLUMNS = [
  { name: "file", read: (one) => one.file },
  { name: "answer", read: (one) => (one.answer ? nameOf(one.answer) : "") },
  { name: "score", read: scoreOf, isNumber: true },
  { name: "mark", read: remarkOf },
  { name: "second", read: (one) => (one.top[1] ? nameOf(one.top[1]) : "") },
  { name: "plu", read: (one) => one.answer?.plu ?? "" },
];

export class Table {
  constructor({ onOpen }) {
    Object.assign(this, { onOpen, rows: [], n: 0, begun: 0, state: "idle", sorted: null, nOthers: 0, timer: 0 });
    find("cancel").onclick = () => this.abort?.abort();
    find("download").onclick = () => this.#download();
  }

  // Answer for photos {file, path}, as far as nobody cancels it.
  async fill(recogniser, photos, nOthers) {
    this.abort?.abort();
    const abort = new AbortController();
    Object.assign(this, { abort, rows: [], n: photos.length, begun: performance.now(), state: "busy", sorted: null, nOthers });
    find("batch").hidden = false;
    find("table").tBodies[0].replaceChildren();
    this.draw();
    find("batch").scrollIntoView({ block: "start" });
    const keep = (prediction, i) => {
      if (abort !== this.abort || abort.signal.aborted) return;
      this.#addRow({ prediction: { ...prediction, file: photos[i].path }, file: photos[i].file });
    };
    let failure = null;
    try {
      await recogniser.predict(photos.map(({ file }) => file), { onProgress: keep, signal: abort.signal });
    } catch (error) {
      failure = abort.signal.aborted ? null : error;
    }
    if (abort !== this.abort) return; // another folder took its place
    this.state = abort.signal.aborted || failure ? "cancelled" : "done";
    this.tookS = (performance.now() - this.begun) / 1000;
    this.#drawProgress();
    if (failure) throw failure;
  }

  draw() {
    const heads = COLUMNS.map(({ name, isNumber }) => {
      const button = make("button", { type: "button", onclick: () => this.#sort(name) }, say(`column_${name}`));
      const direction = this.sorted?.name === name ? (this.sorted.isDown ? "descending" : "ascending") : null;
      return make("th", { className: isNumber ? "num" : "", scope: "col", dataset: { column: name }, attributes: { "aria-sort": direction } }, button);
    });
    const table = find("table");
    table.tHead.replaceChildren(make("tr", {}, ...heads));
    table.tBodies[0].replaceChildren(...this.rows.map((row) => this.#drawRow(row)));
    this.#drawProgress();
  }

  #addRow(row) {
    this.rows.push(row);
    find("table").tBodies[0].append(this.#drawRow(row));
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      this.#drawProgress();
    }, REFRESH_MS);
  }

  #drawRow({ prediction, file }) {
    const { answer, plu, top, unknown, sure } = prediction;
    const open = make("button", { type: "button", className: "link", onclick: () => this.onOpen(file, prediction.file), attributes: { "aria-label": say("open_row", { file: prediction.file }) } }, prediction.file);
    const isOdd = !answer || unknown;
    return make(
      "tr",
      { className: sure === false ? "doubtful" : "" },
      make("th", { scope: "row" }, open),
      make("td", { className: isOdd ? "said" : "" }, answer ? nameOf(answer) : "–"),
      make("td", { className: "num" }, answer && !unknown ? formatShare(answer.score) : ""),
      make("td", { className: "remark" }, remarkOf(prediction)),
      make("td", {}, top[1] ? nameOf(top[1]) : ""),
      make("td", {}, unknown ? "" : (answer?.plu ?? plu ?? "")),
    );
  }

  #drawProgress() {
    const done = this.rows.length;
    const tookS = (performance.now() - this.begun) / 1000;
    const leftS = done ? (tookS / done) * (this.n - done) : 0;
    Object.assign(find("batch-bar"), { value: this.n ? done / this.n : 0, hidden: this.state !== "busy" });
    find("batch").classList.toggle("busy", this.state === "busy");
    find("cancel").hidden = this.state !== "busy";
    find("download").disabled = !done;
    const key = { busy: done ? "batch_progress" : "batch_begin", done: "batch_done", cancelled: "batch_cancelled", idle: "batch_begin" }[this.state];
    find("batch-text").textContent = say(key, { n: this.n, done, left: formatDuration(leftS), time: formatDuration(this.tookS ?? 0) });
    const rest = [];
    if (this.state !== "busy" && done) rest.push(this.#sumUp());
    if (this.nOthers) rest.push(say("others", { n: this.nOthers }));
    find("batch-rest").textContent = rest.join(say("gap"));
  }

  #sumUp() {
    const answered = this.rows.map(({ prediction }) => prediction).filter(({ answer }) => answer);
    const unknown = answered.filter((one) => one.unknown).length;
    const sure = answered.filter((one) => one.sure).length;
    const isPlain = answered.every((one) => one.sure === null);
    const known = answered.length - unknown;
    const sums = { answered: known, sure, unsure: known - sure, unknown, faulty: this.rows.length - answered.length };
    return say(isPlain ? "batch_sums_plain" : "batch_sums", sums);
  }

  #sort(name) {
    const isDown = this.sorted?.name === name ? !this.sorted.isDown : name === "score";
    this.sorted = { name, isDown };
    const { read, isNumber } = COLUMNS.find((one) => one.name === name);
    const order = new Intl.Collator(document.documentElement.lang, { numeric: true });
    const compare = isNumber ? (a, b) => a - b : order.compare;
    this.rows.sort((a, b) => compare(read(a.prediction), read(b.prediction)) * (isDown ? -1 : 1));
    this.draw();
    find("table").tHead.querySelector(`[data-column="${name}"] button`).focus();
  }

  #download() {
    const url = URL.createObjectURL(new Blob([writeCsv(this.rows.map(({ prediction }) => prediction))], { type: "text/csv;charset=utf-8" }));
    make("a", { href: url, download: say("csv_name") }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
}

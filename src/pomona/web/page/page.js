// The page: takes photos however they come, and shows what is said of them.
//
// In: drops, pastes, files, folders, the camera. Out: cards, a table, the teaching panel.
// Why: one page for two uses. Who answers is behind `recogniser.js`: the service, or a worker in this browser.

import { Camera } from "./camera.js";
import { Card, tellAnswer } from "./card.js";
import { find, make } from "./dom.js";
import { gatherDrop, gatherFiles } from "./gather.js";
import { openRecogniser } from "./recogniser.js";
import { Table } from "./table.js";
import { Teaching } from "./teach.js";
import { chooseLanguage, currentLanguage, formatShare, hasWord, nameOf, onLanguage, say, setLanguage } from "./words.js";

const MOST_CARDS = 8; // more photos at once are a table
const isTouched = matchMedia("(hover: none)").matches;
const cards = [];

let recogniser = null;
let camera = null;
let table = null;
let teaching = null;
let fault = null;

function tellFault(error) {
  if (typeof error === "string") return error;
  const key = { 0: "error_unreachable", 401: "error_token", 403: "error_token", 429: "error_busy", 503: "error_busy" }[error.status];
  return key && hasWord(key) ? say(key) : error.message;
}

function showFault(error) {
  fault = error;
  find("notice").textContent = error ? tellFault(error) : "";
  find("notice").hidden = !error;
}

const announce = (text) => {
  find("said").textContent = text;
};

// --- what it knows --------------------------------------------------------------------------------------------------

function drawModel() {
  const { model, place } = recogniser;
  document.title = `${model.name} · Pomona`;
  find("model-name").textContent = model.name;
  find("knows").textContent = say("knows", { n: model.classes.length });
  find("place").textContent = say(`place_${place}`);
  const order = new Intl.Collator(document.documentElement.lang);
  const names = model.classes.map((one) => ({ name: nameOf(one), plu: one.plu })).sort((a, b) => order.compare(a.name, b.name));
  find("classes").replaceChildren(...names.map(({ name, plu }) => make("li", {}, name, plu ? make("small", {}, ` ${plu}`) : null)));
}

// --- photos ---------------------------------------------------------------------------------------------------------

function removeCard(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  cards.splice(cards.indexOf(card), 1);
  card.close();
  find("answers").hidden = !cards.length;
  (next ?? find("choose")).focus();
}

function addCards(photos) {
  const added = photos.map(({ file, path }) => new Card(recogniser.model, { file: path, blob: file, onRemove: removeCard, teaching }));
  cards.unshift(...added);
  find("cards").prepend(...added.map((card) => card.element));
  find("answers").hidden = false;
  return added;
}

async function answerCards(photos) {
  showFault(null);
  const added = addCards(photos);
  if (added[0].element.getBoundingClientRect().top > innerHeight * 0.6) find("answers").scrollIntoView({ block: "start" });
  const show = (prediction, i) => {
    added[i].show(prediction);
    announce(tellAnswer(added[i].prediction));
  };
  try {
    await recogniser.predict(photos.map(({ file }) => file), { explain: Boolean(recogniser.model.can_explain), topk: 5, onProgress: show });
  } catch (error) {
    for (const card of added.filter((one) => !one.prediction && cards.includes(one))) removeCard(card);
    showFault(error);
  }
  return added;
}

async function take({ photos, nOthers, isFolder }) {
  if (!photos.length) {
    showFault(say("nothing"));
    return;
  }
  if (!isFolder && photos.length <= MOST_CARDS) {
    await answerCards(photos);
    return;
  }
  showFault(null);
  try {
    await table.fill(recogniser, photos, nOthers);
    announce(find("batch-text").textContent);
  } catch (error) {
    showFault(error);
  }
}

async function openRow(file, path) {
  const answering = answerCards([{ file, path }]);
  cards[0].element.focus();
  cards[0].element.scrollIntoView({ block: "nearest" });
  await answering;
}

// --- ways in --------------------------------------------------------------------------------------------------------

function listenToFiles() {
  for (const [button, input, isFolder] of [["choose", "files", false], ["choose-folder", "folder", true]]) {
    find(button).onclick = () => find(input).click();
    find(input).onchange = ({ target }) => {
      const files = [...target.files];
      target.value = ""; // the same file may be chosen again
      if (files.length) take(gatherFiles(files, { isFolder }));
    };
  }
  find("choose-folder").hidden = !("webkitdirectory" in HTMLInputElement.prototype) || isTouched;
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) take(gatherFiles(files));
  });
}

function listenToDrops() {
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    find("give").classList.toggle("over", depth > 0);
  };
  const isFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => isFiles(event) && mark(1));
  addEventListener("dragleave", (event) => isFiles(event) && mark(-1));
  addEventListener("dragover", (event) => isFiles(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!isFiles(event)) return;
    event.preventDefault(); // else the browser leaves the page to show the photo
    mark(-depth);
    if (!recogniser) return;
    const gathered = gatherDrop(event.dataTransfer);
    await gathered.then(take, showFault);
  });
}

function listenToLanguages() {
  const buttons = [...document.querySelectorAll("[data-language]")];
  for (const button of buttons) button.onclick = () => setLanguage(button.dataset.language, { isChosen: true });
  onLanguage(() => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.language === currentLanguage()));
    announce("");
    if (fault) showFault(fault);
    if (!recogniser) return;
    drawModel();
    for (const card of cards) card.draw();
    table.draw();
    camera.draw();
    teaching?.draw();
  });
}

// --- beginning ------------------------------------------------------------------------------------------------------

function showLoading(share) {
  find("loading-text").textContent = share === null ? say("loading") : say("loading_share", { share: formatShare(Math.min(1, share), 0) });
  Object.assign(find("loading-bar"), { hidden: share === null, value: share ?? 0 });
}

async function begin() {
  listenToLanguages();
  listenToDrops();
  if (isTouched) for (const key of ["drop", "drop_hint"]) document.querySelector(`[data-word="${key}"]`).dataset.word = `${key}_touch`;
  await setLanguage(chooseLanguage());
  showLoading(null);
  try {
    recogniser = await openRecogniser({ onLoading: showLoading });
  } catch (error) {
    find("loading-bar").hidden = true;
    find("loading-text").textContent = error.status === 0 ? say("error_unreachable") : say("failed", { reason: error.message });
    return;
  }
  find("loading").hidden = true;
  find("give").hidden = false;
  find("known").hidden = false;
  table = new Table({ onOpen: openRow });
  camera = new Camera(recogniser, { onKeep: (file) => answerCards([{ file, path: file.name }]), onSay: announce, onFault: showFault });
  find("open-camera").onclick = () => {
    showFault(null);
    camera.start();
  };
  find("clear").onclick = () => {
    for (const card of cards.splice(0)) card.close();
    find("answers").hidden = true;
    find("choose").focus();
  };
  if (recogniser.teach) {
    const onModel = (model) => {
      Object.assign(recogniser.model, model);
      drawModel();
    };
    teaching = new Teaching(recogniser, { onFault: showFault, onSay: announce, onModel });
  }
  drawModel();
  listenToFiles();
  document.documentElement.dataset.ready = "true";
}

begin();

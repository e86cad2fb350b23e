"use strict";
// Cards are built from data with text nodes alone: no name of a photo or class is ever parsed as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const photos = data.photos.map(([name, sha256, label, split, picture]) => ({ name, sha256, label, split, picture }));
const byId = (id) => document.getElementById(id);
const classPath = (index) => data.classes[index] ?? "";
const className = (index) => data.names[index] ?? "no class of the training part";
const STEP = 60;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const isolated = (text) => make("bdi", /[\u2e80-\u9fff]/.test(text) ? { lang: "zh-Hans" } : {}, text);

// --- decisions: of the photos here, and those of an imported file that have no card --------------------------------

const storageKey = `pomona-decisions-${data.fingerprint}`;
const keyOf = (photo) => `${photo.sha256} ${photo.name}`;
let decisions = new Map();
let isStored = true;
let isExported = true;

function load() {
  try {
    decisions = new Map(JSON.parse(localStorage.getItem(storageKey) ?? "[]"));
  } catch {
    isStored = false; // some browsers keep nothing for a page that was opened from a file
  }
}

function save() {
  isExported = false;
  try {
    localStorage.setItem(storageKey, JSON.stringify([...decisions]));
    isStored = true;
  } catch {
    isStored = false;
  }
  tellStatus();
}

const isComplete = (decision) => decision !== undefined && (decision.action !== "relabel" || decision.label.trim() !== "");
const find = (photo) => decisions.get(keyOf(photo));

function decide(photo, action, label = "") {
  if (action) decisions.set(keyOf(photo), { name: photo.name, sha256: photo.sha256, action, label });
  else decisions.delete(keyOf(photo));
  save();
}

// --- CSV ------------------------------------------------------------------------------------------------------------

const quote = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function writeDecisions() {
  const rows = [["file_name", "sha256", "decision", "label"]];
  for (const one of decisions.values()) {
    if (isComplete(one)) rows.push([one.name, one.sha256, one.action, one.action === "relabel" ? one.label.trim() : ""]);
  }
  // Excel takes a file for UTF-8 only if it begins with this mark.
  return `\ufeff${rows.map((row) => row.map(quote).join(",")).join("\r\n")}\r\n`;
}

function readCsv(text) {
  const clean = text.replace(/^\ufeff/, "");
  const header = clean.slice(0, clean.search(/[\r\n]|$/));
  const delimiter = [",", ";", "\t"].find((sign) => header.split(sign).length > 2) ?? ",";
  const rows = [[""]];
  let inQuotes = false;
  for (let i = 0; i < clean.length; i++) {
    const sign = clean[i];
    const row = rows.at(-1);
    if (inQuotes) {
      if (sign !== '"') row[row.length - 1] += sign;
      else if (clean[i + 1] === '"') row[row.length - 1] += clean[i++];
      else inQuotes = false;
    } else if (sign === '"') inQuotes = true;
    else if (sign === delimiter) row.push("");
    else if (sign === "\n") rows.push([""]);
    else if (sign !== "\r") row[row.length - 1] += sign;
  }
  return rows.filter((row) => row.some((cell) => cell !== ""));
}

function importDecisions(text) {
  const [header = [], ...rows] = readCsv(text);
  const columns = ["file_name", "sha256", "decision", "label"].map((name) => header.findIndex((cell) => cell.trim().toLowerCase() === name));
  if (columns.slice(0, 3).includes(-1)) return "That file holds no decisions: its first row lacks file_name, sha256 or decision.";
  let n = 0;
  for (const row of rows) {
    const [name, sha256, action, label] = columns.map((column) => row[column] ?? "");
    const decision = { name, sha256: sha256.trim(), action: action.trim().toLowerCase(), label: label.trim() };
    if (!["keep", "drop", "relabel"].includes(decision.action) || !isComplete(decision)) continue;
    decisions.set(keyOf(decision), decision);
    n++;
  }
  save();
  show();
  return `${n} of ${rows.length} rows taken.`;
}

// --- cards ----------------------------------------------------------------------------------------------------------

function makeFigure(number, caption) {
  const photo = photos[number];
  const frame = make("div", { class: "frame" });
  if (photo.picture) frame.append(make("img", { src: `data:image/jpeg;base64,${photo.picture}`, alt: photo.name, loading: "lazy" }));
  else frame.append("no picture");
  const figure = make("figure", { title: photo.name }, frame);
  if (caption) figure.append(make("figcaption", {}, isolated(caption)));
  return figure;
}

const fileOf = (photo) => photo.name.split("/").at(-1);

function makeGallery(text, name, numbers, isLike) {
  const line = make("p", {}, `${text} `, make("b", {}, isolated(name)));
  return make("div", { class: isLike ? "beside like" : "beside" }, line, ...numbers.map((number) => makeFigure(number)));
}

function makeShown(card) {
  const photo = photos[card.photo];
  const others = [...new Set(card.found.map((found) => found[2]).filter((number) => number >= 0 && number !== card.photo))];
  const shown = make("div", { class: "shown" });
  if (others.length) {
    shown.append(...[card.photo, ...others].map((number, place) => {
      const figure = makeFigure(number, (place ? "beside " : "") + className(photos[number].label));
      const split = photos[number].split ? `${photos[number].split} · ` : "";
      figure.append(make("div", { class: "file" }, split, isolated(fileOf(photos[number]))));
      return figure;
    }));
  } else {
    const text = [make("div", { class: "class" }, isolated(className(photo.label)))];
    if (photo.split) text.push(make("div", { class: "muted" }, photo.split));
    text.push(make("div", { class: "file", title: photo.name }, isolated(fileOf(photo))));
    shown.append(makeFigure(card.photo), make("div", { class: "text" }, ...text));
  }
  return shown;
}

function makeReasons(card) {
  return make("ul", { class: "reasons" }, ...card.found.map(([check, reason]) =>
    make("li", {}, make("b", {}, data.checks[check][0]), reason ? ": " : "", isolated(reason))));
}

function makeControls(card, element) {
  const photo = photos[card.photo];
  const suggested = card.found.map((found) => found[3]).find((index) => index >= 0);
  const legend = make("legend", {}, `Decision on ${photo.name}`);
  const inputs = ["keep", "drop", "relabel"].map((value) => make("input", { type: "radio", name: `photo-${card.photo}`, value }));
  const labels = inputs.map((input) => make("label", {}, input, input.value[0].toUpperCase() + input.value.slice(1)));
  const relabel = make("input", { type: "text", class: "relabel", list: "classes", placeholder: "Class, one of these or a new one", "aria-label": "New label", autocomplete: "off" });
  const undo = make("button", { type: "button", class: "undo" }, "Undo");
  const update = () => {
    const decision = find(photo);
    inputs.forEach((input) => (input.checked = decision?.action === input.value));
    relabel.hidden = decision?.action !== "relabel";
    if (decision?.action === "relabel" && relabel.value !== decision.label) relabel.value = decision.label;
    relabel.setAttribute("aria-invalid", String(decision !== undefined && !isComplete(decision)));
    undo.hidden = decision === undefined;
    element.toggleAttribute("data-decided", isComplete(decision));
  };
  const choose = (action) => {
    decide(photo, action, action === "relabel" ? relabel.value || (suggested === undefined ? "" : classPath(suggested)) : "");
    update();
    if (action === "relabel") relabel.select();
  };
  inputs.forEach((input) => input.addEventListener("change", () => choose(input.value)));
  relabel.addEventListener("input", () => { decide(photo, "relabel", relabel.value); update(); });
  relabel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); element.focus(); event.stopPropagation(); }
  });
  undo.addEventListener("click", () => { choose(""); element.focus(); });
  element.choose = choose;
  update();
  return [make("fieldset", {}, legend, ...labels), relabel, undo];
}

function makeCard(card) {
  const photo = photos[card.photo];
  const element = make("article", { class: "card", tabindex: "0", "aria-label": photo.name, "data-photo": card.photo });
  element.append(makeShown(card), makeReasons(card));
  if (card.own.length) element.append(makeGallery("Nearest of its class,", className(photo.label), card.own, false));
  const like = card.found.find((found) => found[3] >= 0);
  if (card.suggested.length) element.append(makeGallery("Nearest of", like ? className(like[3]) : "the suggested class", card.suggested, true));
  element.append(...makeControls(card, element));
  return element;
}

// --- filters --------------------------------------------------------------------------------------------------------

let check = "";
let chosen = [];
let nShown = 0;

for (const card of data.cards) {
  const photo = photos[card.photo];
  const words = card.found.flatMap(([name, reason, , suggested]) => [data.checks[name][0], reason, data.classes[suggested] ?? ""]);
  card.words = [photo.name, classPath(photo.label), ...words].join("\n").toLowerCase();
}

function fits(card) {
  const label = byId("class").value;
  const state = byId("state").value;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const involved = [photos[card.photo].label, ...card.found.map((found) => found[3])];
  return (!check || card.found.some((found) => found[0] === check))
    && (!label || involved.includes(Number(label)))
    && (!state || (state === "done") === isComplete(find(photos[card.photo])))
    && words.every((word) => card.words.includes(word));
}

function show() {
  chosen = data.cards.filter(fits);
  if (check) {
    // The worst of this check first, whatever else was found about them.
    const place = new Map(chosen.map((card) => [card, card.found.find((found) => found[0] === check)[4]]));
    chosen.sort((a, b) => place.get(a) - place.get(b));
  }
  nShown = 0;
  byId("cards").replaceChildren();
  if (chosen.length) showMore();
  else byId("cards").append(make("p", { class: "empty" }, data.cards.length ? "No photo fits these filters." : "Nothing was flagged."));
  byId("more").hidden = nShown >= chosen.length;
  const nTotal = check ? data.counts[check] : data.cards.length;
  const nCards = check ? data.cards.filter((card) => card.found.some((found) => found[0] === check)).length : data.cards.length;
  const more = nTotal > nCards ? ` The ${nCards} worst of ${nTotal} have a card; the table of the audit (--csv) holds them all.` : "";
  byId("told").textContent = data.cards.length ? `${check ? `${data.checks[check][1]} ` : ""}${chosen.length} ${chosen.length === 1 ? "photo" : "photos"}.${more}` : "";
}

function showMore(n = STEP) {
  byId("cards").append(...chosen.slice(nShown, nShown + n).map(makeCard));
  nShown = Math.min(chosen.length, nShown + n);
  byId("more").hidden = nShown >= chosen.length;
}

function makeChip(name, text, n) {
  const chip = make("button", { type: "button", "aria-pressed": String(name === check) }, text, make("span", {}, n));
  chip.addEventListener("click", () => {
    check = name;
    for (const other of byId("checks").children) other.setAttribute("aria-pressed", String(other === chip));
    show();
  });
  return chip;
}

function tellStatus(text = "") {
  const n = [...decisions.values()].filter(isComplete).length;
  const open = data.cards.filter((card) => !isComplete(find(photos[card.photo]))).length;
  const kept = isStored ? "" : " Your browser keeps nothing for this page: export before you close it.";
  byId("status").replaceChildren(make("b", {}, `${n} decided`), `, ${open} open. ${text}${n ? kept : ""}`);
  byId("export").disabled = n === 0;
}

// --- the keyboard ---------------------------------------------------------------------------------------------------

function move(step) {
  const cards = [...byId("cards").querySelectorAll(".card")];
  const at = cards.indexOf(document.activeElement?.closest?.(".card"));
  if (at + step >= cards.length && nShown < chosen.length) {
    showMore();
    return move(step);
  }
  const next = cards[at < 0 ? 0 : Math.max(0, Math.min(cards.length - 1, at + step))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || target.matches("select, textarea, input:not([type=radio])")) return;
  const card = target.closest(".card");
  const onCard = card === target;
  const step = { j: 1, k: -1 }[event.key] ?? (onCard ? { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key] : undefined);
  const action = { 1: "keep", 2: "drop", 3: "relabel", 0: "" }[event.key];
  if (step) move(step);
  else if (card && action !== undefined) {
    card.choose(action);
    if (action === "keep" || action === "drop") move(1);
  } else if (event.key === "/") byId("search").focus();
  else return;
  event.preventDefault();
});

// --- the page -------------------------------------------------------------------------------------------------------

function exportDecisions() {
  const url = URL.createObjectURL(new Blob([writeDecisions()], { type: "text/csv;charset=utf-8" }));
  const link = make("a", { href: url, download: "decisions.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  isExported = true;
}

function showGroups() {
  byId("groups").hidden = data.groups.length === 0;
  byId("strips").append(...data.groups.map((group) => {
    const names = [...new Set(group.photos.map((number) => className(photos[number].label)))];
    const text = make("p", {}, make("b", {}, `${group.n} photos`), make("br"), isolated(names.join(", ")));
    return make("div", { class: "strip" }, text, ...group.photos.map((number) => makeFigure(number)));
  }));
}

const used = new Set(data.cards.flatMap((card) => [photos[card.photo].label, ...card.found.map((found) => found[3])]));
byId("class").append(make("option", { value: "" }, "All classes"), ...data.classes.map((name, index) => [name, index]).filter(([, index]) => used.has(index)).map(([name, index]) => make("option", { value: index }, name)));
byId("classes").append(...data.classes.map((name) => make("option", { value: name })));
byId("checks").append(makeChip("", "All", data.cards.length), ...Object.keys(data.counts).filter((name) => data.cards.some((card) => card.found.some((found) => found[0] === name))).map((name) => makeChip(name, data.checks[name][0], data.counts[name])));
for (const id of ["class", "state", "search"]) byId(id).addEventListener("input", show);
byId("more").addEventListener("click", () => showMore());
byId("export").addEventListener("click", exportDecisions);
byId("import").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) tellStatus(importDecisions(await file.text()));
  event.target.value = "";
});
window.addEventListener("beforeprint", () => showMore(chosen.length));
window.addEventListener("beforeunload", (event) => { if (!isStored && !isExported) event.preventDefault(); });
new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting) && nShown < chosen.length) showMore(); }, { rootMargin: "600px" }).observe(byId("more"));
load();
show();
showGroups();
tellStatus();

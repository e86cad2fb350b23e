// What the page says, in English or Chinese.
//
// In: words.en.json and words.zh.json. Out: texts, names of classes, numbers and times in the language that is on.

const TAGS = { en: "en", zh: "zh-Hans" };
const KEY = "pomona language";
const texts = {};
const listeners = new Set();
let language = "en";

export const currentLanguage = () => language;

export const onLanguage = (listener) => listeners.add(listener);

// Storage may be closed to a page; it then forgets.
function remember(name) {
  try {
    localStorage.setItem(KEY, name);
  } catch {
    return;
  }
}

export function chooseLanguage() {
  let kept = null;
  try {
    kept = localStorage.getItem(KEY);
  } catch {
    kept = null;
  }
  if (kept in TAGS) return kept;
  const first = (navigator.languages ?? [navigator.language]).find((tag) => /^(en|zh)\b/i.test(tag)) ?? "en";
  return first.slice(0, 2).toLowerCase();
}

export async function setLanguage(name, { isChosen = false } = {}) {
  texts[name] ??= await (await fetch(new URL(`words.${name}.json`, import.meta.url))).json();
  language = name;
  if (isChosen) remember(name);
  document.documentElement.lang = TAGS[name];
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  for (const element of document.querySelectorAll("[data-word-label]")) element.setAttribute("aria-label", say(element.dataset.wordLabel));
  for (const listener of listeners) listener();
}

// A text with its places filled; of one thing, its own text where it has one.
export function say(key, values = {}) {
  const all = texts[language] ?? {};
  const text = (values.n === 1 ? all[`${key}_one`] : undefined) ?? all[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? formatNumber(values[name]) : values[name]));
}

export const hasWord = (key) => key in (texts[language] ?? {});

export const formatNumber = (value) => new Intl.NumberFormat(TAGS[language]).format(value);

export const formatShare = (share, digits = 1) =>
  new Intl.NumberFormat(TAGS[language], { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits }).format(share);

export const formatTime = (text) => {
  const time = new Date(text);
  return Number.isNaN(time.valueOf()) ? text : new Intl.DateTimeFormat(TAGS[language], { dateStyle: "medium", timeStyle: "short" }).format(time);
};

export function formatDuration(seconds) {
  if (seconds < 60) return say("seconds", { n: Math.max(1, Math.round(seconds)) });
  return say("minutes", { n: Math.round(seconds / 60) });
}

// What people call a class.
export const nameOf = (one) => (language === "zh" ? one.name_zh : one.name_en) ?? one.label;

export const listNames = (ones) => ones.map(nameOf).join(say("comma"));

// Answers as a table that spreadsheets open as it is meant.
//
// In: predictions. Out: the text of a CSV file, with the mark that tells Excel it is UTF-8.
// Why: files are named by whoever made them. A cell that begins as a formula does is text here, and stays so.

const COLUMNS = ["file", "answer", "answer_score", "sure", "unknown", "label", "score", "name_en", "name_zh", "plu", "second", "second_score", "shortlist", "error"];

const FORMULA = /^[\s]*[=+\-@]|^[\t\r]/;

export function writeCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(Number(value.toFixed(6)));
  if (typeof value === "boolean") return value ? "true" : "false";
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function listCells(prediction) {
  const { file, answer, sure, unknown, label, score, name_en, name_zh, plu, top, shortlist, error } = prediction;
  const second = top[1];
  return [file, answer?.label, answer?.score, sure, label === null ? null : unknown, label, score, name_en, name_zh, plu, second?.label, second?.score, shortlist.map((one) => one.label).join("; "), error];
}

export function writeCsv(predictions) {
  const rows = [COLUMNS, ...predictions.map(listCells)];
  return `\ufeff${rows.map((cells) => cells.map(writeCell).join(",")).join("\r\n")}\r\n`;
}

// The recogniser itself, beside the page: from a photo's bytes to what is said of it.
//
// In: messages {id, blob, name, explain, topk}. Out: messages {id, prediction}, and before them how far loading is.
// Why: decoding and the network take tenths of a second; in a worker the page goes on answering to its user.

import { decodePhoto } from "./decode.js";
import { PhotoFault } from "./photo_file.js";
import { fitPhoto } from "./resize.js";
import { speak } from "./speak.js";
import * as ort from "./runtime/ort.js";

const JPEG_QUALITY = 0.85;
// A store of the browser's own guesses how long a file stays as it is: classes of one export and the graph of another must
// never meet. The server is asked whether it is the same, which is one short reply.
const FRESH = { cache: "no-cache" };
const here = (path) => new URL(path, import.meta.url).href;

// A file with how many of its bytes have come, so that a slow line is not taken for a standstill.
async function fetchBytes(path, onBytes) {
  const reply = await fetch(here(path), FRESH);
  if (!reply.ok) throw new Error(`${path}: ${reply.status}`);
  const reader = reply.body.getReader();
  const parts = [];
  let n = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    parts.push(next.value);
    n += next.value.length;
    onBytes(next.value.length);
  }
  const whole = new Uint8Array(n);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function openModel() {
  const model = await (await fetch(here("model.json"), FRESH)).json();
  let loaded = 0;
  const onBytes = (n) => {
    loaded += n;
    postMessage({ loaded, total: model.bytes_to_load });
  };
  const [network, runtime] = await Promise.all([fetchBytes("model.onnx", onBytes), fetchBytes("runtime/ort-wasm.wasm", onBytes)]);
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.wasmPaths = { mjs: here("runtime/ort-wasm.js") };
  ort.env.wasm.wasmBinary = runtime;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  return { model, session };
}

const opened = openModel();
opened.then(({ model }) => postMessage({ model }), (error) => postMessage({ failed: String(error?.message ?? error) }));

async function drawSeen(square, side) {
  const rgba = new Uint8ClampedArray(side * side * 4).fill(255);
  for (let i = 0; i < side * side; i += 1) rgba.set(square.subarray(i * 3, i * 3 + 3), i * 4);
  const canvas = new OffscreenCanvas(side, side);
  canvas.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
  return new FileReaderSync().readAsDataURL(blob);
}

// From the square that the network takes to what its graph gives.
async function runGraph({ model, session }, square) {
  const { size_px: side } = model.preprocessing;
  const outputs = await session.run({ pixels: new ort.Tensor("uint8", square, [1, side, side, 3]) });
  const values = Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
  if (values.probabilities.length !== model.classes.length) throw new Error("its files are of two exports: reload the page");
  if (!values.probabilities.every(Number.isFinite)) throw new Error("the network gave numbers that are not finite");
  return values;
}

const strangenessOf = (values) => (values.unknown ? values.unknown[0] : null);

async function answer({ blob, name, explain, topk, trace }) {
  const { model, session } = await opened;
  const { preprocessing } = model;
  const photo = await decodePhoto(blob, model, preprocessing.decode_px);
  const square = fitPhoto(photo, preprocessing);
  const values = await runGraph({ model, session }, square);
  const prediction = speak(model, name, values.probabilities, strangenessOf(values), topk);
  if (trace) prediction.trace = { photo, square, outputs: values };
  if (explain && values.heat_map) {
    prediction.heat_map = { side: Math.sqrt(values.heat_map.length), values: Array.from(values.heat_map) };
    prediction.seen = await drawSeen(square, preprocessing.size_px);
    prediction.nearest = [];
  }
  return prediction;
}

const EMPTY = { label: null, score: null, top: [], answer: null, sure: null, unknown: false, strangeness: null, shortlist: [], name_en: null, name_zh: null, plu: null };

onmessage = async ({ data }) => {
  try {
    postMessage({ id: data.id, prediction: await answer(data) });
  } catch (error) {
    if (error instanceof PhotoFault) {
      postMessage({ id: data.id, prediction: { ...EMPTY, file: data.name, error: error.message, fault: error.fault } });
    } else {
      postMessage({ id: data.id, failed: String(error?.message ?? error) });
    }
  }
};

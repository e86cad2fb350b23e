// The recogniser behind the service that this page came from.
//
// In: photos as blobs. Out: predictions as the service gives them; teaching, where it is on.
// Why: the page asks through one interface, whoever answers; `local_recogniser.js` is the other.

const ROOT = new URL("../", import.meta.url);
const BATCH = 8; // photos to a request: few enough that a bar moves, enough that the service is kept busy
const MAX_TRIES = 6;
const WAIT_MS = 1000;

export class ServiceError extends Error {
  constructor(code, message, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });

async function ask(path, { isPredictions = false, ...options } = {}) {
  let reply;
  try {
    reply = await fetch(new URL(path, ROOT), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("unreachable", String(error.message), 0);
  }
  const content = reply.status === 204 ? null : await reply.json().catch(() => null);
  if (reply.ok || (isPredictions && content?.predictions)) return content;
  const { code = "failed", message = `HTTP ${reply.status}` } = content?.error ?? {};
  const error = new ServiceError(code, message, reply.status);
  error.retryAfterS = Number(reply.headers.get("Retry-After")) || null;
  throw error;
}

// Ask again while the service says that it is busy or not yet warm.
async function askPatiently(path, options) {
  for (let i = 1; ; i += 1) {
    try {
      return await ask(path, options);
    } catch (error) {
      if (![429, 503].includes(error.status) || i === MAX_TRIES) throw error;
      await pause((error.retryAfterS ?? 1) * WAIT_MS, options?.signal);
    }
  }
}

// Lots of photos that the service takes in one request.
function* divide(blobs, { max_photos: maxPhotos = BATCH, max_photo_bytes: maxBytes = Infinity }) {
  const most = Math.max(1, Math.min(BATCH, maxPhotos));
  let lot = [];
  let nBytes = 0;
  for (const [i, blob] of blobs.entries()) {
    if (lot.length && (lot.length === most || nBytes + blob.size > maxBytes)) {
      yield lot;
      [lot, nBytes] = [[], 0];
    }
    lot.push({ i, blob });
    nBytes += blob.size;
  }
  if (lot.length) yield lot;
}

const EMPTY = { label: null, score: null, top: [], answer: null, sure: null, unknown: false, strangeness: null, shortlist: [], name_en: null, name_zh: null, plu: null };

// What is said of a photo that the service would not take; what is wrong with the service itself ends it all.
function refuse(error, name) {
  if (![400, 408, 413, 415, 422].includes(error.status)) throw error;
  return { ...EMPTY, file: name, error: error.message, fault: error.status === 413 ? "too_large" : "refused" };
}

export async function openRecogniser() {
  const model = await askPatiently("model");

  async function send(lot, { explain, topk, signal }) {
    const body = new FormData();
    for (const { blob } of lot) body.append("photos", blob, blob.name ?? "photo.jpg");
    const content = await askPatiently(`predict?topk=${topk}&explain=${explain}`, { method: "POST", body, signal, isPredictions: true });
    return content.predictions;
  }

  async function predict(blobs, { explain = false, topk = 5, onProgress = () => {}, signal = null } = {}) {
    const found = [];
    const keep = (prediction, { i, blob }) => {
      found[i] = { ...prediction, file: blob.name ?? prediction.file };
      onProgress(found[i], i);
    };
    const one = async (item) => {
      if (item.blob.size > (model.max_photo_bytes ?? Infinity)) {
        return { ...EMPTY, file: item.blob.name, error: `wanted at most ${model.max_photo_bytes} bytes, got ${item.blob.size}`, fault: "too_large" };
      }
      return (await send([item], { explain, topk, signal }).catch((error) => [refuse(error, item.blob.name)]))[0];
    };
    for (const lot of divide([...blobs], model)) {
      signal?.throwIfAborted();
      const predictions = lot.length === 1 ? null : await send(lot, { explain, topk, signal }).catch((error) => refuse(error) && null);
      for (const [place, item] of lot.entries()) keep(predictions?.[place] ?? (await one(item)), item);
    }
    return found;
  }

  return { model, place: "server", predict, teach: model.can_teach ? openTeaching() : null };
}

function openTeaching() {
  let token = "";
  const call = (path, method = "GET", body = undefined) => askPatiently(path, { method, body, headers: { Authorization: `Bearer ${token}` } });
  return {
    setToken: (text) => {
      token = text;
    },
    read: () => call("teach"),
    add: (blob, label) => call(`teach?label=${encodeURIComponent(label)}`, "POST", new Blob([blob], { type: "application/octet-stream" })),
    remove: (photo) => call(`teach/${photo}`, "DELETE"),
    propose: () => call("teach/proposal", "POST"),
    confirm: (id) => call(`teach/proposal/${id}/confirm`, "POST"),
    discard: (id) => call(`teach/proposal/${id}`, "DELETE"),
    listVersions: () => call("versions"),
    restore: (number) => call(`versions/${number}/restore`, "POST"),
    readModel: () => ask("model"),
  };
}

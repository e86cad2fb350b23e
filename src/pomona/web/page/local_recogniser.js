// The recogniser in the browser: nothing leaves the device.
//
// In: photos as blobs. Out: predictions as the service gives them.
// Why: the page asks through one interface, whoever answers; `service_recogniser.js` is the other.

export async function openRecogniser({ onLoading = () => {} } = {}) {
  const worker = new Worker(new URL("local_worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  const model = await new Promise((resolve, reject) => {
    worker.onerror = () => reject(new Error("the recogniser could not be started"));
    worker.onmessage = ({ data }) => {
      if (data.loaded) onLoading(data.loaded / data.total);
      if (data.model) resolve(data.model);
      if (data.failed) reject(new Error(data.failed));
    };
  });
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.failed) reject(new Error(data.failed));
    else resolve(data.prediction);
  };
  worker.onerror = () => {
    for (const { reject } of waiting.values()) reject(new Error("the recogniser stopped: reload the page"));
    waiting.clear();
  };
  let last = 0;
  const ask = (request) =>
    new Promise((resolve, reject) => {
      last += 1;
      waiting.set(last, { resolve, reject });
      worker.postMessage({ id: last, ...request });
    });

  async function predict(blobs, { explain = false, topk = 5, onProgress = () => {}, signal = null, trace = false } = {}) {
    const found = [];
    for (const blob of blobs) {
      signal?.throwIfAborted();
      const prediction = await ask({ blob, name: blob.name ?? "photo", explain, topk, trace });
      found.push(prediction);
      onProgress(prediction, found.length - 1);
    }
    return found;
  }

  stayOffline();
  return { model, place: "device", predict, teach: null };
}

// Once visited, the page opens without its server; where the browser cannot do that, it needs the server each time.
function stayOffline() {
  navigator.serviceWorker?.register(new URL("../offline.js", import.meta.url)).catch(() => {});
}

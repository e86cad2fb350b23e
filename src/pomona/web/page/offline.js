// The page without its server: once visited, all of it comes from the browser's own store.
//
// In: FILES, which the export writes above these lines. Out: replies to the page's requests.
// Why: page, model and runtime belong together. All files of one export are stored at once and under its own name, so that
// those of two never mix; a newer one takes over when the last window of the older is closed.

const STORE_PREFIX = `pomona ${self.registration.scope} `;
const STORE = STORE_PREFIX + FILES.version;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(STORE).then((store) => store.addAll(FILES.paths.map((path) => new Request(path, { cache: "no-cache" })))));
});

self.addEventListener("activate", (event) => {
  const removeOld = async () => {
    const names = (await caches.keys()).filter((name) => name.startsWith(STORE_PREFIX) && name !== STORE);
    await Promise.all(names.map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(removeOld());
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const answer = async () => {
    const store = await caches.open(STORE);
    return (await store.match(event.request, { ignoreSearch: true })) ?? fetch(event.request);
  };
  event.respondWith(answer());
});

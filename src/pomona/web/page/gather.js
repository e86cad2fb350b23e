// Photos from what a user drops, chooses or pastes, whole folders among it.
//
// In: a drop, a paste, a file input. Out: files, each with the path it had under what was given, and how many other
// files were left out.

const PHOTO = /\.(jpe?g|jfif|png|webp|bmp|gif|avif|heic|heif|tiff?)$/i;

const isPhoto = (file) => file.type.startsWith("image/") || PHOTO.test(file.name);

const readAll = async (folder) => {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return entries; // it gives a hundred at a time
    entries.push(...some);
  }
};

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, path: entry.fullPath.replace(/^\//, "") });
  } else {
    for (const one of await readAll(entry)) await walk(one, found);
  }
}

// Of a folder only what looks like a photo counts; what was named itself counts whatever it is.
function sift(found, isFolder) {
  const kept = isFolder ? found.filter(({ file }) => isPhoto(file) && !file.name.startsWith(".")) : found;
  const order = new Intl.Collator(undefined, { numeric: true });
  if (isFolder) kept.sort((a, b) => order.compare(a.path, b.path));
  return { photos: kept, nOthers: found.length - kept.length, isFolder };
}

export async function gatherDrop(transfer) {
  // Asked for at once: after the first wait the browser has taken them away.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? null);
  const files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return gatherFiles(files);
  const found = [];
  for (const [i, entry] of entries.entries()) {
    if (entry) await walk(entry, found);
    else found.push({ file: files[i], path: files[i].name });
  }
  return sift(found, true);
}

export function gatherFiles(files, { isFolder = false } = {}) {
  return sift([...files].map((file) => ({ file, path: file.webkitRelativePath || file.name })), isFolder);
}

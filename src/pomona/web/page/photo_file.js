// What the bytes of a photo file say before a browser decodes it: format, size, how it was held, and plain faults.
//
// In: bytes. Out: {format, width, height, orientation, parts}, or a PhotoFault; `parts` are the bytes to decode.
// Why: browsers show what is left of a damaged file and refuse others without a reason. A photo that the recogniser
// would refuse is refused here too, by the same name. And what browsers do each in their own way is taken out of the
// bytes first: how a JPEG or WebP photo was held is then undone by `decode.js`, and a PNG is its still picture, without
// the gamma that the recogniser never looked at.

export class PhotoFault extends Error {
  constructor(fault, detail) {
    super(detail);
    this.fault = fault;
  }
}

const viewOf = (bytes, from, to) => {
  const start = Math.min(bytes.length, from);
  return new DataView(bytes.buffer, bytes.byteOffset + start, Math.max(0, Math.min(bytes.length, to) - start));
};

const text = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

const STRANGERS = [["\xff\x0a", "JPEG XL"], ["\0\0\0\x0cJXL ", "JPEG XL"], ["\0\0\0\x0cjP  ", "JPEG 2000"],
  ["\xff\x4f\xff\x51", "JPEG 2000"], ["8BPS", "Photoshop"], ["\0\0\x01\0", "icon"], ["%PDF", "PDF"]];

export function sniffFormat(bytes) {
  const head = text(bytes, 0, 32);
  if (head.startsWith("\xff\xd8\xff")) return "jpeg";
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return "png";
  if (head.startsWith("GIF87a") || head.startsWith("GIF89a")) return "gif";
  if (["II*\0", "MM\0*", "II+\0", "MM\0+"].includes(head.slice(0, 4))) return "tiff";
  if (head.slice(0, 4) === "RIFF" && head.slice(8, 12) === "WEBP") return "webp";
  if (head.startsWith("BM") && [12, 16, 40, 52, 56, 64, 108, 124].includes(head.charCodeAt(14))) return "bmp";
  if (head.slice(4, 8) !== "ftyp") return null;
  const brands = head.slice(8).match(/.{4}/gs) ?? [];
  if (brands.some((brand) => brand === "avif" || brand === "avis")) return "avif";
  if (brands.some((brand) => /^he(i[cxms]|v[cxms])$/.test(brand)) || /^(mif1|msf1|miaf)$/.test(brands[0])) return "heic";
  return null;
}

// Orientation 1-8 of an EXIF block; 1 where it says none that can be read.
function readOrientation(view) {
  if (view.byteLength < 8) return 1;
  const mark = view.getUint32(0);
  if (mark !== 0x49492a00 && mark !== 0x4d4d002a) return 1;
  const little = mark === 0x49492a00;
  const at = view.getUint32(4, little);
  if (at + 2 > view.byteLength) return 1;
  const n = view.getUint16(at, little);
  for (let entry = at + 2; entry < at + 2 + 12 * n && entry + 12 <= view.byteLength; entry += 12) {
    if (view.getUint16(entry, little) === 274) {
      const kind = view.getUint16(entry + 2, little);
      const value = kind === 3 ? view.getUint16(entry + 8, little) : kind === 4 ? view.getUint32(entry + 8, little) : 1;
      return value >= 1 && value <= 8 ? value : 1;
    }
  }
  return 1;
}

// As cameras write up to ten; each scan is a walk over the whole photo.
function checkScans(bytes, view, from, maxScans) {
  let nScans = 0;
  for (let at = from; at + 4 <= bytes.length; ) {
    const marker = bytes[at + 1];
    if (bytes[at] === 0xff && marker === 0xd9) return;
    if (bytes[at] !== 0xff || marker <= 1 || marker >= 0xff || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 1;
      continue;
    }
    nScans += marker === 0xda ? 1 : 0;
    if (nScans > maxScans) throw new PhotoFault("too_many_scans", `wanted a JPEG of at most ${maxScans} scans, it has more: save it as a plain JPEG`);
    at += 2 + view.getUint16(at + 2);
  }
}

function readJpeg(bytes, view, maxScans) {
  const found = { format: "jpeg", width: 0, height: 0, orientation: 1, hasProfile: false, parts: [bytes] };
  const exifs = [];
  let at = 2;
  while (at + 4 <= bytes.length) {
    if (bytes[at] !== 0xff) {
      at += 1;
      continue;
    }
    const marker = bytes[at + 1];
    if (marker === 0xff || marker === 0 || marker === 1 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += marker === 0xff ? 1 : 2;
      continue;
    }
    if (marker === 0xd9 || marker === 0xda) break;
    const size = view.getUint16(at + 2);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame && !found.width && at + 9 <= bytes.length) {
      found.height = view.getUint16(at + 5);
      found.width = view.getUint16(at + 7);
    } else if (marker === 0xe1 && text(bytes, at + 4, at + 10) === "Exif\0\0") {
      if (!exifs.length) found.orientation = readOrientation(viewOf(bytes, at + 10, at + 2 + size));
      exifs.push(at + 4);
    } else if (marker === 0xe2 && text(bytes, at + 4, at + 15) === "ICC_PROFILE") {
      found.hasProfile = true;
    }
    at += 2 + size;
  }
  if (!found.width) throw new PhotoFault("truncated", "this JPEG file ends before it says how large it is");
  requireEnd(bytes, at);
  checkScans(bytes, view, at, maxScans);
  if (found.orientation > 1) found.parts = [hide(bytes, exifs)];
  return found;
}

// The same bytes with what stands at some places renamed, so that no decoder knows it.
function hide(bytes, places) {
  const copy = bytes.slice();
  for (const at of places) copy[at] = 0x78;
  return copy;
}

// The mark at the end of a JPEG stands after its last scan; what a camera adds behind it does not count.
function requireEnd(bytes, from) {
  for (let at = bytes.length - 2; at >= from; at -= 1) {
    if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return;
  }
  throw new PhotoFault("truncated", "this JPEG file ends before its pixels do");
}

const IGNORED_CHUNKS = new Set(["acTL", "fcTL", "fdAT", "cHRM", "cICP", "gAMA"]);

function readPng(bytes, view) {
  if (text(bytes, 12, 16) !== "IHDR" || bytes.length < 33) {
    throw new PhotoFault("truncated", "this PNG file ends before it says how large it is");
  }
  const parts = [bytes.subarray(0, 8)];
  let at = 8;
  while (at + 8 <= bytes.length) {
    const kind = text(bytes, at + 4, at + 8);
    const end = at + 12 + view.getUint32(at);
    if (!IGNORED_CHUNKS.has(kind)) parts.push(bytes.subarray(at, end));
    if (kind === "IEND") return { format: "png", width: view.getUint32(16), height: view.getUint32(20), parts };
    at = end;
  }
  throw new PhotoFault("truncated", "this PNG file ends before its pixels do");
}

function readWebp(bytes, view) {
  if (view.getUint32(4, true) + 8 > bytes.length) throw new PhotoFault("truncated", "this WebP file ends too soon");
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    if (text(bytes, at, at + 4) === "EXIF") {
      const start = at + 8 + (text(bytes, at + 8, at + 14) === "Exif\0\0" ? 6 : 0);
      const orientation = readOrientation(viewOf(bytes, start, at + 8 + size));
      return { format: "webp", orientation, parts: [orientation > 1 ? hide(bytes, [at]) : bytes] };
    }
    at += 8 + size + (size % 2);
  }
  return { format: "webp" };
}

const READERS = {
  jpeg: readJpeg,
  png: readPng,
  gif: (bytes, view) => ({ format: "gif", width: view.getUint16(6, true), height: view.getUint16(8, true) }),
  webp: readWebp,
};

export function readPhotoFile(bytes, { max_pixels: maxPixels, max_scans: maxScans = Infinity }) {
  if (!bytes.length) throw new PhotoFault("empty", "wanted a photo, got no bytes");
  const format = sniffFormat(bytes);
  if (format === null) {
    const stranger = STRANGERS.find(([magic]) => text(bytes, 0, magic.length) === magic);
    if (stranger) throw new PhotoFault("unsupported", `${stranger[1]} files cannot be decoded: convert it to JPEG or PNG`);
    throw new PhotoFault("not_an_image", "wanted JPEG, PNG, WebP, BMP, GIF or AVIF, got something else");
  }
  const view = viewOf(bytes, 0, bytes.length);
  let found = { format };
  if (READERS[format]) {
    if (bytes.length < 16) throw new PhotoFault("truncated", `this ${format.toUpperCase()} file ends too soon`);
    found = READERS[format](bytes, view, maxScans);
  }
  checkSize(found, maxPixels);
  return { orientation: 1, parts: [bytes], ...found };
}

export function checkSize({ width, height }, maxPixels) {
  if (width === undefined) return;
  if (!width || !height) throw new PhotoFault("no_pixels", `wanted a photo, it is ${width} x ${height} pixels`);
  if (width * height > maxPixels) {
    throw new PhotoFault("too_many_pixels", `wanted at most ${maxPixels} pixels, it has ${width} x ${height}: shrink it`);
  }
}

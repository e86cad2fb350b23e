// What the bytes of a photo file say before a browser decodes it: format, size, how it was held, and plain faults.
//
// In: bytes. Out: {format, width, height, orientation}, or a PhotoFault.
// Why: browsers show what is left of a damaged file and refuse others without a reason. A photo that the recogniser
// would refuse is refused here too, by the same name.

export class PhotoFault extends Error {
  constructor(fault, detail) {
    super(detail);
    this.fault = fault;
  }
}

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

function readJpeg(bytes, view) {
  const found = { format: "jpeg", width: 0, height: 0, orientation: 1 };
  let hasExif = false;
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
      found.components = bytes[at + 9];
    } else if (marker === 0xe1 && !hasExif && text(bytes, at + 4, at + 10) === "Exif\0\0") {
      hasExif = true;
      const end = Math.min(bytes.length, at + 2 + size);
      found.orientation = readOrientation(new DataView(bytes.buffer, bytes.byteOffset + at + 10, Math.max(0, end - at - 10)));
    }
    at += 2 + size;
  }
  if (!found.width) throw new PhotoFault("truncated", "this JPEG file ends before it says how large it is");
  requireEnd(bytes, at);
  return found;
}

// The mark at the end of a JPEG stands after its last scan; what a camera adds behind it does not count.
function requireEnd(bytes, from) {
  for (let at = bytes.length - 2; at >= from; at -= 1) {
    if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return;
  }
  throw new PhotoFault("truncated", "this JPEG file ends before its pixels do");
}

function readPng(bytes, view) {
  if (text(bytes, 12, 16) !== "IHDR" || bytes.length < 33) {
    throw new PhotoFault("truncated", "this PNG file ends before it says how large it is");
  }
  let at = 8;
  while (at + 8 <= bytes.length) {
    if (text(bytes, at + 4, at + 8) === "IEND") return { format: "png", width: view.getUint32(16), height: view.getUint32(20) };
    at += 12 + view.getUint32(at);
  }
  throw new PhotoFault("truncated", "this PNG file ends before its pixels do");
}

const READERS = {
  jpeg: readJpeg,
  png: readPng,
  gif: (bytes, view) => ({ format: "gif", width: view.getUint16(6, true), height: view.getUint16(8, true) }),
  webp: (bytes, view) => {
    if (view.getUint32(4, true) + 8 > bytes.length) throw new PhotoFault("truncated", "this WebP file ends too soon");
    return { format: "webp" };
  },
};

export function readPhotoFile(bytes, maxPixels) {
  if (!bytes.length) throw new PhotoFault("empty", "wanted a photo, got no bytes");
  const format = sniffFormat(bytes);
  if (format === null) {
    const stranger = STRANGERS.find(([magic]) => text(bytes, 0, magic.length) === magic);
    if (stranger) throw new PhotoFault("unsupported", `${stranger[1]} files cannot be decoded: convert it to JPEG or PNG`);
    throw new PhotoFault("not_an_image", "wanted JPEG, PNG, WebP, BMP, GIF or AVIF, got something else");
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let found = { format };
  if (READERS[format]) {
    if (bytes.length < 16) throw new PhotoFault("truncated", `this ${format.toUpperCase()} file ends too soon`);
    found = READERS[format](bytes, view);
  }
  checkSize(found, maxPixels);
  return { orientation: 1, ...found };
}

export function checkSize({ width, height }, maxPixels) {
  if (width === undefined) return;
  if (!width || !height) throw new PhotoFault("no_pixels", `wanted a photo, it is ${width} x ${height} pixels`);
  if (width * height > maxPixels) {
    throw new PhotoFault("too_many_pixels", `wanted at most ${maxPixels} pixels, it has ${width} x ${height}: shrink it`);
  }
}

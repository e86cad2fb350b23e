// A JPEG at a half, a quarter or an eighth of its size, to the bit as the recogniser learnt to see it.
//
// In: the bytes of a file, and a divisor. Out: {pixels, width, height} as it lies in the file, or null where this decoder
// does not know its kind, and a browser has to do.
// Why: libjpeg makes a small photo of the low frequencies of each block. A browser gives whole photos only, and means of
// its pixels, clipped and rounded before, differ by some levels; photos of phones are all of that size.
//
// Baseline and progressive, 8 bits, grey or YCbCr, colours whole, halved across, or halved both ways. References: ITU-T
// T.81, F.2 and G.2; libjpeg-turbo, `jidctint.c`, `jidctred.c`, `jdsample.c`, `jdcolor.c`.

import { PhotoFault } from "./photo_file.js";

const ZIGZAG = Uint8Array.of(
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
  29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
);
const LOOK_BITS = 9;
const FRAMES = new Set([0xc0, 0xc1, 0xc2]);

class UnknownKind extends Error {}

const damaged = () => new PhotoFault("corrupt", "this JPEG file is damaged: its pixels cannot be read");

const require = (holds) => {
  if (!holds) throw new UnknownKind();
};

// --- bits -----------------------------------------------------------------------------------------------------------

// Codes by their first bits, and the longer ones by length.
function makeTable(counts, symbols) {
  const table = { symbols, look: new Int16Array(1 << LOOK_BITS).fill(-1), ends: new Int32Array(18).fill(-1), shifts: new Int32Array(18) };
  let code = 0;
  let k = 0;
  for (let length = 1; length <= 16; length += 1) {
    table.shifts[length] = k - code;
    for (let i = 0; i < counts[length - 1]; i += 1) {
      if (length <= LOOK_BITS) table.look.fill((length << 8) | symbols[k], code << (LOOK_BITS - length), (code + 1) << (LOOK_BITS - length));
      code += 1;
      k += 1;
    }
    table.ends[length] = counts[length - 1] ? code - 1 : -1;
    code <<= 1;
  }
  return table;
}

class Bits {
  constructor(bytes, at) {
    Object.assign(this, { bytes, at, held: 0, n: 0, nBeyond: 0 });
  }

  fill() {
    const { bytes } = this;
    while (this.n <= 24) {
      let byte = this.at < bytes.length ? bytes[this.at] : 0;
      if (byte === 0xff) {
        if (bytes[this.at + 1] === 0) this.at += 2;
        else {
          byte = 0; // a mark: there is nothing behind it
          this.nBeyond += 8;
        }
      } else {
        this.at += 1;
      }
      this.held = (this.held << 8) | byte;
      this.n += 8;
    }
  }

  read(n) {
    if (n === 0) return 0;
    if (this.n < n) this.fill();
    this.n -= n;
    return (this.held >>> this.n) & ((1 << n) - 1);
  }

  // A number of so many bits, of which the lower half is negative.
  readSigned(n) {
    const value = this.read(n);
    return n && value < 1 << (n - 1) ? value - (1 << n) + 1 : value;
  }

  readSymbol(table) {
    if (this.n < 16) this.fill();
    const found = table.look[(this.held >>> (this.n - LOOK_BITS)) & ((1 << LOOK_BITS) - 1)];
    if (found >= 0) {
      this.n -= found >> 8;
      return found & 255;
    }
    for (let length = LOOK_BITS + 1; length <= 16; length += 1) {
      const code = (this.held >>> (this.n - length)) & ((1 << length) - 1);
      if (code <= table.ends[length]) {
        this.n -= length;
        return table.symbols[code + table.shifts[length]];
      }
    }
    throw damaged(); // there is no such code
  }

  // Whether no more was read than there was.
  check() {
    if (this.nBeyond > this.n) throw damaged();
  }

  restart() {
    const { bytes } = this;
    this.check();
    Object.assign(this, { held: 0, n: 0, nBeyond: 0 });
    while (this.at + 1 < bytes.length && !(bytes[this.at] === 0xff && bytes[this.at + 1] >= 0xd0 && bytes[this.at + 1] <= 0xd7)) {
      require(bytes[this.at] === 0xff || bytes[this.at + 1] === 0xff);
      this.at += 1;
    }
    this.at += 2;
  }
}

// --- scans ----------------------------------------------------------------------------------------------------------

function readBlock(bits, block, part, scan) {
  const { coefficients: out } = part;
  part.last += bits.readSigned(bits.readSymbol(part.dc));
  out[block] = part.last << scan.low;
  for (let k = 1; k < 64; k += 1) {
    const symbol = bits.readSymbol(part.ac);
    const n = symbol & 15;
    if (n === 0 && symbol < 0xf0) return;
    k += symbol >> 4;
    if (n) out[block + ZIGZAG[k & 63]] = bits.readSigned(n);
  }
}

function readFirstDc(bits, block, part, scan) {
  part.last += bits.readSigned(bits.readSymbol(part.dc));
  part.coefficients[block] = part.last << scan.low;
}

function refineDc(bits, block, part, scan) {
  if (bits.read(1)) part.coefficients[block] |= 1 << scan.low;
}

function readFirstAc(bits, block, part, scan) {
  if (scan.nEmpty > 0) {
    scan.nEmpty -= 1;
    return;
  }
  for (let k = scan.from; k <= scan.to; k += 1) {
    const symbol = bits.readSymbol(part.ac);
    const run = symbol >> 4;
    const n = symbol & 15;
    if (n === 0 && run < 15) {
      scan.nEmpty = (1 << run) - 1 + bits.read(run);
      return;
    }
    k += run;
    if (n) part.coefficients[block + ZIGZAG[k & 63]] = bits.readSigned(n) * (1 << scan.low);
  }
}

function refineAc(bits, block, part, scan) {
  const { coefficients: out } = part;
  const one = 1 << scan.low;
  const refine = (at) => {
    if (bits.read(1) && (out[at] & one) === 0) out[at] += out[at] > 0 ? one : -one;
  };
  let k = scan.from;
  if (scan.nEmpty === 0) {
    for (; k <= scan.to; k += 1) {
      const symbol = bits.readSymbol(part.ac);
      let run = symbol >> 4;
      let value = 0;
      if (symbol & 15) value = bits.read(1) ? one : -one;
      else if (run < 15) {
        scan.nEmpty = (1 << run) + bits.read(run);
        break;
      }
      for (; k <= scan.to; k += 1) {
        const at = block + ZIGZAG[k];
        if (out[at]) refine(at);
        else if (run === 0) {
          if (value) out[at] = value;
          break;
        } else run -= 1;
      }
    }
  }
  if (scan.nEmpty > 0) {
    for (; k <= scan.to; k += 1) if (out[block + ZIGZAG[k]]) refine(block + ZIGZAG[k]);
    scan.nEmpty -= 1;
  }
}

const chooseReader = (frame, scan) => {
  if (!frame.isProgressive) return readBlock;
  if (scan.from === 0) return scan.high ? refineDc : readFirstDc;
  return scan.high ? refineAc : readFirstAc;
};

function readScan(bytes, at, frame, scan, interval) {
  const bits = new Bits(bytes, at);
  const read = chooseReader(frame, scan);
  const isAlone = scan.parts.length === 1;
  const [lone] = scan.parts;
  const across = isAlone ? lone.nAcross : frame.nAcross;
  const down = isAlone ? lone.nDown : frame.nDown;
  let n = 0;
  for (let y = 0; y < down; y += 1) {
    for (let x = 0; x < across; x += 1) {
      if (interval && n && n % interval === 0) {
        bits.restart();
        scan.nEmpty = 0;
        for (const part of scan.parts) part.last = 0;
      }
      n += 1;
      if (isAlone) read(bits, (y * lone.stride + x) * 64, lone, scan);
      else {
        for (const part of scan.parts) {
          for (let v = 0; v < part.v; v += 1) {
            for (let h = 0; h < part.h; h += 1) read(bits, ((y * part.v + v) * part.stride + x * part.h + h) * 64, part, scan);
          }
        }
      }
    }
  }
  bits.check();
  frame.nScans += 1;
  return bits.at;
}

// --- file -----------------------------------------------------------------------------------------------------------

function readFrame(bytes, view, at, marker) {
  require(bytes[at + 4] === 8);
  const frame = { isProgressive: marker === 0xc2, height: view.getUint16(at + 5), width: view.getUint16(at + 7), nScans: 0, parts: [] };
  const n = bytes[at + 9];
  require((n === 1 || n === 3) && frame.height && frame.width);
  for (let i = 0; i < n; i += 1) {
    const from = at + 10 + i * 3;
    frame.parts.push({ id: bytes[from], h: bytes[from + 1] >> 4, v: bytes[from + 1] & 15, table: bytes[from + 2] });
  }
  require(frame.parts.every(({ h, v }) => h >= 1 && h <= 4 && v >= 1 && v <= 4));
  frame.h = Math.max(...frame.parts.map(({ h }) => h));
  frame.v = Math.max(...frame.parts.map(({ v }) => v));
  frame.nAcross = Math.ceil(frame.width / (8 * frame.h));
  frame.nDown = Math.ceil(frame.height / (8 * frame.v));
  for (const part of frame.parts) {
    part.stride = frame.nAcross * part.h;
    part.nAcross = Math.ceil(Math.ceil((frame.width * part.h) / frame.h) / 8);
    part.nDown = Math.ceil(Math.ceil((frame.height * part.v) / frame.v) / 8);
    part.coefficients = new Int16Array(part.stride * frame.nDown * part.v * 64);
  }
  return frame;
}

function readTables(bytes, from, to, tables) {
  for (let at = from; at < to; ) {
    const counts = bytes.subarray(at + 1, at + 17);
    const n = counts.reduce((sum, count) => sum + count, 0);
    tables[bytes[at] & 31] = makeTable(counts, bytes.subarray(at + 17, at + 17 + n));
    at += 17 + n;
  }
}

function readSteps(bytes, view, from, to, steps) {
  for (let at = from; at < to; ) {
    const isWide = bytes[at] >> 4 !== 0;
    const table = new Int32Array(64);
    for (let k = 0; k < 64; k += 1) table[ZIGZAG[k]] = isWide ? view.getUint16(at + 1 + 2 * k) : bytes[at + 1 + k];
    steps[bytes[at] & 15] = table;
    at += isWide ? 129 : 65;
  }
}

function readScanHeader(bytes, at, frame, tables) {
  const n = bytes[at + 4];
  const parts = [];
  for (let i = 0; i < n; i += 1) {
    const part = frame.parts.find(({ id }) => id === bytes[at + 5 + 2 * i]);
    require(part);
    const choice = bytes[at + 6 + 2 * i];
    Object.assign(part, { last: 0, dc: tables[choice >> 4], ac: tables[16 + (choice & 15)] });
    parts.push(part);
  }
  const [from, to, bits] = bytes.subarray(at + 5 + 2 * n, at + 8 + 2 * n);
  return { parts, from, to: Math.min(63, to), high: bits >> 4, low: bits & 15, nEmpty: 0 };
}

const hasText = (bytes, at, text) => [...text].every((sign, i) => bytes[at + i] === sign.charCodeAt(0));

// Coefficients of all blocks; the frame knows its parts and colours.
function readFile(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [tables, steps] = [[], []];
  let frame = null;
  let colours = null;
  let isJfif = false;
  let interval = 0;
  let at = 2;
  while (at + 4 <= bytes.length) {
    const marker = bytes[at + 1];
    if (bytes[at] !== 0xff || marker === 0xff || marker <= 1 || (marker >= 0xd0 && marker <= 0xd7)) {
      at += 1;
      continue;
    }
    if (marker === 0xd9) break;
    const end = at + 2 + view.getUint16(at + 2);
    if (FRAMES.has(marker)) {
      require(!frame);
      frame = readFrame(bytes, view, at, marker);
    } else if (marker === 0xc4) readTables(bytes, at + 4, end, tables);
    else if (marker === 0xdb) readSteps(bytes, view, at + 4, end, steps);
    else if (marker === 0xdd) interval = view.getUint16(at + 4);
    else if (marker === 0xe0 && hasText(bytes, at + 4, "JFIF\0")) isJfif = true;
    else if (marker === 0xee && hasText(bytes, at + 4, "Adobe")) colours = bytes[at + 15];
    else if (marker > 0xc0 && marker < 0xd0) throw new UnknownKind(); // lossless, arithmetic, hierarchical
    else if (marker === 0xda) {
      require(frame);
      at = readScan(bytes, end, frame, readScanHeader(bytes, at, frame, tables), interval);
      continue;
    }
    at = end;
  }
  require(frame?.nScans);
  for (const part of frame.parts) {
    part.steps = steps[part.table];
    require(part.steps);
  }
  const ids = frame.parts.map(({ id }) => id).join();
  require(frame.parts.length === 1 || isJfif || (colours === null ? ids !== "82,71,66" : colours === 1));
  return frame;
}

// --- from frequencies to pixels -------------------------------------------------------------------------------------

const clamp = (level) => (level < 0 ? 0 : level > 255 ? 255 : level);

const work = new Int32Array(64);

// One line of eight, down or across: `rows` of them, `hop` apart.
function turn8(input, from, hop, scale, output, to, stride, round, shift) {
  const a = (i) => input[from + i * hop] * (scale ? scale[(from + i * hop) & 63] : 1);
  const even = (a(2) + a(6)) * 4433;
  const t2 = even - a(6) * 15137;
  const t3 = even + a(2) * 6270;
  const t0 = (a(0) + a(4)) * 8192;
  const t1 = (a(0) - a(4)) * 8192;
  const [s7, s5, s3, s1] = [a(7), a(5), a(3), a(1)];
  const z5 = (s7 + s3 + s5 + s1) * 9633;
  const z1 = (s7 + s1) * -7373;
  const z2 = (s5 + s3) * -20995;
  const z3 = (s7 + s3) * -16069 + z5;
  const z4 = (s5 + s1) * -3196 + z5;
  const o0 = s7 * 2446 + z1 + z3;
  const o1 = s5 * 16819 + z2 + z4;
  const o2 = s3 * 25172 + z2 + z3;
  const o3 = s1 * 12299 + z1 + z4;
  output[to] = (t0 + t3 + o3 + round) >> shift;
  output[to + 7 * stride] = (t0 + t3 - o3 + round) >> shift;
  output[to + stride] = (t1 + t2 + o2 + round) >> shift;
  output[to + 6 * stride] = (t1 + t2 - o2 + round) >> shift;
  output[to + 2 * stride] = (t1 - t2 + o1 + round) >> shift;
  output[to + 5 * stride] = (t1 - t2 - o1 + round) >> shift;
  output[to + 3 * stride] = (t0 - t3 + o0 + round) >> shift;
  output[to + 4 * stride] = (t0 - t3 - o0 + round) >> shift;
}

function turn4(input, from, hop, scale, output, to, stride, round, shift) {
  const a = (i) => input[from + i * hop] * (scale ? scale[(from + i * hop) & 63] : 1);
  const even = a(2) * 15137 - a(6) * 6270;
  const [s7, s5, s3, s1] = [a(7), a(5), a(3), a(1)];
  const first = a(0) * 16384;
  const o0 = s7 * -1730 + s5 * 11893 + s3 * -17799 + s1 * 8697;
  const o2 = s7 * -4176 + s5 * -4926 + s3 * 7373 + s1 * 20995;
  output[to] = (first + even + o2 + round) >> shift;
  output[to + 3 * stride] = (first + even - o2 + round) >> shift;
  output[to + stride] = (first - even + o0 + round) >> shift;
  output[to + 2 * stride] = (first - even - o0 + round) >> shift;
}

function turn2(input, from, hop, scale, output, to, stride, round, shift) {
  const a = (i) => input[from + i * hop] * (scale ? scale[(from + i * hop) & 63] : 1);
  const first = a(0) * 32768;
  const odd = a(7) * -5906 + a(5) * 6967 + a(3) * -10426 + a(1) * 29692;
  output[to] = (first + odd + round) >> shift;
  output[to + stride] = (first - odd + round) >> shift;
}

// For each size of a block: what turns a line, the columns that count, and the shifts of both passes.
const TURNS = {
  8: { turn: turn8, columns: [0, 1, 2, 3, 4, 5, 6, 7], shifts: [11, 18] },
  4: { turn: turn4, columns: [0, 1, 2, 3, 5, 6, 7], shifts: [12, 19] },
  2: { turn: turn2, columns: [0, 1, 3, 5, 7], shifts: [13, 20] },
};

const line = new Int32Array(8);

function drawPlane(part, frame, least) {
  let size = least;
  while (size < 8 && (frame.h * least) % (part.h * size * 2) === 0 && (frame.v * least) % (part.v * size * 2) === 0) size *= 2;
  const width = part.stride * size;
  const height = part.nDown * size;
  const pixels = new Uint8Array(width * height);
  const turns = TURNS[size];
  for (let y = 0; y < part.nDown; y += 1) {
    for (let x = 0; x < part.nAcross; x += 1) {
      const block = (y * part.stride + x) * 64;
      const to = y * size * width + x * size;
      if (size === 1) {
        pixels[to] = clamp(((part.coefficients[block] * part.steps[0] + 4) >> 3) + 128);
        continue;
      }
      for (const column of turns.columns) turns.turn(part.coefficients, block + column, 8, part.steps, work, column, 8, 1 << (turns.shifts[0] - 1), turns.shifts[0]);
      for (let row = 0; row < size; row += 1) {
        turns.turn(work, row * 8, 1, null, line, 0, 1, 1 << (turns.shifts[1] - 1), turns.shifts[1]);
        for (let i = 0; i < size; i += 1) pixels[to + row * width + i] = clamp(line[i] + 128);
      }
    }
  }
  const across = (frame.h * least) / (part.h * size);
  const down = (frame.v * least) / (part.v * size);
  require(down === 1 && (across === 1 || across === 2));
  if (across === 1) return { pixels, width };
  return widen({ pixels, width, height }, Math.ceil((frame.width * part.h * size) / (frame.h * 8)), least > 1);
}

// Twice as many columns: each a quarter of the one beside it, or plainly twice.
function widen({ pixels, width, height }, n, isSmooth) {
  const out = new Uint8Array(width * 2 * height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < n; x += 1) {
      const at = y * width + x;
      const to = y * width * 2 + 2 * x;
      const own = pixels[at];
      const isPlain = !isSmooth || n <= 2;
      out[to] = isPlain || x === 0 ? own : (3 * own + pixels[at - 1] + 1) >> 2;
      out[to + 1] = isPlain || x === n - 1 ? own : (3 * own + pixels[at + 1] + 2) >> 2;
    }
  }
  return { pixels: out, width: width * 2 };
}

const share = (factor) => Math.round(factor * 65536);
const [CR_RED, CB_BLUE, CR_GREEN, CB_GREEN] = [1.402, 1.772, 0.71414, 0.34414].map(share);

function mixColours(planes, width, height) {
  const pixels = new Uint8Array(width * height * 3);
  const [light, blueness, redness] = planes;
  let to = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const level = light.pixels[y * light.width + x];
      if (redness) {
        const cb = blueness.pixels[y * blueness.width + x] - 128;
        const cr = redness.pixels[y * redness.width + x] - 128;
        pixels[to] = clamp(level + ((CR_RED * cr + 32768) >> 16));
        pixels[to + 1] = clamp(level + ((-CB_GREEN * cb - CR_GREEN * cr + 32768) >> 16));
        pixels[to + 2] = clamp(level + ((CB_BLUE * cb + 32768) >> 16));
      } else {
        pixels.fill(level, to, to + 3);
      }
      to += 3;
    }
  }
  return pixels;
}

export function decodeReduced(bytes, divisor) {
  try {
    const frame = readFile(bytes);
    const planes = frame.parts.map((part) => drawPlane(part, frame, 8 / divisor));
    const width = Math.ceil(frame.width / divisor);
    const height = Math.ceil(frame.height / divisor);
    return { pixels: mixColours(planes, width, height), width, height };
  } catch (error) {
    if (error instanceof UnknownKind || error instanceof RangeError) return null;
    throw error;
  }
}

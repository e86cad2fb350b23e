// Fitting a photo into the square that the network takes, bit for bit as the recogniser learnt to see.
//
// In: RGB bytes and a preprocessing. Out: RGB bytes of the square.
// Why: a browser's own resizer differs from Pillow's, and from one browser to the next, by more than a network forgives.
// The steps are those of Pillow's `Resample.c` for 8-bit pixels: antialiased, weights in fixed point, across before down;
// from Pillow 13 on the other way round where that side loses more than twice the pixels, if `may_start_down` says so.

const PRECISION_BITS = 32 - 8 - 2;
const ONE = 2 ** PRECISION_BITS;
const PAPER = 127; // beside a photo that is padded

const triangle = (x) => Math.max(0, 1 - Math.abs(x));

const cubic = (x) => {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
};

const FILTERS = { bilinear: { weigh: triangle, support: 1 }, bicubic: { weigh: cubic, support: 2 } };

// Which pixels each new one is made of, and how much of each, in fixed point.
function listWeights(nIn, start, stop, nOut, filter) {
  const scale = Math.fround(stop - start) / nOut;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const nTaps = Math.ceil(support) * 2 + 1;
  const firsts = new Int32Array(nOut);
  const counts = new Int32Array(nOut);
  const weights = new Int32Array(nOut * nTaps);
  const own = new Float64Array(nTaps);
  for (let i = 0; i < nOut; i += 1) {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const n = Math.min(nIn, Math.trunc(centre + support + 0.5)) - first;
    let sum = 0;
    for (let j = 0; j < n; j += 1) {
      own[j] = filter.weigh((j + first - centre + 0.5) * (1 / stretch));
      sum += own[j];
    }
    for (let j = 0; j < n; j += 1) {
      const share = (sum === 0 ? own[j] : own[j] / sum) * ONE;
      weights[i * nTaps + j] = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    }
    firsts[i] = first;
    counts[i] = n;
  }
  return { firsts, counts, weights, nTaps };
}

const clip = (sum) => {
  const level = sum >> PRECISION_BITS;
  return level < 0 ? 0 : level > 255 ? 255 : level;
};

// Rows from one to another of a photo, brought to another width.
function resizeRows(pixels, width, rowFrom, rowTo, nOut, plan) {
  const out = new Uint8Array((rowTo - rowFrom) * nOut * 3);
  let at = 0;
  for (let y = rowFrom; y < rowTo; y += 1) {
    for (let x = 0; x < nOut; x += 1) {
      let red = ONE / 2;
      let green = red;
      let blue = red;
      let from = (y * width + plan.firsts[x]) * 3;
      const end = x * plan.nTaps + plan.counts[x];
      for (let k = x * plan.nTaps; k < end; k += 1) {
        const weight = plan.weights[k];
        red += pixels[from] * weight;
        green += pixels[from + 1] * weight;
        blue += pixels[from + 2] * weight;
        from += 3;
      }
      out[at] = clip(red);
      out[at + 1] = clip(green);
      out[at + 2] = clip(blue);
      at += 3;
    }
  }
  return out;
}

// Rows `rowFrom` and on of a photo, brought to another height.
function resizeColumns(pixels, width, rowFrom, nOut, plan) {
  const stride = width * 3;
  const out = new Uint8Array(nOut * stride);
  const sums = new Float64Array(stride);
  for (let y = 0; y < nOut; y += 1) {
    sums.fill(ONE / 2);
    for (let j = 0; j < plan.counts[y]; j += 1) {
      const weight = plan.weights[y * plan.nTaps + j];
      const from = (plan.firsts[y] + j - rowFrom) * stride;
      for (let x = 0; x < stride; x += 1) sums[x] += pixels[from + x] * weight;
    }
    for (let x = 0; x < stride; x += 1) out[y * stride + x] = clip(sums[x]);
  }
  return out;
}

// Part `box` (left, top, right, bottom) of a photo, resized; the whole where there is no box.
export function resizePhoto({ pixels, width, height }, nAcross, nDown, steps, box = [0, 0, width, height]) {
  const filter = FILTERS[steps.resample];
  const [left, top, right, bottom] = box.map(Math.fround);
  const isAcross = nAcross !== width || left !== 0 || right !== nAcross;
  const isDown = nDown !== height || top !== 0 || bottom !== nDown;
  const across = listWeights(width, left, right, nAcross, filter);
  const down = listWeights(height, top, bottom, nDown, filter);
  if (!isAcross && !isDown) return pixels.slice();
  if (!isDown) return resizeRows(pixels, width, 0, height, nAcross, across);
  if (!isAcross) return resizeColumns(pixels, width, 0, nDown, down);
  const lost = [width - nAcross, height - nDown];
  if (steps.may_start_down && lost[1] > 0 && 2 * lost[0] < lost[1]) {
    return resizeRows(resizeColumns(pixels, width, 0, nDown, down), width, 0, nDown, nAcross, across);
  }
  const last = nDown - 1;
  const rows = resizeRows(pixels, width, down.firsts[0], down.firsts[last] + down.counts[last], nAcross, across);
  return resizeColumns(rows, nAcross, down.firsts[0], nDown, down);
}

// Python's `round`: of two that are as near, the even one.
const roundEven = (x) => {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
};

// What the network takes of a photo {pixels, width, height}, as `Preprocessing.apply` has it.
export function fitPhoto(photo, steps) {
  const { size_px: side, fit, crop_share: share = 1 } = steps;
  const { pixels, width, height } = photo;
  if (width === side && height === side && share === 1) return pixels.slice();
  if (fit !== "pad") {
    const short = Math.min(width, height);
    const [across, down] = (fit === "squash" ? [width, height] : [short, short]).map((length) => length * share);
    const [left, top] = [(width - across) / 2, (height - down) / 2];
    return resizePhoto(photo, side, side, steps, [left, top, left + across, top + down]);
  }
  const factor = side / Math.max(width, height);
  const [across, down] = [width, height].map((length) => Math.max(1, roundEven(length * factor)));
  const inner = resizePhoto(photo, across, down, steps);
  const canvas = new Uint8Array(side * side * 3).fill(PAPER);
  const [left, top] = [Math.floor((side - across) / 2), Math.floor((side - down) / 2)];
  for (let y = 0; y < down; y += 1) {
    canvas.set(inner.subarray(y * across * 3, (y + 1) * across * 3), ((top + y) * side + left) * 3);
  }
  return canvas;
}

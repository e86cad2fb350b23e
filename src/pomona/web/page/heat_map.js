// What spoke for an answer in red, and against it in faint blue, laid over the photo as `pomona explain` does.

const FOR = [214, 48, 12];
const AGAINST = [38, 92, 160];
const FULL = 0.92;
const FAINT = 0.3;
const BRIGHTEST = 0.995;
const SIDE = 448;

const cubic = (x) => {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
};

// Weights that bring n values along a line to `side`.
function listTaps(n, side) {
  return Array.from({ length: side }, (_, i) => {
    const centre = ((i + 0.5) * n) / side;
    const taps = [];
    for (let j = Math.max(0, Math.floor(centre - 1.5)); j < Math.min(n, centre + 1.5); j += 1) taps.push([j, cubic(j + 0.5 - centre)]);
    const sum = taps.reduce((all, [, weight]) => all + weight, 0);
    return taps.map(([j, weight]) => [j, weight / sum]);
  });
}

function enlarge(values, n, side) {
  const taps = listTaps(n, side);
  const rows = Float32Array.from({ length: n * side }, (_, i) => taps[i % side].reduce((sum, [j, weight]) => sum + weight * values[Math.floor(i / side) * n + j], 0));
  return Float32Array.from({ length: side * side }, (_, i) => taps[Math.floor(i / side)].reduce((sum, [j, weight]) => sum + weight * rows[j * side + (i % side)], 0));
}

function findScale(values) {
  const sorted = values.map(Math.abs).sort((a, b) => a - b);
  const place = (sorted.length - 1) * BRIGHTEST;
  const low = sorted[Math.floor(place)];
  return low + (sorted[Math.ceil(place)] - low) * (place % 1) || 1;
}

// Paint a canvas with what the network saw, an image, under its map.
export function paintMap(canvas, image, { side: n, values }) {
  Object.assign(canvas, { width: SIDE, height: SIDE });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, SIDE, SIDE);
  const picture = pen.getImageData(0, 0, SIDE, SIDE);
  const { data } = picture;
  const scale = findScale(values);
  const strengths = enlarge(values.map((value) => value / scale), n, SIDE);
  for (let i = 0; i < strengths.length; i += 1) {
    const strength = Math.max(-1, Math.min(1, strengths[i]));
    const grey = 70 + 0.68 * (0.299 * data[i * 4] + 0.587 * data[i * 4 + 1] + 0.114 * data[i * 4 + 2]);
    const cover = strength > 0 ? FULL * strength ** 0.8 : FAINT * -strength;
    const colour = strength > 0 ? FOR : AGAINST;
    const shade = 0.45 + (0.55 * grey) / 243; // shadows of the photo show through the colour
    for (let c = 0; c < 3; c += 1) data[i * 4 + c] = (1 - cover) * grey + cover * colour[c] * shade;
  }
  pen.putImageData(picture, 0, 0);
}

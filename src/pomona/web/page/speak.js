// What is said of one photo, as `pomona.prediction.Speaker` says it.
//
// In: what the graph gives for a photo, and what model.json says of classes, nodes and promises. Out: a prediction.
// Why: names, nodes and thresholds come from the recogniser as data; only the choosing is here, and a test holds it to
// the other one. Sums are rounded to 32 bits where NumPy's are, so that a threshold is not passed on one side alone.

const UNKNOWN_FROM = 0.5;
const { fround } = Math;

const rankDown = (values) => [...values.keys()].sort((a, b) => values[b] - values[a] || a - b);

const nameClass = (model, c, score) => {
  const { label, name_en, name_zh, plu } = model.classes[c];
  return { label, score, name_en, name_zh, plu };
};

const nameNode = (model, node, score) => {
  const n = model.classes.length;
  if (node < n) return nameClass(model, node, score);
  const { label, name_en, name_zh } = model.nodes[node - n];
  return { label, score: Math.min(1, score), name_en, name_zh, plu: null };
};

// Probabilities of all nodes: the classes first, then those above them.
export function weighNodes(model, probabilities) {
  const above = model.nodes.map(({ members }) => members.reduce((sum, c) => fround(sum + probabilities[c]), 0));
  return Float32Array.from([...probabilities, ...above]);
}

// The node with the fewest classes that is sure enough, of equals the most probable; else the surest at the top.
export function chooseNode(model, shares, least) {
  const n = model.classes.length;
  const enough = fround(least);
  let best = -1;
  let lowest = Infinity;
  for (let node = 0; node < shares.length; node += 1) {
    if (shares[node] >= enough) {
      const size = node < n ? 1 : model.nodes[node - n].members.length;
      const rank = fround(size - fround(Math.min(shares[node], 1) / 2));
      if (rank < lowest) [best, lowest] = [node, rank];
    }
  }
  if (best >= 0) return { node: best, sure: true };
  const top = model.top.reduce((most, node) => (shares[node] > shares[most] ? node : most), model.top[0]);
  return { node: top, sure: false };
}

export function speak(model, file, probabilities, strangeness, nTop = 5) {
  const order = rankDown(probabilities);
  const name = (c) => nameClass(model, c, probabilities[c]);
  const first = name(order[0]);
  const unknown = strangeness !== null && strangeness >= UNKNOWN_FROM;
  let answer = first;
  let sure = null;
  let listed = [];
  if (model.thresholds) {
    const shares = weighNodes(model, probabilities);
    const chosen = chooseNode(model, shares, model.thresholds.least_answer);
    answer = nameNode(model, chosen.node, shares[chosen.node]);
    sure = chosen.sure && !unknown;
    const least = fround(model.thresholds.least_shortlist);
    listed = order.slice(0, Math.max(1, probabilities.filter((share) => share >= least).length));
  }
  if (unknown) answer = { label: "unknown", score: strangeness, name_en: "Unknown", name_zh: "未知", plu: null };
  return {
    file,
    label: first.label,
    score: first.score,
    top: order.slice(0, nTop).map(name),
    error: null,
    answer,
    sure,
    unknown,
    strangeness,
    shortlist: listed.map(name),
    name_en: first.name_en,
    name_zh: first.name_zh,
    plu: first.plu,
    fault: null,
  };
}

// The tokens of an episode, colored by what the trainer knows of them, with what the colors mean.
import { h, number, signed } from "./dom.js";

const DARKEST = 3; // nats below 0 from which a token is not shaded more
const STRONGEST = 2; // size of an advantage from which on it is not shaded more
const LEAST_MISMATCH = 0.02; // nats: a mismatch below this is no full color, also where none is larger

// Name -> color of a token from its values, and the legend from all of the sampled ones.
const WAYS = {
  mask: { color: () => "rgb(80 140 255 / 0.28)", legend: maskLegend },
  "log-probability": {
    color: (token) => token.logprob != null && `rgb(240 130 20 / ${share(-token.logprob, DARKEST, 0.85)})`,
    legend: logprobLegend,
  },
  "sampler-trainer mismatch": {
    color: (token, most) => token.mismatch != null && tint(token.mismatch, most),
    legend: mismatchLegend,
  },
  advantage: { color: (token) => token.advantage != null && tint(token.advantage), legend: advantageLegend },
};

const share = (value, most, strongest) => Math.min(strongest, (strongest * value) / most).toFixed(3);

export const tint = (value, most = STRONGEST) =>
  `rgb(${value >= 0 ? "40 170 90" : "220 70 60"} / ${share(Math.abs(value), most, 0.7)})`;

export function tokenView(found) {
  const box = h("div", { class: "ids" });
  const key = h("p", { class: "legendline" });
  const sampled = found.spans.filter((span) => span.mask).flatMap(tokensOf);
  const most = sampled.reduce((found, token) => Math.max(found, Math.abs(token.mismatch ?? 0)), LEAST_MISMATCH);
  const draw = (by) => {
    const named = new Set(); // turns; what closed a thought at its budget parts one in two
    box.replaceChildren(
      ...found.spans.map((span) => {
        const begins = span.mask && !named.has(span.turn);
        named.add(span.turn);
        return drawSpan(span, by, most, begins);
      }),
    );
    key.replaceChildren(...WAYS[by].legend(sampled, found, most));
  };
  const options = Object.keys(WAYS).map((name) => h("option", {}, name));
  const choose = h("select", { "aria-label": "colored by", onchange: (e) => draw(e.target.value) }, options);
  draw("mask");
  return h(
    "div",
    {},
    h(
      "div",
      { class: "tokenhead" },
      h("div", { class: "bar" }, h("h2", {}, "Tokens"), h("label", {}, "colored by ", choose)),
      key,
    ),
    found.reason && h("p", { class: "notice" }, found.reason),
    found.tokenizer && h("p", { class: "notice" }, `ids, not text: ${found.tokenizer}`),
    box,
  );
}

function tokensOf(span) {
  return span.ids.map((id, i) => {
    const [logprob, trainer] = [span.logprobs?.[i], span.trainer?.[i]];
    const mismatch = logprob == null || trainer == null ? null : trainer - logprob;
    return { id, text: span.texts ? span.texts[i] : `${id} `, logprob, mismatch, advantage: span.advantage };
  });
}

function drawSpan(span, by, most, begins) {
  const pieces = tokensOf(span).map((token) => {
    const words = [
      `id ${token.id}`,
      span.mask ? `turn ${span.turn + 1}` : "not trained on",
      token.logprob != null && `log-probability ${number(token.logprob, 4)}`,
      token.mismatch != null && `trainer ${signed(token.mismatch, 4)}`,
      token.advantage != null && `advantage ${signed(token.advantage)}`,
    ];
    const piece = h("span", { class: "token", title: words.filter(Boolean).join(" · ") }, token.text);
    const color = span.mask && WAYS[by].color(token, most);
    if (color) piece.style.backgroundColor = color;
    return piece;
  });
  const beside = by === "advantage" && span.advantage != null ? ` ${signed(span.advantage, 2)}` : "";
  const head = begins ? h("sup", { class: "turn" }, `turn ${span.turn + 1}${beside}`) : null;
  return h("span", { class: span.mask ? "sampled" : "given" }, head, pieces);
}

function maskLegend(sampled, found) {
  const total = found.spans.reduce((sum, span) => sum + span.ids.length, 0);
  return [
    h("i", { class: "swatch masked" }),
    `sampled, in the loss: ${sampled.length} of ${total} tokens  `,
    h("i", { class: "swatch given" }),
    "prompt, replies and results: mask 0",
  ];
}

function logprobLegend(sampled) {
  const known = sampled.map((token) => token.logprob).filter((value) => value != null);
  if (!known.length) return ["the policy gave no log-probabilities"];
  const words = `0 … −${DARKEST} nats of the sampler; mean ${number(mean(known), 3)}, lowest ${number(least(known), 2)}`;
  return [h("i", { class: "ramp logprob" }), words];
}

function mismatchLegend(sampled, found, most) {
  const known = sampled.map((token) => token.mismatch).filter((value) => value != null);
  if (!known.length) {
    const hasNone = sampled.some((token) => token.logprob != null) ? "no training learned from this attempt" : "";
    return [found.untrained || hasNone || "the policy gave no log-probabilities"];
  }
  const sizes = known.map(Math.abs);
  const words = `−${number(most, 3)} … 0 … +${number(most, 3)} nats, the trainer's log-probability less the sampler's; `;
  return [
    h("i", { class: "ramp advantage" }),
    words,
    `mean size ${digits(mean(sizes))}, largest ${digits(-least(sizes.map((v) => -v)))}`,
  ];
}

function advantageLegend(sampled) {
  if (!sampled.some((token) => token.advantage != null)) {
    return ["no advantage: a group of one, no evidence, or rewards of turns that cannot be made here"];
  }
  return [h("i", { class: "ramp advantage" }), `−${STRONGEST} … 0 … +${STRONGEST}, each turn's own where the estimator has one`];
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

const least = (values) => values.reduce((a, b) => Math.min(a, b)); // Math.min of 100,000 arguments is refused

const digits = (value) => (value === 0 ? "0" : Number(value).toPrecision(2));

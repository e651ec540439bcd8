// The tokens of an episode, colored by what the trainer knows of them, with what the colors mean.
import { h, number, signed } from "./dom.js";

const WAYS = ["mask", "log-probability", "advantage"];
const DARKEST = 3; // nats below 0 from which a token is not shaded more
const STRONGEST = 2; // size of an advantage from which on it is not shaded more

export function tokenView(found) {
  const box = h("div", { class: "ids" }), key = h("p", { class: "legendline" });
  const draw = (by) => {
    box.replaceChildren(...found.spans.map((span) => drawSpan(span, by)));
    key.replaceChildren(...legend(by, found));
  };
  const choose = h("select", { "aria-label": "colored by", onchange: (e) => draw(e.target.value) }, WAYS.map((name) => h("option", {}, name)));
  draw(WAYS[0]);
  return h("div", {}, h("div", { class: "bar" }, h("h2", {}, "Tokens"), h("label", {}, "colored by ", choose)), key,
    found.reason && h("p", { class: "notice" }, found.reason), found.tokenizer && h("p", { class: "notice" }, `ids, not text: ${found.tokenizer}`), box);
}

function drawSpan(span, by) {
  const pieces = span.ids.map((id, i) => {
    const logprob = span.logprobs?.[i];
    const words = [`id ${id}`, span.mask ? `turn ${span.turn + 1}` : "not trained on", logprob != null && `log-probability ${number(logprob, 4)}`,
      span.advantage != null && `advantage ${signed(span.advantage)}`];
    const piece = h("span", { class: "token", title: words.filter(Boolean).join(" · ") }, span.texts ? span.texts[i] : `${id} `);
    const color = span.mask ? shade(by, logprob, span.advantage) : null;
    if (color) piece.style.backgroundColor = color;
    return piece;
  });
  const head = span.mask ? h("sup", { class: "turn" }, `turn ${span.turn + 1}${by === "advantage" && span.advantage != null ? ` ${signed(span.advantage, 2)}` : ""}`) : null;
  return h("span", { class: span.mask ? "sampled" : "given" }, head, pieces);
}

export const tint = (value) => `rgb(${value >= 0 ? "40 170 90" : "220 70 60"} / ${Math.min(0.7, (0.7 * Math.abs(value)) / STRONGEST).toFixed(3)})`;

function shade(by, logprob, advantage) {
  if (by === "mask") return "rgb(80 140 255 / 0.28)";
  if (by === "advantage") return advantage == null ? null : tint(advantage);
  return logprob == null ? null : `rgb(240 130 20 / ${Math.min(0.85, (0.85 * -logprob) / DARKEST).toFixed(3)})`;
}

function legend(by, found) {
  const sampled = found.spans.filter((span) => span.mask);
  const total = found.spans.reduce((sum, span) => sum + span.ids.length, 0), trained = sampled.reduce((sum, span) => sum + span.ids.length, 0);
  if (by === "mask") return [h("i", { class: "swatch masked" }), `sampled, in the loss: ${trained} of ${total} tokens  `, h("i", { class: "swatch given" }), "prompt, replies and results: mask 0"];
  if (by === "advantage") {
    return sampled.some((span) => span.advantage != null) ? [h("i", { class: "ramp advantage" }), `−${STRONGEST} … 0 … +${STRONGEST}, each turn's own where the estimator has one`] : ["no advantage: a group of one, no evidence, or rewards of turns that cannot be made here"];
  }
  const known = sampled.flatMap((span) => span.logprobs || []).filter((value) => value != null);
  if (!known.length) return ["the policy gave no log-probabilities"];
  const mean = known.reduce((a, b) => a + b, 0) / known.length;
  return [h("i", { class: "ramp logprob" }), `0 … −${DARKEST} nats of the sampler; mean ${number(mean, 3)}, lowest ${number(Math.min(...known), 2)}`];
}

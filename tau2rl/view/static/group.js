// The attempts of a group turn by turn: where they part, and what each turn is worth.
import { h, get, number, badge, signed } from "./dom.js";
import { summed } from "./conversation.js";
import { tint } from "./tokens.js";

export async function groupPage([id, number_]) {
  const at = Number(number_);
  const [run, found] = await Promise.all([get(`runs/${id}`), get(`runs/${id}/episodes/${at}/group`)]);
  const scores = found.attempts.map((one) => one.score).filter((score) => score != null);
  const mean = scores.reduce((a, b) => a + b, 0) / Math.max(1, scores.length);
  const deviation = Math.sqrt(scores.reduce((sum, score) => sum + (score - mean) ** 2, 0) / Math.max(1, scores.length));
  const order = [...found.attempts].sort((a, b) => (b.score ?? -1e9) - (a.score ?? -1e9) || a.attempt - b.attempt);
  const how = found.estimator || "as grpo would have it";
  const body = h(
    "section",
    {},
    h(
      "div",
      { class: "bar" },
      h("h1", {}, found.task),
      h(
        "span",
        { class: "dim" },
        `${found.attempts.length} attempts · score ${number(mean, 3)} ± ${number(deviation, 3)} · advantage: ${how}`,
      ),
    ),
    h(
      "p",
      { class: "legendline" },
      h("i", { class: "swatch worse" }),
      "negative advantage ",
      h("i", { class: "swatch better" }),
      "positive ",
      h("span", { class: "dim" }, "· dashed: malformed · red edge: refused by the environment"),
    ),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "lanes" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["attempt", "result", "score", "advantage", "turns"].map((name) => h("th", {}, name)),
          ),
        ),
        h(
          "tbody",
          {},
          order.map((one) => lane(id, one)),
        ),
      ),
    ),
  );
  return { body, title: found.task, up: `#/run/${id}/${at}`, crumbs: [h("a", { href: `#/run/${id}` }, run.name), found.task] };
}

function lane(id, one) {
  const chip = (step) => {
    const value = one.advantages?.length > 1 ? one.advantages[step.turn] : one.advantages?.[0];
    const box = h(
      "span",
      {
        class: `chip ${step.kind}${step.refused ? " refused" : ""}`,
        title: `turn ${step.turn + 1}: ${step.label}${step.refused ? " (refused)" : ""} · advantage ${signed(value)}`,
      },
      step.kind === "say" ? `“${step.label}”` : step.label,
      one.advantages?.length > 1 && h("small", {}, ` ${signed(value, 2)}`),
    );
    if (value != null) box.style.backgroundColor = tint(value);
    return box;
  };
  return h(
    "tr",
    {},
    h("td", {}, h("a", { class: "row", href: `#/run/${id}/${one.id}` }, one.greedy ? "greedy" : `#${one.attempt}`)),
    h("td", {}, badge(one.status, one.reward >= 0.999999)),
    h("td", { class: "num" }, number(one.score, 3)),
    h("td", { class: "num" }, signed(summed(one), 3)),
    h("td", {}, h("div", { class: "chips" }, one.steps.map(chip))),
  );
}

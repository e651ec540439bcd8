// One conversation with its checks, its group and its tokens; two of them side by side.
import { h, get, number, count, badge } from "./dom.js";

const FOLD = 280; // characters of a result that show before it is opened

export async function episodePage([id, number_], query) {
  const at = Number(number_);
  const [run, found] = await Promise.all([get(`runs/${id}`), get(`runs/${id}/episodes/${at}`)]);
  const tokens = h("div", { class: "tokens" });
  const toggle = async () => {
    if (tokens.childElementCount) return tokens.replaceChildren();
    tokens.replaceChildren(tokenView(await get(`runs/${id}/episodes/${at}/tokens`)));
    (tokens.querySelector(".sampled") || tokens).scrollIntoView({ block: "center" });
  };
  const other = found.group.find((one) => one.id !== at && (one.reward >= 1) !== (found.reward >= 1)) || found.group.find((one) => one.id !== at);
  const compare = other ? `#/compare/${id}:${at}/${id}:${other.id}` : null;
  const body = h("section", {},
    h("div", { class: "bar" }, h("h1", {}, found.key), badge(found.status, found.reward >= 0.999999),
      h("button", { onclick: toggle }, "tokens"), compare && h("a", { class: "button", href: compare }, "compare"),
      h("a", { class: "button", href: `api/runs/${id}/episodes/${at}/raw`, download: true }, "record")),
    h("div", { class: "columns" }, h("div", { class: "talk" }, found.items.map((item) => message(item))), aside(id, found)), tokens);
  if (query.get("tokens")) await toggle();
  return { body, title: found.key, up: `#/run/${id}`, crumbs: [h("a", { href: `#/run/${id}` }, run.name), found.key],
    keys: { t: toggle, n: () => (location.hash = `#/run/${id}/${at + 1}`), p: () => at > 1 && (location.hash = `#/run/${id}/${at - 1}`), c: () => compare && (location.hash = compare) } };
}

function message(item, marked) {
  const names = { agent: "agent", user: "user", result: item.side === "user" ? "user's device" : "tool", malformed: "malformed turn" };
  const text = item.text && (item.who === "result" && item.text.length > FOLD
    ? h("details", {}, h("summary", {}, `${item.text.slice(0, 120).replaceAll("\n", " ")} …`), h("pre", {}, item.text))
    : h(item.who === "result" ? "pre" : "p", {}, item.text));
  return h("article", { class: `${item.who} from-${item.side}${item.error ? " refused" : ""}${marked ? " first" : ""}` },
    h("div", { class: "who" }, marked && h("b", {}, "first difference · "), names[item.who], item.error && item.who === "result" ? " · refused" : "",
      item.turn != null && h("span", {}, ` · turn ${item.turn + 1} · ${number(item.seconds, 2)} s${item.sampled ? ` · ${item.sampled} tokens` : ""}`)),
    item.thought && h("p", { class: "thought" }, item.thought), text,
    item.calls.map((call) => call.arguments === "{}" ? h("div", { class: "call" }, h("code", {}, item.side === "user" ? "on the device: " : "", call.name, "()")) : h("details", { class: "call", open: call.arguments.length < FOLD }, h("summary", {}, item.side === "user" ? "on the device: " : "", call.name), h("pre", {}, call.arguments))));
}

function aside(id, found) {
  const parts = Object.entries(found.score?.components || {});
  const failed = found.checks.filter((check) => !check.passed), passed = found.checks.filter((check) => check.passed);
  const check = (one) => h("li", { class: one.passed ? "yes" : one.counts ? "no" : "idle" }, h("b", {}, one.passed ? "✓ " : "✗ ", one.kind.replace("_", " ")), one.counts ? "" : h("small", {}, " (not in the reward)"),
    h("code", {}, one.side === "user" ? "user: " : "", one.expected ?? "the reference is not known here"));
  return h("aside", {},
    h("div", { class: "card" }, row("reward", number(found.reward, 2)), row("score", number(found.score?.shaped, 3)), row("partial", number(found.score?.partial, 3)),
      parts.map(([name, value]) => row(`· ${name}`, number(value, 3))), row("ended by", found.reason), found.fault && row("fault", found.fault), row("graded by", found.basis.join(" ") || "–"),
      row("turns", found.turns), row("tokens sampled", count(found.sampled)), row("seconds", number(found.seconds, 1))),
    found.failure && h("div", { class: "card bad" }, h("b", {}, found.failure.kind), h("p", {}, found.failure.message)),
    found.checks.length > 0 && h("div", { class: "card" }, h("small", {}, failed.length ? "failed checks, and what was expected" : "all checks passed"), h("ul", { class: "checks" }, failed.map(check)),
      passed.length > 0 && h("details", { open: !failed.length }, h("summary", {}, `${passed.length} passed`), h("ul", { class: "checks" }, passed.map(check)))),
    found.group.length > 1 && h("div", { class: "card" }, h("small", {}, `attempts at this task · advantage ${found.estimator ? `(${found.estimator})` : "as grpo would have it"}`),
      h("div", { class: "group" }, found.group.map((one) => h("a", { href: `#/run/${id}/${one.id}`, class: one.id === found.id ? "here" : "" },
        one.greedy ? "greedy" : `#${one.attempt}`, badge(one.status, one.reward >= 0.999999), h("span", { class: "num" }, number(one.score, 2)), h("span", { class: "num" }, one.advantage == null ? "–" : `${one.advantage > 0 ? "+" : ""}${number(one.advantage, 2)}`))))));
}

const row = (name, value) => h("div", { class: "line" }, h("span", {}, name), h("b", {}, String(value)));

function tokenView(found) {
  const box = h("div", { class: "ids" });
  const draw = (by) => box.replaceChildren(...found.spans.map((span) => h("span", { class: span.mask ? "sampled" : "given" }, span.ids.map((id, i) => {
    const logprob = span.logprobs?.[i];
    const piece = h("span", { class: "token", title: `id ${id}${span.mask ? ` · turn ${span.turn + 1}` : " · not trained on"}${logprob == null ? "" : ` · log-probability ${logprob.toFixed(4)}`}${span.advantage == null ? "" : ` · advantage ${span.advantage.toFixed(3)}`}` }, span.texts ? span.texts[i] : `${id} `);
    const color = span.mask ? shade(by, logprob, span.advantage) : null;
    if (color) piece.style.backgroundColor = color;
    return piece;
  }))));
  const choose = h("select", { "aria-label": "colored by", onchange: (e) => draw(e.target.value) }, ["mask", "log-probability", "advantage"].map((name) => h("option", {}, name)));
  draw("mask");
  return h("div", {}, h("div", { class: "bar" }, h("h2", {}, "Tokens"), h("label", {}, "colored by ", choose)), found.reason && h("p", { class: "notice" }, found.reason),
    found.tokenizer && h("p", { class: "notice" }, `ids, not text: ${found.tokenizer}`), box);
}

function shade(by, logprob, advantage) {
  if (by === "mask") return "rgb(80 140 255 / 0.28)";
  if (by === "advantage") return advantage == null ? null : `rgb(${advantage >= 0 ? "40 170 90" : "220 70 60"} / ${Math.min(0.75, Math.abs(advantage) * 0.35)})`;
  return logprob == null ? null : `rgb(240 130 20 / ${Math.min(0.85, -logprob / 3)})`;
}

export async function comparePage([a, b]) {
  const found = await get("compare", { a, b });
  const side = (one) => h("div", { class: "talk" }, h("h2", {}, h("a", { href: `#/run/${one.run}/${one.id}` }, one.key), " ", badge(one.status, one.reward >= 0.999999)), h("p", { class: "dim" }, one.run_name),
    one.items.map((item, i) => message(item, i === found.first)));
  return { body: h("section", {}, h("div", { class: "bar" }, h("h1", {}, "Side by side"), h("span", { class: "dim" }, found.first == null ? "no difference" : `first difference at message ${found.first + 1}`)),
    h("div", { class: "pair" }, side(found.a), side(found.b))), title: "compare", up: `#/run/${found.a.run}/${found.a.id}`, crumbs: ["compare"] };
}

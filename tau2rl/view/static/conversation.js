// One conversation with its checks beside it, its group and its tokens.
import { h, get, number, count, badge, line as row, signed } from "./dom.js";
import { tokenView } from "./tokens.js";

const FOLD = 280; // characters of a result that show before it is opened

export async function episodePage([id, number_], query) {
  const at = Number(number_);
  const [run, found] = await Promise.all([get(`runs/${id}`), get(`runs/${id}/episodes/${at}`)]);
  const address = (n) => `#/run/${id}/${n}`;
  const tokens = h("div", { class: "tokens" });
  const toggle = async () => {
    if (tokens.childElementCount) return tokens.replaceChildren();
    tokens.replaceChildren(tokenView(await get(`runs/${id}/episodes/${at}/tokens`)));
    (tokens.querySelector(".sampled") || tokens).scrollIntoView({ block: "center" });
  };
  const other =
    found.group.find((one) => one.id !== at && one.reward >= 1 !== found.reward >= 1) || found.group.find((one) => one.id !== at);
  const compare = other ? `#/compare/${id}:${at}/${id}:${other.id}` : null;
  const body = h(
    "section",
    {},
    h(
      "div",
      { class: "bar" },
      h("h1", {}, found.key),
      badge(found.status, found.reward >= 0.999999),
      h("button", { onclick: toggle }, "tokens"),
      compare && h("a", { class: "button", href: compare }, "compare"),
      h("a", { class: "button", href: `api/runs/${id}/episodes/${at}/raw`, download: true }, "record"),
    ),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        { class: "talk" },
        found.items.map((item) => message(item)),
      ),
      aside(id, found),
    ),
    tokens,
  );
  if (query.get("tokens")) await toggle();
  return {
    body,
    title: found.key,
    up: `#/run/${id}`,
    crumbs: [h("a", { href: `#/run/${id}` }, run.name), found.key],
    keys: {
      t: toggle,
      n: () => (location.hash = address(at + 1)),
      p: () => at > 1 && (location.hash = address(at - 1)),
      c: () => compare && (location.hash = compare),
      g: () => found.group.length > 1 && (location.hash = `#/run/${id}/${at}/group`),
    },
  };
}

export function message(item, marked) {
  const names = {
    agent: "agent",
    user: "user",
    result: item.side === "user" ? "user's device" : "tool",
    malformed: "malformed turn",
  };
  const text =
    item.text &&
    (item.who === "result" && item.text.length > FOLD
      ? h("details", {}, h("summary", {}, `${item.text.slice(0, 120).replaceAll("\n", " ")} …`), h("pre", {}, item.text))
      : h(item.who === "result" ? "pre" : "p", {}, item.text));
  return h(
    "article",
    { class: `${item.who} from-${item.side}${item.error ? " refused" : ""}${marked ? " first" : ""}` },
    h(
      "div",
      { class: "who" },
      marked && h("b", {}, "first difference · "),
      names[item.who],
      item.error && item.who === "result" ? " · refused" : "",
      item.turn != null &&
        h(
          "span",
          {},
          ` · turn ${item.turn + 1} · ${number(item.seconds, 2)} s${item.sampled ? ` · ${item.sampled} tokens` : ""}`,
        ),
    ),
    item.thought && h("p", { class: "thought" }, item.thought),
    text,
    item.calls.map((call) =>
      call.arguments === "{}"
        ? h("div", { class: "call" }, h("code", {}, item.side === "user" ? "on the device: " : "", call.name, "()"))
        : h(
            "details",
            { class: "call", open: call.arguments.length < FOLD },
            h("summary", {}, item.side === "user" ? "on the device: " : "", call.name),
            h("pre", {}, call.arguments),
          ),
    ),
  );
}

function aside(id, found) {
  const parts = Object.entries(found.score?.components || {});
  const failed = found.checks.filter((check) => !check.passed),
    passed = found.checks.filter((check) => check.passed);
  const check = (one) =>
    h(
      "li",
      { class: one.passed ? "yes" : one.counts ? "no" : "idle" },
      h("b", {}, one.passed ? "✓ " : "✗ ", one.kind.replace("_", " ")),
      one.counts ? "" : h("small", {}, " (not in the reward)"),
      h("code", {}, one.side === "user" ? "user: " : "", one.expected ?? "the reference is not known here"),
    );
  return h(
    "aside",
    {},
    h(
      "div",
      { class: "card" },
      row("reward", number(found.reward, 2)),
      row("score", number(found.score?.shaped, 3)),
      row("partial", number(found.score?.partial, 3)),
      parts.map(([name, value]) => row(`· ${name}`, number(value, 3))),
      row("ended by", found.reason),
      found.fault && row("fault", found.fault),
      row("graded by", found.basis.join(" ") || "–"),
      row("turns", found.turns),
      row("tokens sampled", count(found.sampled)),
      row("seconds", number(found.seconds, 1)),
    ),
    found.failure && h("div", { class: "card bad" }, h("b", {}, found.failure.kind), h("p", {}, found.failure.message)),
    found.checks.length > 0 &&
      h(
        "div",
        { class: "card" },
        h("small", {}, failed.length ? "failed checks, and what was expected" : "all checks passed"),
        h("ul", { class: "checks" }, failed.map(check)),
        passed.length > 0 &&
          h(
            "details",
            { open: !failed.length },
            h("summary", {}, `${passed.length} passed`),
            h("ul", { class: "checks" }, passed.map(check)),
          ),
      ),
    found.group.length > 1 && groupCard(id, found),
  );
}

function groupCard(id, found) {
  const most = Math.max(1, ...found.group.map((one) => Math.abs(summed(one) || 0)));
  const line = (one) =>
    h(
      "a",
      { href: `#/run/${id}/${one.id}`, class: one.id === found.id ? "here" : "" },
      one.greedy ? "greedy" : `#${one.attempt}`,
      badge(one.status, one.reward >= 0.999999),
      h("span", { class: "num" }, number(one.score, 2)),
      diverging(summed(one), most),
      h("span", { class: "num" }, signed(summed(one), 2)),
    );
  const how = found.estimator ? found.estimator : "as grpo would have it";
  return h(
    "div",
    { class: "card" },
    h(
      "small",
      {},
      `group: score, advantage (${how}${found.group.some((one) => one.advantages?.length > 1) ? ", mean of turns" : ""})`,
    ),
    h("div", { class: "group" }, found.group.map(line)),
    h("a", { class: "button", href: `#/run/${id}/${found.id}/group` }, "turn by turn"),
  );
}

/** An attempt's advantage, or the mean of its turns'; null where it is no evidence. */
export const summed = (one) =>
  one.advantages?.length ? one.advantages.reduce((a, b) => a + b, 0) / one.advantages.length : null;

function diverging(value, most) {
  const bar = h("i", { class: value >= 0 ? "up" : "down" });
  bar.style.width = `${value == null ? 0 : (50 * Math.abs(value)) / most}%`;
  bar.style[value >= 0 ? "left" : "right"] = "50%";
  return h("span", { class: "diverging" }, bar);
}

// Two attempts side by side, what both share once, and the first difference between them.
import { h, get, number, badge, line } from "./dom.js";
import { message } from "./conversation.js";

/** A task before and after: the first unsolved attempt of the first run, the first solved one of the second, where there are such. */
export async function taskPage([a, b], query) {
  const task = query.get("task");
  const [before, after] = await Promise.all([get(`runs/${a}/attempts`, { task }), get(`runs/${b}/attempts`, { task })]);
  if (!before.length || !after.length) throw new Error(`${task} was not played in both runs`);
  const solved = (one) => one.reward >= 0.999999;
  const left = before.find((one) => !solved(one)) || before[0];
  const right =
    after.find((one) => solved(one) !== solved(left) && one.id !== left.id) ||
    after.find((one) => a !== b || one.id !== left.id) ||
    after[0];
  history.replaceState(null, "", `#/compare/${a}:${left.id}/${b}:${right.id}`);
  return comparePage([`${a}:${left.id}`, `${b}:${right.id}`]);
}

export async function comparePage([a, b]) {
  const [found, runs] = await Promise.all([get("compare", { a, b }), get("runs")]);
  const sides = [found.a, found.b],
    [left, right] = sides;
  const first = found.first,
    shared = left.items.slice(0, first ?? left.items.length);
  const pickers = await Promise.all(sides.map((side, i) => picker(side, i, sides, runs)));
  const head = (side, i) =>
    h(
      "div",
      { class: "card" },
      h("small", {}, i ? "B" : "A"),
      pickers[i],
      h(
        "div",
        { class: "bar" },
        badge(side.status, side.reward >= 0.999999),
        h("a", { href: `#/run/${side.run}/${side.id}` }, side.key),
      ),
      line("reward", number(side.reward, 2)),
      line("score", number(side.score?.shaped, 3)),
      line("turns", side.turns),
      line("ended by", side.reason),
      h(
        "ul",
        { class: "checks" },
        side.checks
          .filter((one) => !one.passed && one.counts)
          .map((one) =>
            h("li", { class: "no" }, h("b", {}, `✗ ${one.kind.replace("_", " ")}`), h("code", {}, one.expected ?? "")),
          ),
      ),
    );
  const rest = (side, i) =>
    h(
      "div",
      { class: "talk" },
      h("h2", { class: "side" }, i ? "B" : "A"),
      side.items.slice(first).map((item, at) => message(item, at === 0)),
      side.items.length <= first && h("p", { class: "dim" }, "ends here"),
    );
  const body = h(
    "section",
    {},
    h(
      "div",
      { class: "bar" },
      h("h1", {}, "Side by side"),
      h("span", { class: "dim" }, first == null ? "the same conversation" : `first difference at message ${first + 1}`),
    ),
    h("div", { class: "pair" }, sides.map(head)),
    shared.length > 0 &&
      h(
        "details",
        { class: "shared", open: shared.length <= 6 || first == null },
        h("summary", {}, `the same in both: ${shared.length} messages`),
        h(
          "div",
          { class: "talk" },
          shared.map((item) => message(item)),
        ),
      ),
    first != null && [
      h("div", { class: "divider" }, h("b", {}, "first difference")),
      h("div", { class: "pair" }, sides.map(rest)),
    ],
  );
  return {
    body,
    title: "side by side",
    up: `#/run/${left.run}/${left.id}`,
    crumbs: [h("a", { href: `#/run/${left.run}` }, left.run_name), "side by side"],
  };
}

async function picker(side, i, sides, runs) {
  const task = side.key.slice(0, side.key.lastIndexOf("#"));
  const own = await get(`runs/${side.run}/attempts`, { task, place: side.place });
  const go = (run, id) => {
    const pair = sides.map((one) => `${one.run}:${one.id}`);
    pair[i] = `${run}:${id}`;
    location.hash = `#/compare/${pair.join("/")}`;
  };
  const says = h("small", { class: "notice" });
  const openRun = async (id) => {
    const there = await get(`runs/${id}/attempts`, { task });
    if (there.length) go(id, (there.find((one) => one.attempt === side.attempt) || there[0]).id);
    else says.textContent = " has no attempt at this task";
  };
  const runChoice = h(
    "select",
    { "aria-label": `run of ${i ? "B" : "A"}`, onchange: (e) => openRun(e.target.value) },
    runs.filter((run) => run.episodes).map((run) => h("option", { value: run.id, selected: run.id === side.run }, run.name)),
  );
  const attemptChoice = h(
    "select",
    { "aria-label": `attempt of ${i ? "B" : "A"}`, onchange: (e) => go(side.run, e.target.value) },
    own.map((one) =>
      h(
        "option",
        { value: one.id, selected: one.id === side.id },
        `${one.greedy ? "greedy" : `#${one.attempt}`} ${one.reward >= 0.999999 ? "solved" : one.status === "completed" ? "unsolved" : one.status}`,
      ),
    ),
  );
  return h("div", { class: "picker" }, runChoice, attemptChoice, says);
}

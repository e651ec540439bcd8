// Runs task by task: a row a run, a cell a task, colored by the share of attempts that solved it.
import { h, get, count, signed, table } from "./dom.js";

const MOST_CELLS = 600; // of a row; the list below the cells has the others too
const MOST_LINES = 12;

export async function tasksPage([ids]) {
  const body = h("section");
  const refresh = async () =>
    body.replaceChildren(h("div", { class: "bar" }, h("h1", {}, "Task by task")), taskGrid(await get("tasks", { runs: ids })));
  await refresh();
  return { body, title: "tasks", watch: ids.split(","), refresh, crumbs: ["task by task"], up: "#/" };
}

/** `models`: id of a run -> what its model is called in its pipeline. */
export function taskGrid({ runs, tasks }, models = {}) {
  const found = { tasks, runs: runs.map((run) => ({ ...run, model: models[run.id] })) };
  const share = (cell) => (cell ? cell[0] / cell[1] : null);
  const order = [...found.tasks].sort((a, b) => compareShares(b, a, share) || a.task.localeCompare(b.task));
  const cells = order.slice(0, MOST_CELLS);
  const row = (run, i) =>
    h(
      "div",
      { class: "gridrow" },
      h(
        "div",
        { class: "gridname" },
        h("a", { href: `#/run/${run.id}` }, run.model || run.name),
        " ",
        h("small", {}, changes(order, i, share)),
      ),
      h(
        "div",
        { class: "cells" },
        cells.map((task) => cell(found.runs, task, i)),
      ),
    );
  const moved = order.filter((task) => found.runs.length > 1 && share(task.counts[0]) !== share(task.counts.at(-1)));
  moved.sort((a, b) => change(b, share) - change(a, share));
  const shown = moved.length > MOST_LINES ? [...moved.slice(0, MOST_LINES / 2), ...moved.slice(-MOST_LINES / 2)] : moved;
  return h(
    "section",
    {},
    h("h2", { class: "above" }, `What changed on ${count(found.tasks.length)} tasks`),
    legend(),
    h("div", { class: "card cellbox" }, found.runs.map(row)),
    found.tasks.length > MOST_CELLS && h("p", { class: "dim" }, `the first ${MOST_CELLS} are drawn`),
    shown.length > 0 &&
      table(
        ["task", ...shortNames(found.runs.map((run) => run.model || run.name)), "change", ""],
        shown.map((task) => taskRow(found.runs, task, share)),
        [],
        "changed",
      ),
    shown.length < moved.length &&
      h("p", { class: "dim" }, `${count(moved.length)} tasks changed; here those that changed most, either way`),
  );
}

/** Names without what all begin and end with: `a-base-eval`, `a-sft-eval` are `base`, `sft`. */
function shortNames(names) {
  const parts = names.map((name) => name.split("-"));
  const least = Math.min(...parts.map((each) => each.length)) - 1;
  if (names.length < 2) return names;
  const shared = (at) => new Set(parts.map((each) => each.at(at))).size === 1;
  let [start, end] = [0, 0];
  while (start < least && shared(start)) start += 1;
  while (start + end < least && shared(-1 - end)) end += 1;
  return parts.map((each) => each.slice(start, each.length - end).join("-"));
}

function compareShares(a, b, share) {
  for (let i = a.counts.length - 1; i >= 0; i--) {
    const apart = (share(a.counts[i]) ?? -1) - (share(b.counts[i]) ?? -1);
    if (apart) return apart;
  }
  return 0;
}

const change = (task, share) => (share(task.counts.at(-1)) ?? 0) - (share(task.counts[0]) ?? 0);

const pairAddress = (before, after, task) => `#/task/${before.id},${after.id}?${new URLSearchParams({ task })}`;

function cell(runs, task, i) {
  const [solved, valid] = task.counts[i] || [0, 0];
  const words = `${task.task}: ${valid ? `${solved} of ${valid} solved` : "no attempt"}`;
  const mark = h("a", {
    class: valid ? "cell" : "cell none",
    href: pairAddress(runs[Math.max(0, i - 1)], runs[i], task.task),
    title: words,
    tabindex: -1,
    "aria-label": words,
  });
  if (valid)
    mark.style.backgroundColor = `color-mix(in oklab, var(--cell-good) ${Math.round((100 * solved) / valid)}%, var(--cell-bad))`;
  return mark;
}

function changes(tasks, i, share) {
  if (i === 0) return "";
  const pairs = tasks
    .map((task) => [share(task.counts[i - 1]), share(task.counts[i])])
    .filter(([a, b]) => a != null && b != null);
  return `${pairs.filter(([a, b]) => b > a).length} better, ${pairs.filter(([a, b]) => b < a).length} worse than before`;
}

function taskRow(runs, task, share) {
  const [before, after] = [runs[0], runs.at(-1)];
  const rise = change(task, share);
  return h(
    "tr",
    {},
    h("td", {}, h("a", { class: "row", href: pairAddress(before, after, task.task) }, task.task)),
    task.counts.map((each) => h("td", {}, each ? `${each[0]} of ${each[1]}` : h("span", { class: "dim" }, "–"))),
    h("td", {}, h("b", { class: rise > 0 ? "good" : "bad" }, signed(rise, 2))),
    h("td", {}, h("a", { href: pairAddress(before, after, task.task), tabindex: -1 }, "side by side")),
  );
}

function legend() {
  return h(
    "p",
    { class: "legendline" },
    h("i", { class: "swatch solved" }),
    "solved by all attempts ",
    h("i", { class: "swatch half" }),
    "by half ",
    h("i", { class: "swatch unsolved" }),
    "by none ",
    h("span", { class: "dim" }, "· a cell opens the task beside the run before"),
  );
}

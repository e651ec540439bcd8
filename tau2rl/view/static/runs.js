// The list of runs; a run with its headline and the table of its episodes.
import { h, runHead, get, number, count, interval, badge, table, line } from "./dom.js";
import { keyCharts } from "./curves.js";
import { pipelineBody } from "./pipeline.js";

const PAGE = 50;

export async function runList() {
  const chosen = new Set();
  const body = h("section");
  const refresh = async () => {
    const runs = await get("runs");
    const here = new Set(runs.map((run) => run.id));
    const curves = h("a", { class: "button" }, "curves over one another");
    const tasks = h("a", { class: "button" }, "task by task");
    const choose = () => {
      const ids = (kind) => runs.filter((run) => chosen.has(run.id) && run[kind]).map((run) => run.id);
      const shown = [ids("curves"), ids("episodes")];
      [curves.hidden, tasks.hidden] = [shown[0].length === 0, shown[1].length < 2];
      [curves.href, tasks.href] = [`#/curves/${shown[0]}`, `#/tasks/${shown[1]}`];
    };
    const row = (run) =>
      h(
        "tr",
        { class: here.has(run.above) ? "inner" : run.stage === "pipeline" ? "outer" : "" },
        h(
          "td",
          { class: "tick" },
          (run.curves || run.episodes) &&
            h("input", {
              type: "checkbox",
              "aria-label": `choose ${run.name}`,
              checked: chosen.has(run.id),
              onchange: (e) => {
                e.target.checked ? chosen.add(run.id) : chosen.delete(run.id);
                choose();
              },
            }),
        ),
        h(
          "td",
          {},
          h("a", { class: "row", href: run.episodes || !run.curves ? `#/run/${run.id}` : `#/curves/${run.id}` }, run.name),
        ),
        h("td", { class: "wide" }, run.stage),
        h("td", { class: "wide" }, h("span", { class: `state ${run.state}` }, run.state)),
        h(
          "td",
          { class: "result" },
          run.headline ? result(run.headline) : h("span", { class: "dim" }, run.state === "done" ? run.says : run.state),
        ),
        h("td", { class: "dim path", title: run.path }, here.has(run.above) ? run.folder : run.path),
      );
    choose();
    body.replaceChildren(
      h("div", { class: "bar" }, h("h1", {}, "Runs"), h("span", { class: "dim" }, count(runs.length)), curves, tasks),
      runs.length
        ? table(
            [
              "",
              "run",
              h("span", { class: "wide" }, "stage"),
              h("span", { class: "wide" }, "state"),
              "result: pass@1 [95%], floor",
              "folder",
            ],
            runs.map(row),
            [],
            "runs",
          )
        : h("p", {}, "No run is in this folder."),
    );
  };
  await refresh();
  return { body, title: "runs", watch: [], refresh };
}

function result(headline) {
  const floors = headline.floor == null ? [] : [["floor", headline.floor]];
  return h(
    "div",
    { class: "result" },
    h("b", {}, number(headline["pass@1"]?.value)),
    gauge(headline["pass@1"], floors),
    h("small", {}, interval(headline["pass@1"]), headline.floor == null ? "" : `  floor ${number(headline.floor)}`),
  );
}

export async function runPage([id], query) {
  const head = h("div"),
    list = h("div"),
    filters = h("form", { class: "filters" });
  const state = { sort: "order", offset: 0, ...Object.fromEntries(query) };
  const go = (change) => {
    const next = Object.entries({ ...state, offset: 0, ...change }).filter(([, value]) => value && value !== "order");
    location.hash = `#/run/${id}${next.length ? `?${new URLSearchParams(next)}` : ""}`;
  };
  const view = { watch: [id] };
  let run;
  const refresh = async () => {
    run = await get(`runs/${id}`);
    if (run.pipeline) return head.replaceChildren(await pipelineBody(run));
    if (!run.episodes && run.size === 0)
      return head.replaceChildren(
        headline(run),
        run.curves ? await keyCharts(id) : "",
        run.says || run.curves ? "" : h("p", { class: "dim" }, "This run has no episodes."),
      );
    const found = await get(`runs/${id}/episodes`, { ...state, limit: PAGE });
    head.replaceChildren(headline(run), run.curves ? await keyCharts(id) : "");
    list.replaceChildren(episodes(id, found, state, go));
    if (!filters.contains(document.activeElement)) filters.replaceChildren(...filterFields(run.choices, state, go));
  };
  await refresh();
  filters.addEventListener("submit", (event) => event.preventDefault());
  return Object.assign(view, {
    body: h("section", {}, head, filters, list),
    title: run.name,
    refresh,
    reading: run.indexed < run.size,
    crumbs: [h("a", { href: `#/run/${id}` }, run.name)],
    up: run.above ? `#/run/${run.above}` : "#/",
  });
}

function headline(run) {
  const report = run.report;
  const whole = report?.overall && Object.keys(report.overall).length && !report.incomplete;
  const best = whole ? report.overall["pass@1"] : run.so_far["pass@1"];
  const floors = Object.entries(report?.floor || {}).filter(([, value]) => value != null);
  const ks = whole ? Object.entries(report.overall).filter(([name]) => name !== "pass@1" && name !== "pass^1") : [];
  const domains = whole && report.by_domain ? Object.entries(report.by_domain) : [];
  return h(
    "div",
    {},
    runHead(
      run,
      run.stage,
      run.above && h("a", { class: "button", href: `#/run/${run.above}` }, "its pipeline"),
      run.curves && h("a", { class: "button", href: `#/curves/${run.id}` }, "curves"),
    ),
    run.says && h("p", { class: "says" }, run.says),
    best?.value != null &&
      !run.curves && // of a training, whose attempts are of many models, no one share says anything
      h(
        "div",
        { class: "cards" },
        h(
          "div",
          { class: "card" },
          h("small", {}, whole ? "pass@1" : "pass@1 so far"),
          h("div", { class: "big" }, number(best.value)),
          h("small", {}, interval(best)),
          gauge(best, floors),
        ),
        ks.length > 0 &&
          h(
            "div",
            { class: "card" },
            h("small", {}, "with more attempts"),
            ks.map(([name, e]) =>
              h("div", { class: "line" }, h("span", {}, name), h("b", {}, number(e.value)), h("small", {}, interval(e))),
            ),
          ),
        domains.length > 1 &&
          h(
            "div",
            { class: "card" },
            h("small", {}, "pass@1 by domain"),
            domains.map(([name, e]) =>
              h(
                "div",
                { class: "line" },
                h("span", {}, name),
                h("b", {}, number(e["pass@1"]?.value)),
                h("small", {}, interval(e["pass@1"])),
              ),
            ),
          ),
        h(
          "div",
          { class: "card" },
          h("small", {}, "evidence"),
          line("tasks", count(run.so_far.tasks)),
          line("attempts", count(run.so_far.attempts)),
          line("solved", count(run.so_far.solved)),
          floors.map(([name, value]) => line(`floor: ${name.replaceAll("_", " ")}`, number(value))),
        ),
      ),
    report?.test_access?.warning && h("p", { class: "notice" }, report.test_access.warning),
    run.unreadable > 0 && h("p", { class: "notice" }, `${run.unreadable} lines are no records of this version and are not shown`),
  );
}

function gauge(estimate, floors) {
  const track = h("div", { class: "gauge", title: "value, 95% interval, floors" });
  const part = (name, left, width) => {
    const mark = h("i", { class: name });
    mark.style.left = `${100 * left}%`;
    if (width) mark.style.width = `${100 * width}%`;
    track.append(mark);
  };
  if (estimate?.value == null) return null;
  if (estimate.ci95) part("range", estimate.ci95[0], estimate.ci95[1] - estimate.ci95[0]);
  part("value", estimate.value);
  for (const [, value] of floors) part("floor", value);
  return track;
}

function filterFields(choices, state, go) {
  const select = (name, label) =>
    Object.keys(choices[name] || {}).length > 1 || state[name]
      ? h(
          "select",
          { "aria-label": label, name, onchange: (e) => go({ [name]: e.target.value }) },
          h("option", { value: "" }, `any ${label}`),
          Object.entries(choices[name]).map(([value, n]) =>
            h("option", { value, selected: state[name] === value }, `${value} (${count(n)})`),
          ),
        )
      : null;
  const field = (name, label, type = "text") =>
    h("input", {
      type,
      name,
      placeholder: label,
      "aria-label": label,
      value: state[name] || "",
      onchange: (e) => go({ [name]: e.target.value }),
    });
  return [
    field("text", "search conversations  ( / )", "search"),
    field("task", "task"),
    select("domain", "domain"),
    select("status", "status"),
    select("fault", "fault"),
    select("reason", "ending"),
    select("place", "part"),
    field("score", "score, such as <0.5"),
  ].filter(Boolean);
}

const COLUMNS = [
  ["task", "task"],
  ["status", "result"],
  ["reward", "reward"],
  ["score", "score"],
  ["turns", "turns"],
  ["tokens", "tokens"],
  ["seconds", "seconds"],
];

function episodes(id, found, state, go) {
  const offset = Number(state.offset) || 0;
  const heads = COLUMNS.map(([name, label]) =>
    h(
      "button",
      {
        class: "sort",
        type: "button",
        "aria-pressed": String(state.sort === name),
        onclick: () => go({ sort: name, descending: state.sort === name && !state.descending ? "1" : "" }),
      },
      label,
      state.sort === name ? (state.descending ? " ↓" : " ↑") : "",
    ),
  );
  const rows = found.rows.map((row) =>
    h(
      "tr",
      {},
      h("td", {}, h("a", { class: "row", href: `#/run/${id}/${row.id}` }, row.key)),
      h(
        "td",
        {},
        badge(row.status, row.reward >= 0.999999),
        row.fault && row.fault !== "agent" ? h("small", {}, ` ${row.fault}`) : "",
        ["completed", row.reason].includes(row.status) ? "" : h("small", { class: "dim" }, ` ${row.reason}`),
      ),
      h("td", { class: "num" }, number(row.reward, 2)),
      h("td", { class: "num" }, number(row.score, 2)),
      h("td", { class: "num" }, row.turns),
      h("td", { class: "num" }, count(row.tokens)),
      h("td", { class: "num" }, number(row.seconds, 1)),
    ),
  );
  const to = Math.min(offset + PAGE, found.total);
  return h(
    "div",
    {},
    found.rows.length ? table([...heads], rows, [2, 3, 4, 5, 6], "episodes") : h("p", { class: "dim" }, "No episode fits."),
    h(
      "div",
      { class: "pages" },
      h("span", { id: "total" }, found.total ? `${count(offset + 1)}–${count(to)} of ${count(found.total)}` : ""),
      h("button", { disabled: offset === 0, onclick: () => go({ offset: Math.max(0, offset - PAGE) }) }, "‹ earlier"),
      h("button", { disabled: to >= found.total, onclick: () => go({ offset: offset + PAGE }) }, "later ›"),
    ),
  );
}

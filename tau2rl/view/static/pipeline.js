// A pipeline: each model's pass@1 over the one before it, its stages, and what changed task by task.
import { h, svg, runHead, get, number, count, interval, signed, table, line, duration } from "./dom.js";
import { taskGrid } from "./tasks.js";

const [WIDE, NARROW, PHONE] = [680, 400, 760]; // the drawing on a desk and on a phone, which is a page below so many pixels
const H = 270;
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 20, 26, 34];

export async function pipelineBody(run) {
  const { evaluations, stages, chain, not_done: missing } = run.pipeline;
  const played = evaluations.filter((each) => each.id);
  const grid = played.length
    ? taskGrid(
        await get("tasks", { runs: played.map((each) => each.id).join(",") }),
        Object.fromEntries(played.map((each) => [each.id, each.model])),
      )
    : "";
  const trainings = stages.filter((stage) => stage.curves).map((stage) => stage.id);
  const last = evaluations.at(-1);
  const holds = chain.holds ? `holds, ${chain.links} links` : chain.holds === false ? `broken: ${chain.broken.join(", ")}` : "–";
  return h(
    "div",
    {},
    runHead(
      run,
      "pipeline",
      trainings.length > 0 && h("a", { class: "button", href: `#/curves/${trainings}` }, "curves"),
    ),
    missing.length > 0 && h("p", { class: "notice" }, `not done: ${missing.join(", ")}`),
    evaluations.length > 0 &&
      h(
        "div",
        { class: "headline" },
        h(
          "figure",
          {},
          h("figcaption", {}, h("b", {}, "pass@1 after each training"), h("small", {}, "  bar: 95% interval · dashed: floor")),
          chart(evaluations),
        ),
        h(
          "div",
          { class: "card" },
          h("small", {}, `pass@1 of ${last.model}`),
          h("div", { class: "big" }, number(last["pass@1"]?.value)),
          h("small", {}, interval(last["pass@1"])),
          line("floor", number(last.floor)),
          line("tasks × attempts", `${count(last.tasks)} × ${last.attempts}`),
          line("episodes played", count(run.pipeline.episodes)),
          line("wall time", duration(run.pipeline.seconds)),
          line("CPU time", duration(run.pipeline.cpu_seconds)),
          line("chain of hashes", holds),
        ),
      ),
    h("h2", { class: "above" }, "Stages"),
    table(
      ["stage", "result", "rise [95%]", "wall", "from"],
      stages.map((stage) => stageRow(stage, evaluations)),
      [3],
      "stages",
    ),
    grid,
  );
}

function stageRow(stage, evaluations) {
  const found = evaluations.find((each) => each.id === stage.id);
  const rise = found?.rise;
  const where = stage.curves && !stage.episodes ? `#/curves/${stage.id}` : `#/run/${stage.id}`;
  return h(
    "tr",
    {},
    h(
      "td",
      {},
      h("a", { class: "row", href: where }, stage.folder),
      stage.curves && stage.episodes ? [" ", h("a", { href: `#/curves/${stage.id}` }, "curves")] : "",
    ),
    h(
      "td",
      {},
      stage.headline
        ? [h("b", {}, number(stage.headline["pass@1"]?.value)), " ", h("small", {}, interval(stage.headline["pass@1"]))]
        : stage.state === "done"
          ? h("small", {}, stage.says)
          : h("span", { class: `state ${stage.state}` }, stage.state),
    ),
    h(
      "td",
      {},
      rise
        ? [
            h("b", { class: rise.ci95?.[0] > 0 ? "good" : rise.ci95?.[1] < 0 ? "bad" : "" }, signed(rise.value)),
            " ",
            h("small", {}, interval(rise), ` over ${found.over}`),
          ]
        : "",
    ),
    h("td", { class: "num" }, duration(stage.seconds)),
    h("td", { class: "dim" }, (stage.parents || []).join(", ")),
  );
}

function chart(evaluations) {
  const W = innerWidth < PHONE ? NARROW : WIDE;
  const step = (W - LEFT - RIGHT) / evaluations.length;
  const x = (i) => LEFT + step * (i + 0.5);
  const y = (value) => H - BOTTOM - value * (H - TOP - BOTTOM);
  const words = evaluations.map((each) => `${each.model} ${number(each["pass@1"]?.value)}`).join(", ");
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `pass@1: ${words}` });
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(
      svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, 2)),
    );
  }
  const known = evaluations
    .map((each, i) => ({ ...each, i, value: each["pass@1"]?.value, range: each["pass@1"]?.ci95 }))
    .filter((each) => each.value != null);
  drawing.append(svg("polyline", { class: "path", points: known.map((each) => `${x(each.i)},${y(each.value)}`).join(" ") }));
  for (const each of known) {
    const at = x(each.i);
    if (each.floor != null)
      drawing.append(
        svg("line", { class: "floor", x1: at - step / 2.6, x2: at + step / 2.6, y1: y(each.floor), y2: y(each.floor) }),
      );
    if (each.range) drawing.append(svg("line", { class: "range", x1: at, x2: at, y1: y(each.range[0]), y2: y(each.range[1]) }));
    drawing.append(
      svg("circle", { class: "dot", cx: at, cy: y(each.value), r: 6 }),
      svg("text", { class: "value", x: at + 13, y: y(each.value) + 5 }, number(each.value)),
      svg("text", { class: "model", x: at, y: H - 12, "text-anchor": "middle" }, each.model),
    );
    if (each.rise)
      drawing.append(
        svg(
          "text",
          {
            class: each.rise.ci95?.[0] > 0 ? "rise good" : "rise",
            x: at - step / 2,
            y: y(Math.min(1, Math.max(each.value, each.range?.[1] ?? 0))) - 4,
            "text-anchor": "middle",
          },
          signed(each.rise.value, 2),
        ),
      );
  }
  return drawing;
}

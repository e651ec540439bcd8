// Curves of trainings as small charts, several runs over one another. Plain SVG: lines and two axes need no library.
import { h, svg, get } from "./dom.js";

const [W, H] = [360, 170];
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 8, 22];
const SECTIONS = [
  ["Outcome", ["success", "val/pass@1", "reward/mean", "score/mean", "reward/", "score/", "val/", "loss", "val_loss"]],
  ["Groups and episodes", ["groups/", "episodes/", "calls/", "turns/"]],
  ["Policy", ["train/kl", "train/entropy", "mismatch/", "train/train_rollout_logprob_abs_diff", "train/"]],
  ["Habits and alarms", ["habit/", "alarm/"]],
  ["Tokens and time", ["tokens/", "tokens_per_second/", "seconds/", "seconds"]],
];
const KEY = ["val/pass@1", "success", "reward/mean", "val_loss", "loss", "train/entropy"]; // what a training is first asked for
const MOST_KEY = 3;

export async function curvesPage([ids]) {
  const body = h("section");
  const hidden = new Set();
  let found = [];
  const draw = () => {
    const legend = found.map((run, i) =>
      h(
        "label",
        { class: `legend c${i % 6}` },
        found.length > 1 &&
          h("input", {
            type: "checkbox",
            checked: !hidden.has(run.id),
            "aria-label": `show ${run.name}`,
            onchange: (e) => {
              e.target.checked ? hidden.delete(run.id) : hidden.add(run.id);
              draw();
            },
          }),
        h("a", { href: `#/run/${run.id}` }, run.name),
        h("span", { class: `state ${run.state}` }, run.state),
      ),
    );
    const shown = found.map((run) => (hidden.has(run.id) ? { ...run, metrics: {} } : run));
    const parts = sections([...new Set(shown.flatMap((run) => Object.keys(run.metrics)))]);
    body.replaceChildren(
      h("div", { class: "bar" }, h("h1", {}, "Curves"), legend),
      ...parts.flatMap(([title, names]) => section(title, names, shown)),
      parts.length ? "" : h("p", {}, "Nothing is written yet."),
    );
  };
  const refresh = async () => {
    found = await get("curves", { runs: ids });
    draw();
  };
  await refresh();
  const above = found.length && found.every((run) => run.above === found[0].above) && found[0].above;
  return { body, title: "curves", watch: ids.split(","), refresh, crumbs: ["curves"], up: above ? `#/run/${above}` : "#/" };
}

/** The first charts of one training, for the head of its page. */
export async function keyCharts(id) {
  const found = await get("curves", { runs: id, metrics: KEY.join(",") });
  const names = KEY.filter((name) => found[0].metrics[name]).slice(0, MOST_KEY);
  return h("div", { class: "charts key" }, ...names.map((name) => chart(name, found)));
}

/** A heading, a chart for each number that moves, and a line for those that never do. */
function section(title, names, runs) {
  const flat = names.filter((name) => isFlat(name, runs));
  const charts = names.filter((name) => !flat.includes(name)).map((name) => chart(name, runs));
  const words = flat.map((name) => `${name} ${short(valuesOf(name, runs)[0])}`);
  return [
    h("h2", { class: "above" }, title),
    h("div", { class: "charts" }, charts),
    words.length ? h("p", { class: "dim flat" }, `the same all the time: ${words.join(" · ")}`) : "",
  ];
}

const valuesOf = (name, runs) => runs.flatMap((run) => (run.metrics[name] || []).map(([, value]) => value));

function isFlat(name, runs) {
  const values = valuesOf(name, runs);
  return values.length > 1 && values.every((value) => value === values[0]);
}

/** The names that are there by section, in the order of SECTIONS; the others last. */
function sections(names) {
  const left = new Set(names);
  const take = (pattern) =>
    [...left]
      .filter((name) => name === pattern || (pattern.endsWith("/") && name.startsWith(pattern)))
      .sort()
      .map((name) => (left.delete(name), name));
  const exact = SECTIONS.map(([title, patterns]) => [title, patterns.flatMap(take)]);
  return [...exact, ["Other", [...left].sort()]].filter(([, found]) => found.length);
}

function chart(name, runs) {
  const lines = runs.map((run) => run.metrics[name] || []);
  const points = lines.flat();
  let [x0, x1] = extent(points.map((p) => p[0]));
  let [y0, y1] = extent(points.map((p) => p[1]));
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) / 2, y1 + (Math.abs(y1) || 1) / 2];
  if (x0 === x1) x1 = x0 + 1;
  const x = (v) => LEFT + ((v - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
  const y = (v) => H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": name });
  for (const part of [0, 0.5, 1]) {
    const value = y0 + part * (y1 - y0);
    drawing.append(
      svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  drawing.append(
    svg("text", { x: LEFT, y: H - 6 }, short(x0)),
    svg("text", { x: W - RIGHT, y: H - 6, "text-anchor": "end" }, short(x1)),
  );
  lines.forEach(
    (line, i) =>
      line.length &&
      drawing.append(
        line.length === 1
          ? svg("circle", { class: `c${i % 6}`, cx: x(line[0][0]), cy: y(line[0][1]), r: 3 })
          : svg("polyline", {
              class: `c${i % 6}`,
              points: line.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "),
            }),
      ),
  );
  const says = h("span", { class: "dim" });
  const cross = svg("line", { class: "cross", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  drawing.append(cross);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = x0 + ((((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
    const here = x(Math.max(x0, Math.min(x1, Math.round(at))));
    for (const [key, value] of Object.entries({ x1: here, x2: here, visibility: "visible" })) cross.setAttribute(key, value);
    says.textContent = lines
      .filter((line) => line.length)
      .map((line) => nearest(line, at))
      .map(([step, value]) => `${short(step)}: ${short(value)}`)
      .join("  ");
  });
  drawing.addEventListener("pointerleave", () => {
    says.textContent = "";
    cross.setAttribute("visibility", "hidden");
  });
  return h("figure", {}, h("figcaption", {}, h("b", {}, name), " ", says), drawing);
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

const nearest = (line, at) => line.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));

const short = (value) =>
  Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3)));

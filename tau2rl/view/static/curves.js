// Curves of trainings as small charts, several runs over one another. Plain SVG: lines and two axes need no library.
import { h, svg, get } from "./dom.js";

const W = 360,
  H = 170,
  LEFT = 52,
  RIGHT = 10,
  TOP = 8,
  BOTTOM = 22;
const SECTIONS = [
  ["Outcome", ["success", "val/pass@1", "reward/mean", "score/mean", "reward/", "score/", "val/", "loss", "val_loss"]],
  ["Groups and episodes", ["groups/", "episodes/", "calls/", "turns/"]],
  ["Policy", ["train/kl", "train/entropy", "mismatch/", "train/train_rollout_logprob_abs_diff", "train/"]],
  ["Tokens and time", ["tokens/", "tokens_per_second/", "seconds/", "seconds"]],
];

export async function curvesPage([ids]) {
  const body = h("section"),
    hidden = new Set();
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
      ...parts.flatMap(([title, names]) => [
        h("h2", { class: "above" }, title),
        h(
          "div",
          { class: "charts" },
          names.map((name) => chart(name, shown)),
        ),
      ]),
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
  let [x0, x1] = extent(points.map((p) => p[0])),
    [y0, y1] = extent(points.map((p) => p[1]));
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) / 2, y1 + (Math.abs(y1) || 1) / 2];
  if (x0 === x1) x1 = x0 + 1;
  const x = (v) => LEFT + ((v - x0) / (x1 - x0)) * (W - LEFT - RIGHT),
    y = (v) => H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
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
  const says = h("span", { class: "dim" }),
    cross = svg("line", { class: "cross", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  drawing.append(cross);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect(),
      at = x0 + ((((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
    const here = x(Math.max(x0, Math.min(x1, Math.round(at))));
    for (const [name, value] of [
      ["x1", here],
      ["x2", here],
      ["visibility", "visible"],
    ])
      cross.setAttribute(name, value);
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

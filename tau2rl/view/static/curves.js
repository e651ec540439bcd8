// Curves of trainings as small charts, several runs over one another. Plain SVG: lines and two axes need no library.
import { h, svg, get } from "./dom.js";

const W = 360, H = 170, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22;
const FIRST = ["success", "reward/mean", "score/mean", "loss", "val_loss", "train/kl", "train/entropy", "mismatch/mean_abs", "groups/useful", "episodes/truncated", "episodes/malformed", "calls/refused", "tokens/sampled", "tokens_per_second/rollout"];

export async function curvesPage([ids]) {
  const body = h("section");
  let found;
  const refresh = async () => {
    found = await get("curves", { runs: ids });
    const names = [...new Set(found.flatMap((run) => Object.keys(run.metrics)))];
    const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : 99);
    names.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    body.replaceChildren(h("div", { class: "bar" }, h("h1", {}, "Curves"), found.map((run, i) => h("a", { class: `legend c${i % 6}`, href: `#/run/${run.id}` }, run.name))),
      h("div", { class: "charts" }, names.map((name) => chart(name, found))), names.length ? "" : h("p", {}, "Nothing is written yet."));
  };
  await refresh();
  return { body, title: "curves", run: ids.split(",")[0], refresh, crumbs: ["curves"], up: "#/" };
}

function chart(name, runs) {
  const lines = runs.map((run) => run.metrics[name] || []);
  const points = lines.flat();
  let [x0, x1] = extent(points.map((p) => p[0])), [y0, y1] = extent(points.map((p) => p[1]));
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) / 2, y1 + (Math.abs(y1) || 1) / 2];
  if (x0 === x1) x1 = x0 + 1;
  const x = (v) => LEFT + ((v - x0) / (x1 - x0)) * (W - LEFT - RIGHT), y = (v) => H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": name });
  for (const part of [0, 0.5, 1]) {
    const value = y0 + part * (y1 - y0);
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }), svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  drawing.append(svg("text", { x: LEFT, y: H - 6 }, short(x0)), svg("text", { x: W - RIGHT, y: H - 6, "text-anchor": "end" }, short(x1)));
  lines.forEach((line, i) => line.length && drawing.append(line.length === 1 ? svg("circle", { class: `c${i % 6}`, cx: x(line[0][0]), cy: y(line[0][1]), r: 3 }) : svg("polyline", { class: `c${i % 6}`, points: line.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") })));
  const says = h("span", { class: "dim" });
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect(), at = x0 + (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT) * (x1 - x0);
    says.textContent = lines.filter((line) => line.length).map((line) => nearest(line, at)).map(([step, value]) => `${short(step)}: ${short(value)}`).join("  ");
  });
  drawing.addEventListener("pointerleave", () => (says.textContent = ""));
  return h("figure", {}, h("figcaption", {}, h("b", {}, name), " ", says), drawing);
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

const nearest = (line, at) => line.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));

const short = (value) => (Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3))));

// Elements from text, never from HTML: what a model wrote stays text.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  fill(element, attributes, children);
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  fill(element, attributes, children);
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((child) => child != null && child !== false));
}

export async function get(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null && value !== false);
  const query = new URLSearchParams(given.map(([name, value]) => [name, value === true ? "1" : value]));
  const answer = await fetch(`api/${path}${given.length ? `?${query}` : ""}`);
  const values = await answer.json();
  if (!answer.ok) throw new Error(values.error || answer.statusText);
  return values;
}

export const number = (value, digits = 3) => (value == null ? "–" : Number(value).toFixed(digits));

export const count = (value) => (value == null ? "–" : Number(value).toLocaleString("en"));

export const signed = (value, digits = 3) => (value == null ? "–" : `${value > 0 ? "+" : ""}${Number(value).toFixed(digits)}`);

export const interval = (estimate) => (estimate?.ci95 ? `[${number(estimate.ci95[0])}, ${number(estimate.ci95[1])}]` : "");

/** The head of a run's page: its name, its state, what it is, and buttons. */
export function runHead(run, kind, ...buttons) {
  const state = h("span", { class: `state ${run.state}` }, run.state);
  return h("div", { class: "bar" }, h("h1", {}, run.name), state, h("span", { class: "dim" }, kind), ...buttons);
}

export function badge(status, solved) {
  const kind = status === "completed" ? (solved ? "good" : "bad") : status === "failed" ? "none" : "warn";
  return h("span", { class: `badge ${kind}` }, status === "completed" ? (solved ? "solved" : "unsolved") : status);
}

/** A table whose rows are walked with j and k: each has a link of class `row`. `numeric`: the numbers of right-aligned columns. */
export function table(heads, rows, numeric = [], name = "") {
  const head = heads.map((each, i) => h("th", { class: numeric.includes(i) ? "num" : "" }, each));
  return h("div", { class: "scroll" }, h("table", { class: name }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

export const line = (name, value) => h("div", { class: "line" }, h("span", {}, name), h("b", {}, String(value)));

export const duration = (seconds) =>
  seconds == null
    ? "–"
    : seconds < 90
      ? `${number(seconds, 1)} s`
      : seconds < 5400
        ? `${number(seconds / 60, 1)} min`
        : `${number(seconds / 3600, 1)} h`;

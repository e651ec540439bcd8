// The router (addresses behind # are deep links), the keyboard, the colors, and what is live.
import { h, get } from "./dom.js";
import { runList, runPage } from "./runs.js";
import { episodePage } from "./conversation.js";
import { comparePage, taskPage } from "./compare.js";
import { groupPage } from "./group.js";
import { tasksPage } from "./tasks.js";
import { curvesPage } from "./curves.js";

const POLL_MS = 2000;
const page = document.getElementById("page");
const live = document.getElementById("live");
let current = null; // {title, body, crumbs, up, keys, watch: ids of runs ([]: all), refresh}
let turn = 0;

const routes = [
  [/^\/$/, runList],
  [/^\/run\/(\w+)$/, runPage],
  [/^\/run\/(\w+)\/(\d+)$/, episodePage],
  [/^\/run\/(\w+)\/(\d+)\/group$/, groupPage],
  [/^\/tasks\/([\w,]+)$/, tasksPage],
  [/^\/task\/(\w+),(\w+)$/, taskPage],
  [/^\/compare\/(\w+:\d+)\/(\w+:\d+)$/, comparePage],
  [/^\/curves\/([\w,]+)$/, curvesPage],
];

async function show() {
  const mine = ++turn;
  const [path, query = ""] = (location.hash.slice(1) || "/").split("?");
  const found = routes.map(([pattern, render]) => [path.match(pattern), render]).find(([match]) => match);
  try {
    const view = found
      ? await found[1](found[0].slice(1), new URLSearchParams(query))
      : { body: h("p", {}, "There is no such page.") };
    if (mine !== turn) return;
    current = view;
    page.replaceChildren(view.body);
    lastRow = -1;
    scrollTo(0, 0);
    document.getElementById("crumbs").replaceChildren(...(view.crumbs || []).flatMap((crumb) => [" / ", crumb]));
    document.title = view.title ? `${view.title} · tau2rl` : "tau2rl";
    live.textContent = "";
    helping = false;
  } catch (error) {
    if (mine !== turn) return;
    current = null;
    page.replaceChildren(h("p", { class: "error" }, error.message));
  }
}

async function poll() {
  const view = current;
  if (view?.watch && view.refresh && !document.hidden) {
    try {
      const { version, indexed, size } = await get("version", { runs: view.watch.join(",") });
      if (view !== current) return;
      const reading = indexed < size;
      if (!helping) live.textContent = reading ? `reading ${Math.floor((100 * indexed) / size)} %` : "";
      if (reading || version !== view.version || view.reading) {
        view.version = version;
        view.reading = reading;
        await keepingPlace(view.refresh);
      }
    } catch {
      live.textContent = "the server has ended";
    }
  }
  setTimeout(poll, POLL_MS);
}

let lastRow = -1; // the place in the table of what was focused last
document.addEventListener("focusin", (event) => (lastRow = rowLinks().indexOf(event.target)));

async function keepingPlace(refresh) {
  await refresh();
  if (document.activeElement === document.body && lastRow >= 0) rowLinks()[lastRow]?.focus({ preventScroll: true });
}

const rowLinks = () => [...document.querySelectorAll("tbody a.row")];

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("tau2rl-theme", name);
}

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme((document.documentElement.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark");
}

const HELP = "j k rows · Enter open · / search · n p next, previous episode · t tokens · c compare · g group · u up · d colors";
let helping = false;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "d") switchTheme();
  else if (event.key === "?") live.textContent = (helping = !helping) ? HELP : "";
  else if (event.key === "/") document.querySelector("input[type=search]")?.focus();
  else if (event.key === "u") location.hash = current?.up || "#/";
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (current?.keys?.[event.key]) current.keys[event.key]();
  else return;
  event.preventDefault();
});

function step(by) {
  const links = rowLinks();
  if (!links.length) return scrollBy(0, 120 * by);
  const at = links.indexOf(document.activeElement);
  links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))].focus();
}

document.getElementById("theme").addEventListener("click", switchTheme);
const kept = localStorage.getItem("tau2rl-theme");
if (kept) setTheme(kept);
addEventListener("hashchange", show);
show().then(poll);

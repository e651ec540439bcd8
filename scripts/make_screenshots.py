"""The pictures of docs/view.md, or with a second folder every page at a desk, on a phone and in the dark, to be looked at.

    python scripts/make_screenshots.py outputs
    python scripts/make_screenshots.py outputs /tmp/pages

Needs `.[view,dev]` and Debian's chromium. The first pipeline below the folder has two evaluations or more on the same tasks, and
the first `grpo` run with episodes kept them (`rollout.keep`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

DESK: Any = {"width": 1180, "height": 900}
WAYS: dict[str, dict[str, Any]] = {
    "desk": {"viewport": DESK},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def main(outputs: Path, every: Path | None) -> None:
    """Serve the folder and look at it."""
    from tests.viewing import chromium, serving  # of this checkout, wherever the script is called from

    with serving(outputs) as address, chromium() as browser:
        for way, options in WAYS.items() if every else [("desk", WAYS["desk"])]:
            page = browser.new_page(**options)
            page.goto(f"http://{address}/secret/")
            for name, hash_, waits in pages(page):
                if not every and name not in ("view", "view-compare", "view-tokens"):
                    continue
                page.goto("about:blank")
                page.goto(f"http://{address}/secret/{hash_}")
                page.wait_for_selector(waits)
                if name == "view-tokens":
                    page.select_option("select[aria-label='colored by']", "advantage")
                    page.locator(".sampled").first.scroll_into_view_if_needed()
                if every:
                    every.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=every / f"{name}-{way}.png", full_page=name != "view-tokens")
                else:
                    page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")


def pages(page: Any) -> Iterator[tuple[str, str, str]]:
    """Name, address, and what stands there once it is whole, of every kind of page."""

    def get(path: str) -> Any:
        return json.loads(page.request.get(page.url.partition("#")[0] + f"api/{path}").body())

    runs = get("runs")
    pipeline = next(run for run in runs if run["stage"] == "pipeline")
    evals = [e["id"] for e in get(f"runs/{pipeline['id']}")["pipeline"]["evaluations"]]
    trained = next(run["id"] for run in runs if run["stage"] == "grpo" and run["episodes"])
    changed = [task for task in get(f"tasks?runs={evals[0]},{evals[-1]}")["tasks"] if None not in task["counts"]]
    task = max(changed, key=lambda one: one["counts"][1][0] / one["counts"][1][1] - one["counts"][0][0] / one["counts"][0][1])
    before, after = (get(f"runs/{run}/attempts?task={quote(task['task'])}")[0]["id"] for run in (evals[0], evals[-1]))
    rows = get(f"runs/{trained}/episodes?sort=turns&descending=1&limit=200")["rows"]
    episode = next(
        row["id"]
        for row in rows
        if any(span.get("trainer") for span in get(f"runs/{trained}/episodes/{row['id']}/tokens")["spans"])
    )
    curves = [run["id"] for run in runs if run["stage"] == "grpo" and run["curves"]]
    yield "runs", "#/", "tbody a.row"
    yield "view", f"#/run/{pipeline['id']}", "table.changed"
    yield "evaluation", f"#/run/{evals[-1]}", "tbody a.row"
    yield "training", f"#/run/{trained}", "tbody a.row"
    yield "episode", f"#/run/{evals[-1]}/{after}", "article"
    yield "group", f"#/run/{trained}/{episode}/group", "table.lanes"
    yield "view-tokens", f"#/run/{trained}/{episode}?tokens=1", ".tokens .ids"
    yield "tasks", f"#/tasks/{','.join(evals)}", ".cell"
    yield "view-compare", f"#/compare/{evals[0]}:{before}/{evals[-1]}:{after}", "article.first"
    yield "curves", f"#/curves/{','.join(curves)}", "figure"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, help="the folder of the runs")
    parser.add_argument("every", type=Path, nargs="?", help="where every page is put, in three ways")
    asked = parser.parse_args()
    main(asked.outputs, asked.every)

"""A pipeline as people look at it: its stages with their results, each model's pass@1 over the last; and runs task by task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tau2rl.errors import UserError
from tau2rl.runs.files import read_json
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.terminal import visible
from tau2rl.view.index import Index
from tau2rl.view.runs import run_id, run_summary, stages

Json = dict[str, Any]


def pipeline(run: Path) -> Json | None:
    """A pipeline's `stages`, `evaluations`, `chain`, what is not done, and totals; None where the folder is no pipeline's."""
    folders = stages(run)
    try:
        config = read_json(run / "config.json")
        report = read_report(run / REPORT) if (run / REPORT).is_file() else {}
    except UserError:
        config, report = {}, {}
    if config.get("stage") != "pipeline" and not folders:
        return None
    accounts: dict[str, Json] = {
        Path(each["folder"]).name: each for each in (*report.get("steps", {}).values(), *report.get("evaluations", ()))
    }
    shown = [_stage(folder, accounts.get(folder.name, {})) for folder in folders]
    ids = {Path(stage["path"]).name: stage["id"] for stage in shown}
    return {
        "stages": shown,
        "evaluations": [_evaluation(each, ids) for each in report.get("evaluations", ())],
        "not_done": [visible(str(each), 200) for each in report.get("not_done", ())],
        "chain": {key: report.get("chain", {}).get(key) for key in ("links", "broken", "holds")},
        "seconds": report.get("cost", {}).get("seconds"),
        "cpu_seconds": report.get("cpu_seconds"),
        "episodes": report.get("cost", {}).get("episodes"),
    }


def pipeline_tasks(runs: Sequence[tuple[str, Path, Index]]) -> Json:
    """Runs task by task: `{"runs": [{"id", "name"}], "tasks": [{"task": "retail/17", "counts": [[1, 4], None]}]}`.

    counts: [solved, valid] of each run, None where it has no valid attempt.
    """
    counts = [
        {f"{row['domain']}/{row['task']}": (row["solved"], row["valid"]) for row in index.task_counts()} for _, _, index in runs
    ]
    return {
        "runs": [{"id": name, **run_summary(run)} for name, run, _ in runs],
        "tasks": [
            {"task": visible(task, 300), "counts": [each.get(task) for each in counts]}
            for task in sorted({task for each in counts for task in each})
        ],
    }


def _stage(folder: Path, account: Json) -> Json:
    kept = {key: account.get(key) for key in ("seconds", "cpu_seconds", "parents")}
    return {"id": run_id(folder), **run_summary(folder), **kept, "model": account.get("model")}


def _evaluation(account: Json, ids: dict[str, str]) -> Json:
    kept = {
        key: account.get(key) for key in ("model", "over", "tasks", "attempts", "pass@1", "floor", "rise", "cpu_seconds_to_here")
    }
    return {"id": ids.get(Path(account["folder"]).name), **kept}

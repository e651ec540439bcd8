"""Runs as people look at them: which there are, their headline, their curves, and one episode with the others of its group."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tau2rl.chat.tokenizers import Tokenizer, load_tokenizer
from tau2rl.errors import UserError
from tau2rl.report.estimators import mean_over_tasks
from tau2rl.report.tables import quantity
from tau2rl.runs.files import read_json
from tau2rl.runs.records import TRAINER_LOGPROBS, TurnLogprobs, read_logprobs
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.terminal import visible
from tau2rl.types import EpisodeRecord
from tau2rl.view import conversation, group
from tau2rl.view.index import Index, record_files

Json = dict[str, Any]
DEEPEST = 6  # folders below what was named in which runs are looked for
LIVE_SECONDS = 60.0  # a run without a result whose files changed within this is being written
_PASSED_OVER = {"checkpoints", "logs", "val", "wandb", "tensorboard", "state", TRAINER_LOGPROBS}


def find_runs(places: Iterable[Path], unread: list[Path] | None = None) -> dict[str, Path]:
    """Id -> folder of every run at or below the places, pipelines before their runs. An id is of the path, so links stay.

    Folders that cannot be read are passed over; `unread` gets them.
    """
    passed_over = [] if unread is None else unread
    found = [run.resolve() for place in places for run in _below(place, DEEPEST, passed_over)]
    return {run_id(run): run for run in found}


def run_id(run: Path) -> str:
    """The name of a run in addresses."""
    return hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:10]


def _below(folder: Path, depth: int, unread: list[Path]) -> Iterator[Path]:
    try:
        is_run = (folder / "config.json").is_file()
        children = sorted(folder.iterdir()) if depth and folder.is_dir() else []
        folders = [child for child in children if child.name not in _PASSED_OVER and child.is_dir() and not child.is_symlink()]
    except OSError:  # somebody else's
        unread.append(folder)
        return
    if is_run:
        yield folder
    for child in folders:
        yield from _below(child, depth - 1, unread)


def run_summary(run: Path) -> Json:
    """A line of the list of runs; never raises for a folder that is half there."""
    try:
        config = read_json(run / "config.json")
    except UserError:
        config = {}
    measured = [file for file in (*record_files(run), run / "metrics.jsonl", run / REPORT) if file.is_file()]
    changed = max((_stamp(file)[0] for file in measured), default=_stamp(run / "config.json")[0]) / 1e9
    goes_on = changed > _stamp(run / REPORT)[0] / 1e9 and time.time() - changed < LIVE_SECONDS  # a report is written at the end
    said = _of_report(run / REPORT, *_stamp(run / REPORT))
    state = "done" if said["whole"] else "live" if goes_on else "incomplete"
    above = run.parent.parent if run.parent.name == "runs" else None  # a pipeline keeps its runs so
    return {
        "name": visible(str(config.get("name") or run.name), 200), "folder": run.name, "path": visible(str(run)),
        "stage": str(config.get("stage", "?")), "state": state, "changed": changed,
        "episodes": any(_stamp(file)[1] for file in record_files(run)), "curves": (run / "metrics.jsonl").is_file(),
        "headline": said["headline"], "says": said["says"],
        "above": run_id(above) if above is not None and (above / "config.json").is_file() else None,
    }  # fmt: skip


def _stamp(file: Path) -> tuple[int, int]:
    """(nanoseconds of its last change, bytes); zeros for a file that is not there, or no longer."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4096)
def _of_report(file: Path, changed: int, size: int) -> Json:
    """What the list shows of a report, by the file's state: of 1,000 runs most do not change between two looks."""
    report = _report(file.parent) if size else None
    return {"whole": report is not None and not report["incomplete"], "headline": _headline(report), "says": _says(report or {})}


def _report(run: Path) -> Json | None:
    try:
        return read_report(run / REPORT) if (run / REPORT).is_file() else None
    except UserError:
        return None


def _headline(report: Json | None) -> Json | None:
    if not report or "overall" not in report or not report["overall"]:
        return None
    floors = [value for value in report.get("floor", {}).values() if value is not None]
    return {"pass@1": report["overall"].get("pass@1"), "floor": max(floors, default=None), "attempts": report.get("attempts")}


def _says(report: Json) -> str:
    """The result of a stage that is no evaluation, in words."""
    stage, training = report.get("stage"), report.get("training") or {}
    if stage == "pipeline":
        return f"{len(report['steps'])} stages, {len(report['evaluations'])} evaluations"
    if stage in ("seed", "rft-filter") and report.get("kept") is not None:
        return f"{report['kept']:,} of {quantity(report['tried'], 'episode')} kept, {report['solved']:,} solved"
    if stage == "sft" and training.get("val_loss_after") is not None:
        steps = quantity(training["steps"], "step")
        return f"validation loss {training['val_loss_before']:.3f} → {training['val_loss_after']:.3f}, {steps}"
    if stage == "grpo" and training.get("reward_first") is not None:
        useful = f"{training['useful_groups']:,} of {quantity(training['tried_groups'], 'group')} useful"
        steps = quantity(training["steps"], "step")
        return f"reward {training['reward_first']:.3f} → {training['reward_last']:.3f}, {steps}, {useful}"
    return ""


def overview(run: Path, index: Index | None) -> Json:
    """The head of a run's page: what the report says, and what the records say so far. No index: it has no records."""
    done, size = (0, 0) if index is None else index.progress()
    counts = [] if index is None else index.task_counts()
    shares = [row["solved"] / row["valid"] for row in counts]
    attempts = sum(row["valid"] for row in counts)
    so_far = mean_over_tasks(shares, trials=max(1.0, attempts / max(1, len(counts)))).to_json()
    return {
        **run_summary(run), "report": _report(run), "choices": index.choices() if index else {},
        "unreadable": index.unreadable() if index else 0, "indexed": done, "size": size,
        "so_far": {"pass@1": so_far, "tasks": len(counts), "attempts": attempts, "solved": sum(row["solved"] for row in counts)},
    }  # fmt: skip


def curves(run: Path) -> dict[str, list[list[float]]]:
    """Metric -> [[step, value], ...] of `metrics.jsonl`; a cut line and values that are no numbers are passed over."""
    out: dict[str, list[list[float]]] = {}
    file = run / "metrics.jsonl"
    if not file.is_file():
        return out
    with file.open("rb") as lines:
        for line in lines:
            try:
                values = json.loads(line)
                step = float(values.pop("step"))
            except (ValueError, KeyError, AttributeError, TypeError):
                continue
            for name, value in values.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    out.setdefault(str(name), []).append([step, value])
    return out


def run_version(run: Path) -> str:
    """Another string whenever the run has written something, or a run of the pipeline that it is."""
    stamps = [
        _stamp(file)
        for folder in (run, *stages(run))
        for file in (*record_files(folder), folder / "metrics.jsonl", folder / REPORT)
    ]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:12]


def stages(run: Path) -> list[Path]:
    """The run folders of a pipeline, in the order in which they were begun; [] where it is none."""
    below = run / "runs"
    return [folder for folder in sorted(below.iterdir()) if (folder / "config.json").is_file()] if below.is_dir() else []


def episode(run: Path, index: Index, number: int) -> Json:
    """A conversation with the other attempts of its group, their scores and advantages."""
    row = index.find(number)
    rows, values, estimator = group.members(run, index, row)
    found = conversation.conversation_view(index.record(row))
    return {**found, "id": number, "place": row["place"], "group": group.attempt_lines(rows, values), "estimator": estimator}


def episode_tokens(run: Path, index: Index, number: int) -> Json:
    """The tokens of an episode with what the trainer knows of them; `untrained`: why a training has not its log-probabilities."""
    row = index.find(number)
    rows, values, _ = group.members(run, index, row)
    mine = next((value for each, value in zip(rows, values, strict=True) if each["id"] == number), None)
    record: EpisodeRecord = index.record(row)
    tokenizer, reason = tokenizer_of_run(run) if record.episode.token_ids else (None, "")
    trainer, untrained = _trainer_logprobs(run, row)
    return {**conversation.tokens(record.episode, tokenizer, mine, trainer), "tokenizer": reason, "untrained": untrained}


def _trainer_logprobs(run: Path, row: Json) -> tuple[TurnLogprobs | None, str]:
    """Those of an attempt of a training, or why there are none."""
    config = group.training(run)
    if config is None or row["place"] != "run":
        return None, ""
    if not (run / TRAINER_LOGPROBS).is_dir():
        return None, "this training kept no log-probabilities of its trainer: the backend `local` does with `rollout.keep`"
    found = read_logprobs(run, config, row["attempt"], row["key"])
    return found, "" if found else "no step learned from this attempt: its group had no signal, or was one too many"


def tokenizer_of_run(run: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer that the run's config names, or why there is none."""
    try:
        values = read_json(run / "config.json")
    except UserError as error:
        return None, error.message
    named = [
        values.get("chat", {}).get("tokenizer"),
        values.get("policy", {}).get("checkpoint"),
        values.get("model", {}).get("init"),
    ]
    reason = "the run names no tokenizer"
    for name in named:
        if name:
            try:
                return _loaded(str(name)), ""
            except UserError as error:
                reason = error.message
    return None, reason


@lru_cache(maxsize=4)
def _loaded(name: str) -> Tokenizer:
    return load_tokenizer(name)


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

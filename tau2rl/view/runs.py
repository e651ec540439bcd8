"""Runs as people look at them: which there are, their headline, their curves, and one episode with the others of its group."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tau2rl.chat.tokenizers import Tokenizer, load_tokenizer
from tau2rl.config import AlgoConfig, GrpoConfig
from tau2rl.errors import UserError
from tau2rl.report.estimators import mean_over_tasks
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import read_config
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.types import EpisodeRecord
from tau2rl.view import conversation
from tau2rl.view.index import Index, record_files

Json = dict[str, Any]
DEEPEST = 6  # folders below what was named in which runs are looked for
LIVE_SECONDS = 60.0  # a run without a result whose files changed within this is being written
_PASSED_OVER = {"checkpoints", "logs", "val", "wandb", "state"}


def find_runs(places: Iterable[Path]) -> dict[str, Path]:
    """Id -> folder of every run at or below the places, pipelines before their runs. An id is of the path, so links stay."""
    found = [run.resolve() for place in places for run in _below(place, DEEPEST)]
    return {hashlib.sha256(str(run).encode()).hexdigest()[:10]: run for run in found}


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.json").is_file():
        yield folder
    if depth and folder.is_dir():
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink() and child.name not in _PASSED_OVER:
                yield from _below(child, depth - 1)


def summary(run: Path) -> Json:
    """A line of the list of runs; never raises for a folder that is half there."""
    try:
        config = read_json(run / "config.json")
    except UserError:
        config = {}
    report = _report(run)
    measured = sorted(file for file in (*record_files(run), run / "metrics.jsonl", run / REPORT) if file.is_file())
    changed = max((file.stat().st_mtime for file in measured), default=(run / "config.json").stat().st_mtime)
    incomplete = report is None or bool(report["incomplete"])
    state = "done" if not incomplete else "live" if time.time() - changed < LIVE_SECONDS else "incomplete"
    return {
        "name": str(config.get("name") or run.name), "folder": run.name, "path": str(run), "stage": str(config.get("stage", "?")),
        "state": state, "changed": changed, "episodes": any(file.stat().st_size for file in record_files(run)),
        "curves": (run / "metrics.jsonl").is_file(), "headline": _headline(report),
    }  # fmt: skip


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


def overview(run: Path, index: Index) -> Json:
    """The head of a run's page: what the report says, and what the records say so far."""
    done, size = index.progress()
    counts = index.task_counts()
    shares = [row["solved"] / row["valid"] for row in counts]
    attempts = sum(row["valid"] for row in counts)
    so_far = mean_over_tasks(shares, trials=max(1.0, attempts / max(1, len(counts)))).to_json()
    return {
        **summary(run), "report": _report(run), "choices": index.choices(), "unreadable": index.unreadable(),
        "indexed": done, "size": size,
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


def version(run: Path) -> str:
    """Another string whenever the run has written something."""
    files = [*record_files(run), run / "metrics.jsonl", run / REPORT]
    sizes = [f"{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files if file.is_file()]
    return hashlib.sha256("|".join(sizes).encode()).hexdigest()[:12]


def episode(run: Path, index: Index, number: int) -> Json:
    """A conversation with the other attempts of its group, their scores and advantages."""
    row = index.find(number)
    record = index.record(row)
    attempts = index.attempts(row)
    algo, size, drop = _algo(run)
    if size and row["place"] == "run":
        attempts = [each for each in attempts if each["attempt"] // size == row["attempt"] // size]
    values = conversation.advantages(attempts, algo or AlgoConfig(), drop_truncated=drop)
    group = [
        {key: each[key] for key in ("id", "attempt", "greedy", "status", "score", "reward", "turns")} | {"advantage": value}
        for each, value in zip(attempts, values, strict=True)
    ]
    estimator = algo.estimator if algo else ""
    return {**conversation.conversation(record), "id": number, "place": row["place"], "group": group, "estimator": estimator}


def episode_tokens(run: Path, index: Index, number: int) -> Json:
    """The tokens of an episode, coloured by what the trainer knows of them."""
    found = episode(run, index, number)
    advantage = next((each["advantage"] for each in found["group"] if each["id"] == number), None)
    record: EpisodeRecord = index.record(index.find(number))
    tokenizer, reason = tokenizer_of_run(run) if record.episode.token_ids else (None, "")
    values = conversation.tokens(record.episode, tokenizer, advantage)
    return {**values, "tokenizer": reason}


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


def _algo(run: Path) -> tuple[AlgoConfig | None, int, bool]:
    """The policy gradient of a training, the size of its groups, and whether it left out what was cut off."""
    try:
        config = read_config(run)
    except UserError:
        return None, 0, False
    if isinstance(config, GrpoConfig):
        return config.algo, config.rollout.num_samples, config.algo.truncated == "drop"
    return None, 0, False

"""`--rehearse`: a training in small on its own layout: a step, a validation, a save, a resume, another step and an export.

Model, layout, limits, user simulator and loss are those of the config; what is small is how much is played and trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl import settings
from tau2rl.backend import TrainingConfig
from tau2rl.config import GrpoConfig, build, dump
from tau2rl.errors import UserError
from tau2rl.recipes.training import backend_for
from tau2rl.report.tables import quantity
from tau2rl.runs.checkpoints import last_step
from tau2rl.runs.files import writing
from tau2rl.runs.folder import run_path, stage_of
from tau2rl.runs.records import validations
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.runs.sessions import RunLock, session_folders

STEPS, ATTEMPTS = 2, 2  # the second step is that of a resumed run
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # tasks, or rows, of a step: the first one that the layout takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a rehearsal must show: `Check(what="the run was resumed", holds=True, detail="2 sessions")`."""

    what: str
    holds: bool
    detail: str


def rehearsed(config: TrainingConfig) -> tuple[TrainingConfig, TrainingConfig]:
    """The run of one step, and the one that resumes it for another, in `OUTPUT_ROOT/rehearsal/STAGE-NAME`."""
    taken = (small for small in (_small(config, size) for size in SIZES) if not _refused(small))
    first = next(taken, None) or _small(config, SIZES[0])  # where none is taken, the run itself says why
    values = dump(first)
    values["train"]["steps"] = STEPS
    return first, build(type(config), {**values, "resume": True})


def make_room(folder: Path) -> None:
    """Delete an earlier rehearsal. Raises UserError where one is going on."""
    if not folder.exists():
        return
    lock = RunLock(folder / "logs" / "lock", patience_seconds=0)
    try:
        with writing(folder):
            shutil.rmtree(folder)
    finally:
        lock.close()


def rehearsal_checks(config: TrainingConfig) -> Iterator[Check]:
    """What the second run of a rehearsal must have left, whatever the backend."""
    folder = run_path(config)
    file = folder / REPORT
    report: dict[str, Any] = read_report(file) if file.is_file() else {}
    done = last_step(folder) if report else 0  # 1: it is the first run's, and the second left none
    whole = done == STEPS and not report["incomplete"]
    yield Check(what="the report is whole", holds=whole, detail=f"of {quantity(done, 'step')}, in {file}")
    lines = _metrics(folder / "metrics.jsonl")
    steps = sorted({line["step"] for line in lines} - {0})  # 0: a validation before training
    yield Check(what="each step left its numbers", holds=steps == list(range(1, STEPS + 1)), detail=f"of steps {steps}")
    sessions = session_folders(folder)
    yield Check(what="the run was resumed", holds=len(sessions) == STEPS, detail=f"{len(sessions)} sessions")
    if isinstance(config, GrpoConfig) and config.train.val_every:
        found = sorted(validations(folder))
        yield Check(what="each step was validated", holds={1, STEPS} <= set(found), detail=f"behind steps {found}")
    model = backend_for(config).checkpoint(folder, STEPS)
    yield Check(what="the last step can be loaded elsewhere", holds=model is not None, detail=str(model or "no checkpoint"))


def numbers(config: TrainingConfig) -> dict[str, float]:
    """The numbers of the last step, which slime writes in several lines: what to look at before hours are spent."""
    lines = (line for line in _metrics(run_path(config) / "metrics.jsonl") if line["step"] == STEPS)
    return {name: value for line in lines for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}


def _small(config: TrainingConfig, size: int) -> TrainingConfig:
    values = dump(config)
    output = settings.output_root() / "rehearsal" / f"{stage_of(config)}-{run_path(config).name}"
    train = values["train"]
    train |= {"steps": 1, "save_every": 1, "export_every": 0, "warmup_steps": 0}
    values |= {"output": str(output), "resume": False}
    values["launch"]["detach"] = False
    if isinstance(config, GrpoConfig):
        train |= {"tasks_per_step": size, "val_every": min(train["val_every"], 1)}
        values["rollout"] |= {"num_samples": ATTEMPTS, "keep": True}
        values["val"] |= {"limit": 1, "num_samples": 1} if train["val_every"] else {}
    else:
        train |= {"batch_size": size, "early_stopping_patience": 0}
        train |= {"val_every": 1} if values["data"]["val_fraction"] else {}
    return build(type(config), values)


def _refused(config: TrainingConfig) -> bool:
    try:
        return any(issue.kind == "error" for issue in backend_for(config).plan(config, probe=False).issues)
    except UserError:
        return True


def _metrics(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

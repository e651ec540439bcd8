"""Which checkpoints may go, and their removal: those of finished trainings that no other run and no choice names."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.errors import UserError
from tau2rl.runs.checkpoints import FINAL, INITIAL, MEGATRON, SELECTED, STATE, named_step
from tau2rl.runs.files import read_json, writing
from tau2rl.runs.reports import REPORT, SELECTION, read_report, read_selection
from tau2rl.runs.sessions import RunLock


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One on the disk, or what a training goes on from: `Checkpoint(path=..., size=9_000_000_000, kept_because="")`."""

    run: Path
    path: Path
    size: int  # bytes on the disk, links not followed
    kept_because: str  # "" for what may go


def plan_pruning(runs: Sequence[Path], *, keep_last: int, state: bool) -> list[Checkpoint]:
    """Everything below `checkpoints/` of the runs, each with the reason why it stays.

    `keep_last` more steps of each training stay, the latest ones. With `state` a finished training may lose what it would be
    extended from. A training without a whole report keeps everything.
    """
    named = tuple({name for run in runs for name in _named(run)})
    return [found for run in runs for found in _of_run(run, named, keep_last, state=state)]


def remove(found: Sequence[Checkpoint]) -> None:
    """Delete what may go. Raises UserError for a run that a process has open, before anything of that run is deleted."""
    for run in dict.fromkeys(one.run for one in found if not one.kept_because):
        lock = RunLock(run / "logs" / "lock", patience_seconds=0)
        try:
            for one in found:
                if one.run == run and not one.kept_because:
                    with writing(one.path):
                        shutil.rmtree(one.path)
        finally:
            lock.close()


def disk_size(path: Path) -> int:
    """Bytes of the files at and below a path; links are not followed, what vanishes meanwhile counts nothing."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(disk_size(item) for item in path.iterdir())
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _of_run(run: Path, named: tuple[str, ...], keep_last: int, *, state: bool) -> Iterator[Checkpoint]:
    models = run / "checkpoints"
    if not models.is_dir() or models.is_symlink():
        return
    finished = _finished(run)
    linked = {item.resolve() for item in (models / FINAL, models / SELECTED) if item.is_symlink()}
    steps = {item: step for item in (*models.iterdir(), *(models / "hf").glob("*")) if (step := _step(item)) is not None}
    last = sorted(steps, key=steps.__getitem__)[len(steps) - keep_last :] if keep_last else []

    def because(item: Path) -> str:
        if not finished:
            return "its training is not finished"
        if item in steps:
            if item.resolve() in linked:
                return "it is the final or the chosen one"
            if f"/{item.resolve().as_posix()}".endswith(named):
                return "a run or a choice names it"
            return "it is of the last ones" if item in last else ""
        if item.name in (STATE, MEGATRON):
            return "" if state else "the training may be extended from it"
        return {INITIAL: "it is the model before training", FINAL: "it is the final one"}.get(
            item.name, "it is not of a training"
        )

    for item in sorted((*(item for item in models.iterdir() if item.name != "hf"), *(models / "hf").glob("*"))):
        if not item.is_symlink() and item.is_dir():
            yield Checkpoint(run=run, path=item, size=disk_size(item), kept_because=because(item))


def _step(item: Path) -> int | None:
    if item.is_symlink() or not item.is_dir():
        return None
    return named_step(item)


def _finished(run: Path) -> bool:
    try:
        return (run / REPORT).is_file() and not read_report(run / REPORT)["incomplete"]
    except UserError:
        return False


def _named(run: Path) -> Iterator[str]:
    """The ends of all paths that the settings of a run name below `checkpoints/`, and of the one that its choice names.

    Relative ones are of a directory that nobody knows any more: whatever ends like them is named.
    """
    chosen = [str(read_selection(run / SELECTION)["chosen"].get("path", ""))] if (run / SELECTION).is_file() else []
    for text in (*_texts(read_json(run / "config.json")), *chosen):
        path = Path(text).expanduser()
        if "checkpoints" in path.parts:
            yield f"/{(path.resolve() if path.is_absolute() or path.exists() else path).as_posix()}"


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        value = list(cast("Mapping[str, Any]", value).values())
    if isinstance(value, list):
        return (text for part in cast("list[Any]", value) for text in _texts(part))
    return (value,) if isinstance(value, str) else ()

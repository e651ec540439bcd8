"""Where a run of slime goes on, and what it has left: decided before the start, because slime falls back without a word.

slime takes `--load` where it is a checkpoint of Megatron's, and `--ref-load`, the model that training starts from, wherever it
is anything else (slime/utils/arguments.py:1817-1838): a half-written checkpoint would start the run again from step 0.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tau2rl.errors import UserError
from tau2rl.stages.training import FINAL
from tau2rl.store import files

TRACKER = "latest_checkpointed_iteration.txt"  # Megatron writes it last: the checkpoint that it names is whole
INDEX = "model.safetensors.index.json"  # slime writes it last: the Hugging Face directory is whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies where Megatron saves: `Found(path=..., names=frozenset({"iter_0000049", ...}), tracker="49", ...)`."""

    path: Path
    names: frozenset[str]
    tracker: str | None
    tasks: frozenset[int]  # rounds behind which the choice of tasks was saved


def look(save: Path) -> Found:
    """Read the folder; one that is not there is empty."""
    tracker = save / TRACKER
    states = [re.fullmatch(r"tasks_(\d+)\.json", file.name) for file in (save / "rollout").glob("tasks_*.json")]
    return Found(
        path=save,
        names=frozenset(item.name for item in save.iterdir()) if save.is_dir() else frozenset(),
        tracker=tracker.read_text("utf-8").strip() if tracker.is_file() else None,
        tasks=frozenset(int(state[1]) for state in states if state),
    )


def steps_done(found: Found, *, draws_tasks: bool) -> int:
    """The steps that a start does not repeat, 0 for a new run. Raises UserError where slime would begin again in silence.

    `draws_tasks`: whether the run has a choice of tasks to go on with.

    >>> steps_done(Found(path=Path("x"), names=frozenset(), tracker=None, tasks=frozenset()), draws_tasks=True)
    0
    """
    if not found.names:
        return 0
    if found.tracker is None:
        raise UserError(
            f"`{found.path}` has no `{TRACKER}`: no checkpoint in it is whole",
            hint=f"to begin again from step 0, remove `{found.path}`",
        )
    if not found.tracker.isdigit():
        raise UserError(
            f"`{found.path / TRACKER}` says `{found.tracker}`: this is not a checkpoint of a training",
            hint="a model to start from is `model.init`, in Hugging Face's layout",
        )
    last = int(found.tracker)
    if f"iter_{last:07}" not in found.names:
        raise UserError(f"`{found.path}` has no `iter_{last:07}`, which `{TRACKER}` names", hint=_earlier(found))
    if draws_tasks and last not in found.tasks:
        raise UserError(f"`{found.path}` has no `rollout/tasks_{last}.json`: the save was interrupted", hint=_earlier(found))
    return last + 1


def refuse_megatron(start: Path) -> None:
    """Refuse a model to start from that Megatron saved: engines and tokenizers read Hugging Face's layout alone."""
    if (start / TRACKER).is_file() or re.fullmatch(r"iter_\d{7}", start.name):
        raise UserError(
            f"`{start}` is a checkpoint of Megatron's, and training starts from Hugging Face's layout",
            hint=f"slime leaves both; from this one: tau2rl convert --to hf {start} DIRECTORY --origin HF_DIRECTORY",
        )


def exports(checkpoints: Path) -> dict[int, Path]:
    """Whole Hugging Face directories by their step, in order; slime counts rounds from 0, we count steps done."""
    found = {int(item.name) + 1: item for item in (checkpoints / "hf").glob("*") if item.name.isdigit() and is_whole(item)}
    return dict(sorted(found.items()))


def is_whole(export: Path) -> bool:
    """Whether slime ended writing it."""
    return (export / INDEX).is_file() and (export / "config.json").is_file()


def point_final(checkpoints: Path, export: Path) -> Path:
    """Let `checkpoints/final` be an export, so that it is found where every training leaves its model."""
    files.point(checkpoints / FINAL, str(export.relative_to(checkpoints)))
    link = checkpoints / FINAL
    return link if link.exists() else export  # a file system without links


def _earlier(found: Found) -> str:
    whole = _whole_iterations(found.names, found.tasks)
    if not whole:
        return f"to begin again from step 0, remove `{found.path}`"
    return f"to go on from an earlier one: echo {max(whole)} > {found.path / TRACKER}"


def _whole_iterations(names: Collection[str], tasks: Collection[int]) -> list[int]:
    saved = [int(name[5:]) for name in names if re.fullmatch(r"iter_\d{7}", name)]
    return [iteration for iteration in saved if not tasks or iteration in tasks]

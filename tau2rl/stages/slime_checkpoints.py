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
PLACES = {True: "rollout/tasks_{}.json", False: "rollout/global_dataset_state_dict_{}.pt"}  # ours for tasks, slime's for rows
INDEX = "model.safetensors.index.json"  # slime writes it last: the Hugging Face directory is whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies where Megatron saves: `Found(path=..., names=frozenset({"iter_0000049", ...}), tracker="49", ...)`."""

    path: Path
    names: frozenset[str]
    tracker: str | None
    tasks: frozenset[int]  # rounds behind which the choice of tasks was saved
    rows: frozenset[int] = frozenset()  # and those behind which slime's own place in the rows was


def look(save: Path) -> Found:
    """Read the folder; one that is not there is empty."""
    tracker = save / TRACKER
    return Found(
        path=save,
        names=frozenset(item.name for item in save.iterdir()) if save.is_dir() else frozenset(),
        tracker=tracker.read_text("utf-8").strip() if tracker.is_file() else None,
        tasks=_rounds(save, PLACES[True]),
        rows=_rounds(save, PLACES[False]),
    )


def steps_done(found: Found, *, draws_tasks: bool) -> int:
    """The steps that a start does not repeat, 0 for a new run. Raises UserError where slime would begin again in silence.

    `draws_tasks`: whether it goes on with a choice of tasks, or with slime's own place in the rows.

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
        raise UserError(f"`{found.path}` has no `iter_{last:07}`, which `{TRACKER}` names", hint=_earlier(found, draws_tasks))
    if last not in (found.tasks if draws_tasks else found.rows):
        missing = PLACES[draws_tasks].format(last)
        raise UserError(f"`{found.path}` has no `{missing}`: the save was interrupted", hint=_earlier(found, draws_tasks))
    return last + 1


def attempts_done(save: Path, done: int) -> int:
    """The number that the next attempt will have: those of the steps done, dropped and called-off ones too, are smaller."""
    return int(files.read_json(save / PLACES[True].format(done - 1))["sample_index"]) if done else 0


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


def _rounds(save: Path, place: str) -> frozenset[int]:
    found = (re.search(r"_(\d+)\.\w+$", file.name) for file in save.glob(place.format("*")))
    return frozenset(int(number[1]) for number in found if number)


def _earlier(found: Found, draws_tasks: bool) -> str:
    places = found.tasks if draws_tasks else found.rows
    whole = [last for last in _iterations(found.names) if last in places]
    if not whole:
        return f"to begin again from step 0, remove `{found.path}`"
    return f"to go on from an earlier one: echo {max(whole)} > {found.path / TRACKER}"


def _iterations(names: Collection[str]) -> list[int]:
    return [int(name[5:]) for name in names if re.fullmatch(r"iter_\d{7}", name)]

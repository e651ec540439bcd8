"""Evaluations while a training goes on: `select/step_00020.jsonl`, the episodes of one look at the model behind step 20.

A look is written when it is over, whole or not at all, because a part of it would be taken for the result of all tasks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tau2rl.store import records
from tau2rl.store.secrets import Redactor
from tau2rl.types import EpisodeRecord

FOLDER = "select"


def look_file(folder: Path, step: int) -> Path:
    """Where the look behind a step lies; step 0 is the model before training.

    >>> look_file(Path("outputs/grpo/a"), 20).as_posix()
    'outputs/grpo/a/select/step_00020.jsonl'
    """
    return folder / FOLDER / f"step_{step:05}.jsonl"


def write_look(folder: Path, step: int, episodes: Iterable[EpisodeRecord], *, redactor: Redactor) -> Path:
    """Keep every episode of a look, FAILED ones too; replaces an earlier look behind the same step."""
    path = look_file(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.writelines(records.encode(redactor.record(episode)) for episode in episodes)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def looks(folder: Path) -> dict[int, Path]:
    """Step -> file of every look of a run, by step."""
    named = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in (folder / FOLDER).glob("step_*.jsonl"))
    return dict(sorted((int(name[1]), path) for name, path in named if name))

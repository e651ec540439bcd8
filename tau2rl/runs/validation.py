"""Validations of a training: `val/step_00020.jsonl` holds the episodes of the model behind step 20; step 0 is before training.

A validation is written when it is over, whole or not at all, because a part of it would be taken for the result of all tasks.
Runs of the first format keep theirs in `select/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tau2rl.runs.records import encode
from tau2rl.runs.secrets import Redactor
from tau2rl.types import EpisodeRecord

FOLDER, FIRST_FORMAT = "val", "select"


def validation_file(run: Path, step: int) -> Path:
    """Where the validation behind a step goes.

    >>> validation_file(Path("outputs/grpo/a"), 20).as_posix()
    'outputs/grpo/a/val/step_00020.jsonl'
    """
    return run / FOLDER / f"step_{step:05}.jsonl"


def write_validation(run: Path, step: int, episodes: Iterable[EpisodeRecord], *, redactor: Redactor) -> Path:
    """Keep every episode of a validation, FAILED ones too; replaces an earlier one behind the same step."""
    path = validation_file(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.writelines(encode(redactor.record(episode)) for episode in episodes)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def validations(run: Path) -> dict[int, Path]:
    """Step -> file of every validation of a run, by step. A run that goes on in the present format replaces older files."""
    files = [file for folder in (FIRST_FORMAT, FOLDER) for file in (run / folder).glob("step_*.jsonl")]
    named = ((re.fullmatch(r"step_(\d+)\.jsonl", file.name), file) for file in files)
    return dict(sorted({int(name[1]): file for name, file in named if name}.items()))

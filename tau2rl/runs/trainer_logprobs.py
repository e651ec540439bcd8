"""What the trainer thought of the tokens that it was about to learn from: `trainer_logprobs/step_00020.jsonl`, a line an attempt.

    {"attempt": "mock/create_task_1#37", "turns": [[-0.693147, -0.0021], [-1.2]]}

A list a turn, a number a token, by the weights before the step: the old log-probabilities of the loss. Beside the sampler's,
which the record has, they show where the two disagree. A step has the attempts that it learned from. A file is whole or absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from tau2rl.config import GrpoConfig
from tau2rl.errors import UserError
from tau2rl.runs.files import json_lines, replacing

FOLDER = "trainer_logprobs"
DIGITS = 6  # behind the point; a sampler in bfloat16 is apart from its trainer by thousandths
Turns = Sequence[Sequence[float | None]]  # [num_turns][num_tokens]


def first_index(config: GrpoConfig, step: int, resample: int = 0) -> int:
    """The number of the first attempt of a step, or of one of its resample rounds; those of earlier steps are smaller."""
    batches = step * (config.algo.max_resample_rounds + 1) + resample
    return batches * config.train.tasks_per_step * config.rollout.num_samples


def write_logprobs(run: Path, step: int, logprobs: Mapping[str, Turns]) -> None:
    """Keep those of a step: key of an attempt -> log-probabilities. Raises OSError."""
    file = run / FOLDER / f"step_{step:05}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as out:
        for attempt, turns in logprobs.items():
            rounded = [[_rounded(value) for value in turn] for turn in turns]
            out.write(json.dumps({"attempt": attempt, "turns": rounded}, separators=(",", ":")).encode() + b"\n")


def read_logprobs(run: Path, config: GrpoConfig, index: int, key: str) -> Turns | None:
    """Those of the attempt of this number and key; None where the step did not learn from it, or nothing was kept."""
    file = run / FOLDER / f"step_{index // first_index(config, 1):05}.jsonl"
    if not file.is_file():
        return None
    try:
        found = next((values for _, values in json_lines(file) if values.get("attempt") == key), None)
    except UserError:  # derived, and of no weight: a damaged file is none
        return None
    return None if found is None else cast("Turns", found["turns"])


def rewind_logprobs(run: Path, *, before: int) -> None:
    """Take away the files of step `before` and of those behind it: they are done again."""
    for file in (run / FOLDER).glob("step_*.jsonl"):
        if (named := re.fullmatch(r"step_(\d+)", file.stem)) and int(named[1]) >= before:
            file.unlink()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)

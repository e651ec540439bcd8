"""What `training.py` gives to every contender: a random model, demonstrations for SFT, groups for GRPO and their prompts."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import STAGES, ShapeConfig, build
from tau2rl.data.encoding import encode_rows
from tau2rl.data.jsonl import read_row_file
from tau2rl.launch.entry import run_stage
from tau2rl.runs.folder import RunFolder
from tau2rl.train.tiny import create_tiny
from tau2rl.train.trainer import ScoredTrajectory
from tau2rl.types import TrainingSample

OPTIM: dict[str, Any] = {"lr": 1e-4, "warmup_steps": 0}
GROUP, NEW, TURNS, ANSWER = 8, 32, 10, 16  # attempts; sampled tokens of a turn; turns, and what is heard between two of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What all contenders get."""

    checkpoint: Path
    rows: list[dict[str, Any]]  # as `messages` and `tools`
    samples: list[TrainingSample]  # the same rows as tokens
    groups: dict[
        str, list[ScoredTrajectory]
    ]  # by the name of their row in the table: GROUP attempts a task, one behind the other
    prompts: list[list[int]]  # of the tasks of a batch of groups, each GROUP times


@dataclass(slots=True, kw_only=True)
class Contender:
    """One way of doing one thing."""

    what: str  # "SFT"
    who: str  # "ours", "TRL"
    how: str = ""  # "by length, 4 a pass"
    run: Callable[[], Any]
    tokens: int  # that a run is credited with
    padding: float | None = None  # share of the places
    computed: float | None = None  # positions through the model, as a share of the tokens
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0  # MiB on top of what the process held

    @property
    def speed(self) -> float:
        """Tokens a CPU second, median."""
        return self.tokens / statistics.median(self.seconds)


def demonstrations(folder: Path, count: int) -> list[tuple[str, Any]]:
    """Conversations of the `mock` domain, as the laptop pipeline starts from them."""
    settings = {
        "output": str(folder),
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": count},
        "user": {"kind": "scripted"},
        "policy": {"kind": "gold"},
        "keep": "all",
        "noise_prob": 0.3,
    }
    with RunFolder.open(RunFolder.create(folder, build(STAGES["seed"], settings), resume=True)) as opened:
        run_stage(opened, lambda _: None)
    return list(read_row_file(folder / "rows.jsonl"))


def prepare(rows: Sequence[tuple[str, Any]], shape: ShapeConfig, folder: Path, *, tasks: int, batch: int) -> Data:
    """A random model, rows for an SFT step, groups for an update."""
    create_tiny(iter(rows), shape, folder, seed=0)
    encoded = encode_rows(rows, load_tokenizer(str(folder)), max_tokens=1000)
    assert not encoded.dropped
    everything, rng = list(encoded.samples), random.Random(0)
    chosen = rng.sample(range(len(everything)), batch)
    tails = [s for i, s in enumerate(everything) if i >= tasks]
    rng.shuffle(tails)
    groups = {
        f"GRPO, {different} of {GROUP} differ": [
            ScoredTrajectory(
                samples=(spliced(everything[i], tails[i * GROUP + j % different]),), advantages=(1.0 - 2.0 * (j % 2),)
            )
            for i in range(tasks)
            for j in range(GROUP)
        ]
        for different in (GROUP, 3)
    }
    prompts = [list(everything[i].token_ids[: everything[i].turn_spans[0][0]]) for i in range(tasks) for _ in range(GROUP)]
    by_name = [{"messages": rows[i][1]["messages"], "tools": rows[i][1]["tools"]} for i in chosen]
    return Data(checkpoint=folder, rows=by_name, samples=[everything[i] for i in chosen], groups=groups, prompts=prompts)


def spliced(prompt: TrainingSample, tail: TrainingSample) -> TrainingSample:
    """The prompt of one conversation and what follows that of another."""
    at, cut_at = prompt.turn_spans[0][0], tail.turn_spans[0][0]
    ids = (*prompt.token_ids[:at], *tail.token_ids[cut_at:])
    spans = tuple((start - cut_at + at, end - cut_at + at) for start, end in tail.turn_spans)
    mask = (*[0] * at, *tail.loss_mask[cut_at:])
    return TrainingSample(token_ids=ids, loss_mask=mask, logprobs=tuple(-1.0 * m for m in mask), turn_spans=spans)


def heard(rng: random.Random) -> list[int]:
    """What stands between two turns: an answer of the environment."""
    return [rng.randrange(10, 250) for _ in range(ANSWER)]

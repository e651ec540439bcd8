"""The log of slime as it streams by: every line is kept, and the numbers are taken out; what a run's report says of them.

slime writes `step 3: {'train/loss': 0.41, ...}` behind every optimizer step (backends/megatron_utils/model.py:918), `rollout 3:
{'rollout/raw_reward': 0.25, ...}` behind every rollout (observability/train_metric_utils.py:135) and `perf 3: {'perf/train_time':
41.2, ...}` when a rollout has been trained on (observability/train_metric_utils.py:401).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, cast

from tau2rl.protocols import Sink
from tau2rl.runs.files import json_lines
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.trackers import JsonlSink

KEPT_LINES = 400  # of the end: enough for the traceback that says why
_NUMBERS = re.compile(r"(?:^|[ \]])(step|rollout|perf) (\d+): (\{.*\})\s*$")
_PAIR = re.compile(r"'([^']+)': (-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|nan|inf))(?=[,}])")
_ERROR = re.compile(r"^(?:\S*\([^)]*\)\S* )?(?:[\w.]*\.)?([A-Z]\w*(?:Error|Exception)|RunIncomplete): (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a line tells: `Numbers(kind="step", index=3, values={"train/loss": 0.41})`."""

    kind: Literal["step", "rollout", "perf"]
    index: int
    values: dict[str, float]


def read_numbers(line: str) -> Numbers | None:
    """The numbers of a line; None for every other line.

    >>> read_numbers("[2026-08-21 17:14:19] model.py:918 - step 3: {'train/loss': 0.5, 'train/grad_norm': nan}").values
    {'train/loss': 0.5, 'train/grad_norm': nan}
    >>> read_numbers("(raylet) step 3: waiting") is None
    True
    """
    found = _NUMBERS.search(line)
    if found is None:
        return None
    values = {name: float(value) for name, value in _PAIR.findall(found[3])}
    return Numbers(kind=cast("Literal['step', 'rollout', 'perf']", found[1]), index=int(found[2]), values=values)


class TrainLog:
    """Takes each line: to the job's log, to a file of the run folder, and what it tells to `metrics.jsonl` and the progress."""

    def __init__(
        self,
        *,
        file: Path,
        metrics: Path,
        steps: int,
        minibatches: int,
        clean: Callable[[str], str],
        say: TextIO,
        progress: Progress,
        trackers: Sink | None = None,
    ) -> None:
        """`minibatches`: optimizer steps of a rollout batch; slime numbers them through, our steps are rollout batches.

        `trackers` get the numbers too, and stay open.
        """
        self._file = file.open("a", encoding="utf-8")
        self._metrics = JsonlSink(metrics)
        self._trackers = trackers
        self._steps = steps
        self._minibatches = minibatches
        self._clean = clean
        self._say = say
        self._progress = progress
        self._began = time.monotonic()
        self._note = ""
        self.train_seconds = 0.0  # that Megatron's processes trained, or got ready to
        self._last: deque[str] = deque(maxlen=KEPT_LINES)

    def __call__(self, line: str) -> None:
        """Take a line. Raises OSError when it cannot be kept."""
        line = self._clean(line)
        self._last.append(line)
        self._file.write(line + "\n")
        self._file.flush()
        self._say.write(line + "\n")
        self._say.flush()
        numbers = read_numbers(line)
        if numbers is not None:
            self._take(numbers)

    def reason(self) -> str:
        """The last error that the lines name: "ValueError: ..."; "" where there is none."""
        named = [found for found in map(_ERROR.match, self._last) if found]
        return f"{named[-1][1]}: {named[-1][2]}" if named else ""

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._metrics.close()

    def _take(self, numbers: Numbers) -> None:
        if numbers.kind == "rollout":
            reward = numbers.values.get("rollout/raw_reward")
            self._note = "" if reward is None else f"reward {reward:.3f}"
            return
        if numbers.kind == "perf":  # a line of the rollout process has the same name and no such number
            self.train_seconds += numbers.values.get("perf/train_time", 0.0)
            return
        step = numbers.index // self._minibatches + 1
        values = {name: value for name, value in numbers.values.items() if name != "train/step"}
        self._metrics.write(step, values)
        if self._trackers is not None:
            self._trackers.write(step, values)
        loss = numbers.values.get("train/loss")
        note = self._note or ("" if loss is None else f"loss {loss:.3f}")
        seconds = time.monotonic() - self._began
        self._progress(ProgressEvent(done=step, total=self._steps, seconds=seconds, unit="steps", note=note))


ENDS = 5  # steps at either end whose mean the report shows
# In the report -> in `metrics.jsonl`; slime's own names begin with `train/` (docs/cluster.md says what to watch).
CURVES = {"reward": "reward/mean", "success": "success", "loss": "train/loss", "mismatch": "train/train_rollout_logprob_abs_diff"}
COUNTS = {"useful_groups": "groups/useful", "failed_episodes": "episodes/failed", "sampled_tokens": "tokens/sampled"}


def slime_summary(metrics: Path) -> dict[str, Any]:
    """The whole run, however often it was interrupted: both ends of the curves, what was counted, validation by step."""
    steps = _by_step(metrics)
    lines = [steps[step] for step in sorted(steps) if any(name.startswith("train/") for name in steps[step])]
    found: dict[str, Any] = {"steps": len(lines)}
    for name, curve in CURVES.items():
        if any(line.get(curve) is not None for line in lines):
            found |= {f"{name}_first": _mean(lines[:ENDS], curve), f"{name}_last": _mean(lines[-ENDS:], curve)}
    for name, count in COUNTS.items():
        if any(line.get(count) is not None for line in lines):
            found[name] = int(sum(line.get(count) or 0 for line in lines))
    validation = {step: line["val/pass@1"] for step, line in sorted(steps.items()) if line.get("val/pass@1") is not None}
    return {**found, **({"validation": validation} if validation else {})}


def _by_step(metrics: Path) -> dict[int, dict[str, float]]:
    """Every number by step: the rollout's line, those of optimizer steps and that of validation are lines of one step."""
    steps: dict[int, dict[str, float]] = {}
    for _, line in json_lines(metrics) if metrics.exists() else ():
        steps.setdefault(int(line.pop("step")), {}).update(line)
    return steps


def _mean(lines: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else None

"""What a training on slime has to show: its curves in a few numbers, and `report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tau2rl.backends.slime.spending import FILE as ROLLOUTS
from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.metrics.cost import account
from tau2rl.stages.clock import FILE, starts_in

ENDS = 5  # steps at either end whose mean the report shows
# In the report -> in `metrics.jsonl`; slime's own names begin with `train/` (docs/cluster.md says what to watch).
CURVES = {"reward": "reward/mean", "success": "success", "loss": "train/loss", "mismatch": "train/train_rollout_logprob_abs_diff"}
COUNTS = {"useful_groups": "groups/useful", "failed_episodes": "episodes/failed", "sampled_tokens": "tokens/sampled"}


def summary(metrics: Path) -> dict[str, Any]:
    """The whole run, however often it was interrupted: a curve's ends, what was counted, the looks at the selection tasks."""
    steps = merged(metrics)
    lines = [steps[step] for step in sorted(steps) if any(name.startswith("train/") for name in steps[step])]
    told: dict[str, Any] = {"steps": len(lines)}
    for name, curve in CURVES.items():
        if any(line.get(curve) is not None for line in lines):
            told |= {f"{name}_first": _mean(lines[:ENDS], curve), f"{name}_last": _mean(lines[-ENDS:], curve)}
    for name, count in COUNTS.items():
        if any(line.get(count) is not None for line in lines):
            told[name] = int(sum(line.get(count) or 0 for line in lines))
    looks = {step: line["select/pass@1"] for step, line in sorted(steps.items()) if line.get("select/pass@1") is not None}
    return {**told, **({"selection": looks} if looks else {})}


def merged(metrics: Path) -> dict[int, dict[str, float]]:
    """Every number by step: the rollouts' own line, the optimizer's and those of looks are lines of one step."""
    steps: dict[int, dict[str, float]] = {}
    for text in metrics.read_text("utf-8").splitlines() if metrics.exists() else ():
        line: dict[str, Any] = json.loads(text)
        steps.setdefault(int(line.pop("step")), {}).update(line)
    return steps


def report_of(
    config: SftConfig | GrpoConfig,
    *,
    digest: str,
    inputs: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    made: Mapping[str, Any],
    training: Mapping[str, Any],
    cost: Mapping[str, Any],
    complete: bool,
) -> dict[str, Any]:
    """`report.json`, as a training in this process writes it. `made`: what became of rows, or how many tasks there were."""
    return {
        "stage": config.stage,
        "backend": "slime",
        "digest": digest,
        "incomplete": not complete,
        "inputs": dict(inputs),
        "outputs": {"checkpoint": dict(checkpoint)},
        **made,
        "training": dict(training),
        "cost": dict(cost),
    }


def cost_of(run: Path) -> dict[str, Any]:
    """The `cost` of a run: what the rollout process says of itself and its episodes, in the wall time of slime's jobs.

    Megatron's processes say how long they trained, and nothing of their CPU time.
    """
    starts, rollouts = starts_in(run, FILE), starts_in(run, ROLLOUTS)
    if rollouts:
        return account(starts, players=rollouts)
    return account([replace(start, cpu_seconds=None) for start in starts])  # this process only waited


def _mean(lines: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else None

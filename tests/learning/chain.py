"""The laptop recipe made small: four kinds of request in place of eight, one request a conversation, fewer of everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tau2rl.config import STAGES, build, put
from tau2rl.env import synth
from tau2rl.launch.entry import run_stage
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder

KINDS = {("update",), ("update_ask",), ("create",), ("create_ask",)}
TALK: dict[str, Any] = {
    "user": {"kind": "scripted"},
    "chat": {"protocol": "native"},
    "limits": {"max_steps": 60, "max_turns": 8, "context_tokens": 400, "repairs": 0},
}
SAMPLING = {"temperature": 1.0, "max_tokens": 32}


def tasks(split: str, first: int, count: int) -> dict[str, Any]:
    """Some of a split's tasks of the four kinds, by number in the order of the split."""
    names = (synth.task_id(split, number) for number in range(synth.SIZES[split]))
    ids = [name for name in names if synth.kinds_of(name) in KINDS]
    assert first + count <= len(ids)
    return {"domains": ["mock"], "split": split, "ids": ids[first : first + count]}


def carry_out(stage: str, folder: Path, seed: int, **values: Any) -> Path:
    """Run a stage in this process, as a job would; its folder. Dots in names are written `__`."""
    settings: dict[str, Any] = {"output": str(folder), "seed": seed}
    for name, value in values.items():
        put(settings, name.replace("__", "."), value)
    config = build(STAGES[stage], settings)
    with RunFolder.open(RunFolder.create(folder, config, resume=True)) as opened:
        assert run_stage(opened, lambda _: None).complete
    return folder


def demonstrate(folder: Path, seed: int, count: int, *, noise_prob: float = 0.4) -> Path:
    return carry_out(
        "seed", folder, seed,
        tasks=tasks("synth-train", 0, count), user={"kind": "scripted"}, keep="all", noise_prob=noise_prob,
    )  # fmt: skip


def fine_tune(folder: Path, seed: int, rows: Path, *, init: str = "tiny", steps: int, lr: float, **more: Any) -> Path:
    return carry_out(
        "sft", folder, seed,
        model__init=init, data={"files": [str(rows)], "max_tokens": 400}, train__steps=steps, train__lr=lr,
        local={"max_tokens_per_microbatch": 4096}, **more,
    )  # fmt: skip


def reject(folder: Path, seed: int, checkpoint: Path, first: int, count: int) -> Path:
    return carry_out(
        "rft-filter", folder, seed,
        tasks=tasks("synth-train", first, count), policy={"kind": "local", "checkpoint": str(checkpoint), "sampling": SAMPLING},
        rollout={"num_samples": 4, "concurrency": 64}, keep={"per_task": 1}, **TALK,
    )  # fmt: skip


def reinforce(folder: Path, seed: int, checkpoint: Path, first: int, count: int, *, steps: int, **more: Any) -> Path:
    return carry_out(
        "grpo", folder, seed,
        model__init=str(checkpoint), tasks=tasks("synth-train", first, count), sampling=SAMPLING,
        reward={"preset": "cookbook", "normalise": True}, rollout={"num_samples": 8, "concurrency": 128},
        train__steps=steps, train__tasks_per_step=16, train__lr=1e-3, train__warmup_steps=2,
        local={"max_tokens_per_microbatch": 4096, "kv_cache_slots": 128}, **TALK, **more,
    )  # fmt: skip


def evaluate(folder: Path, checkpoint: Path, *, count: int = 60, num_samples: int = 2) -> dict[str, float]:
    """Task -> share of its attempts that solved it, on tasks whose people, ids and titles no training task has."""
    carry_out(
        "eval", folder, 0,
        tasks=tasks("synth-test", 0, count), policy={"kind": "local", "checkpoint": str(checkpoint), "sampling": SAMPLING},
        rollout={"num_samples": num_samples, "concurrency": 64}, **TALK,
    )  # fmt: skip
    by_task = read_json(folder / "report.json")["by_task"]
    return {name: counts["solved"] / counts["valid"] for name, counts in by_task.items()}


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def final(folder: Path) -> Path:
    return folder / "checkpoints" / "final"

"""An interrupted training, started again, is the training that nobody interrupted; pinned here, stage by stage:

- sft: the same losses step by step, the same final weights to the last bit;
- grpo: the same, with its place in the shuffled tasks and its curriculum;
- a run whose data or parent checkpoint has changed meanwhile is refused, and says which;
- a finished run that is started again keeps its checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import STAGES, build
from tau2rl.errors import UserError
from tau2rl.launch.dispatch import run_stage
from tau2rl.stages.lineage import checkpoint_hash
from tau2rl.store.progress import ProgressEvent
from tau2rl.store.run import RunFolder
from tests.learning.chain import SAMPLING, TALK, demonstrate, final, tasks

SHAPE = {"hidden": 32, "layers": 2, "heads": 2, "head_dim": 16, "intermediate": 64}


def start(stage: str, folder: Path, values: dict[str, Any], *, stop_at: int | None = None) -> None:
    """Run a stage; the process is interrupted right after step `stop_at`."""

    def progress(event: ProgressEvent) -> None:
        if event.unit == "steps" and event.done == stop_at:
            raise KeyboardInterrupt

    config = build(STAGES[stage], {**values, "output": str(folder)})
    with RunFolder.open(RunFolder.create(folder, config, resume=True)) as opened:
        run_stage(opened, progress)


def curve(folder: Path, *names: str) -> list[list[Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [[line[name] for name in ("step", *names)] for line in lines]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrate(tmp_path_factory.mktemp("rows"), 0, 60, slip=0.0) / "rows.jsonl"


def sft(rows: Path, steps: int = 30) -> dict[str, Any]:
    return {
        "data": {"files": [str(rows)], "held_out": 0.2},
        "train": {"steps": steps, "lr": 5e-3, "batch_size": 8, "save_every": 10, "eval_every": 10},
        "local": {"shape": SHAPE},
    }


@pytest.fixture(scope="module")
def checkpoint(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    start("sft", folder, sft(rows, steps=40))
    return final(folder)


def grpo(checkpoint: Path, **algo: Any) -> dict[str, Any]:
    return {
        "model": {"init": str(checkpoint)},
        "tasks": tasks("synth-train", 60, 5),
        "select": tasks("synth-select", 0, 2),
        "sampling": SAMPLING,
        "rollout": {"num_samples": 4, "concurrency": 32},
        "reward": {"preset": "guarded"},
        "algo": algo,
        "train": {"steps": 5, "tasks_per_step": 2, "lr": 1e-3, "warmup_steps": 1, "save_every": 2, "eval_every": 2},
        **TALK,
    }


def test_sft_goes_on_where_it_was_interrupted(rows: Path, tmp_path: Path) -> None:
    start("sft", tmp_path / "whole", sft(rows))
    with pytest.raises(KeyboardInterrupt):
        start("sft", tmp_path / "broken", sft(rows), stop_at=17)
    start("sft", tmp_path / "broken", sft(rows))
    whole = curve(tmp_path / "whole", "loss", "held_out_loss", "learning_rate")
    assert curve(tmp_path / "broken", "loss", "held_out_loss", "learning_rate") == whole
    assert [step for step, *_ in whole] == list(range(1, 31))
    assert checkpoint_hash(final(tmp_path / "broken")) == checkpoint_hash(final(tmp_path / "whole"))


@pytest.mark.parametrize("curriculum", [False, True], ids=["shuffled", "curriculum"])
def test_grpo_goes_on_where_it_was_interrupted(curriculum: bool, checkpoint: Path, tmp_path: Path) -> None:
    values = grpo(checkpoint, curriculum={"enabled": curriculum}, kl_coef=0.01)
    start("grpo", tmp_path / "whole", values)
    with pytest.raises(KeyboardInterrupt):
        start("grpo", tmp_path / "broken", values, stop_at=3)  # the state is that of step 2
    start("grpo", tmp_path / "broken", values)
    names = ("score/mean", "groups/useful", "train/loss", "train/kl", "train/gradient_norm", "tokens/sampled")
    whole = curve(tmp_path / "whole", *names)
    assert curve(tmp_path / "broken", *names) == whole
    assert sum(line[2] for line in whole) > 0, "no group taught anything: the test would compare nothing"
    assert checkpoint_hash(final(tmp_path / "broken")) == checkpoint_hash(final(tmp_path / "whole"))
    assert checkpoint_hash(final(tmp_path / "whole")) != checkpoint_hash(checkpoint)


def test_a_run_on_other_data_is_refused(rows: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rows.jsonl"
    copy.write_bytes(rows.read_bytes())
    start("sft", tmp_path / "run", sft(copy, steps=2))
    copy.write_text("".join(rows.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(UserError, match="what it stands on has changed\n  data:"):
        start("sft", tmp_path / "run", sft(copy, steps=2))


def test_a_finished_run_keeps_its_checkpoint(rows: Path, tmp_path: Path) -> None:
    start("sft", tmp_path / "run", sft(rows, steps=3))
    before = checkpoint_hash(final(tmp_path / "run"))
    start("sft", tmp_path / "run", sft(rows, steps=3))
    assert checkpoint_hash(final(tmp_path / "run")) == before
    assert len(curve(tmp_path / "run")) == 3

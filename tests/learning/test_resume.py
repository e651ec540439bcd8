"""An interrupted training, started again, is the training that nobody interrupted; pinned here, stage by stage:

- sft: the same losses step by step, the same final weights to the last bit; interrupted in the middle of an epoch, between two
  micro-batches of a step, before anything was saved; with the random numbers of dropout; with low-rank additions
- grpo: the same, with its place in the shuffled tasks, its curriculum, its resample rounds, and its validations
- rft-filter: the same rows, byte for byte, and so the same model from them
- an interruption (Ctrl-C, SIGTERM) between two saves keeps the last whole step of sft and grpo, also in the middle of a step;
- (slow) kill -9 at any moment of each of the three, as subprocesses: the same files as an unbroken run
- a run whose data or parent checkpoint has changed meanwhile is refused, and says which;
- a finished run that is started again keeps its checkpoint.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2rl.config import STAGES, build, put
from tau2rl.errors import UserError
from tau2rl.launch.entry import run_stage
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import ProgressEvent
from tau2rl.runs.provenance import checkpoint_hash
from tau2rl.runs.records import read_records
from tau2rl.settings import child_environment
from tau2rl.train.engine.forward import score_tokens
from tests.learning.chain import SAMPLING, TALK, demonstrate, final, tasks

SHAPE = {"hidden": 32, "layers": 2, "heads": 2, "head_dim": 16, "intermediate": 64}


def start(stage: str, folder: Path, values: dict[str, Any], *, stop_at: int | None = None) -> None:
    """Run a stage; the process is interrupted right after step (or episode) `stop_at`."""

    def progress(event: ProgressEvent) -> None:
        if event.done == stop_at:
            raise KeyboardInterrupt

    config = build(STAGES[stage], {**values, "output": str(folder)})
    with RunFolder.open(RunFolder.create(folder, config, resume=True)) as opened:
        run_stage(opened, progress)


def curve(folder: Path, *names: str) -> list[list[Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [[line.get(name) for name in ("step", *names)] for line in lines]


def saved_steps(folder: Path) -> int:
    """How many steps the saved state has behind it."""
    parts = torch.load(folder / "checkpoints" / "state" / "training_state.pt", weights_only=True)["parts"]
    return int(parts.get("step", parts["optimizer"]["steps"]))  # a step of grpo without a signal moves nothing


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrate(tmp_path_factory.mktemp("rows"), 0, 60, noise_prob=0.0) / "rows.jsonl"


def sft(rows: Path, steps: int = 30) -> dict[str, Any]:
    return {
        "data": {"files": [str(rows)], "val_fraction": 0.2},
        "train": {"steps": steps, "lr": 5e-3, "batch_size": 8, "save_every": 10, "val_every": 10},
        "local": {"shape": SHAPE},
    }


@pytest.fixture(scope="module")
def checkpoint(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    values = sft(rows, steps=80)
    values["local"] = {"shape": {**SHAPE, "hidden": 64, "head_dim": 32}}
    start("sft", folder, values)
    return final(folder)


def grpo(checkpoint: Path, **algo: Any) -> dict[str, Any]:
    return {
        "model": {"init": str(checkpoint)},
        "tasks": tasks("synth-train", 60, 5),
        "val": tasks("synth-select", 0, 2),
        "sampling": SAMPLING,
        "rollout": {"num_samples": 4, "concurrency": 32, "keep": True},
        "reward": {"preset": "guarded"},
        "algo": algo,
        "train": {"steps": 5, "tasks_per_step": 2, "lr": 1e-3, "warmup_steps": 1, "save_every": 2, "val_every": 2},
        **TALK,
    }


LOSSES = ("loss", "val_loss", "learning_rate", "gradient_norm")
LORA = {"lora": {"rank": 4, "dropout": 0.1}}  # dropout draws random numbers at every step


@pytest.mark.parametrize(
    ("stop_at", "more"),
    [
        (17, {}),
        (3, {}),
        pytest.param(20, {"max_tokens_per_microbatch": 150, "gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(17, {"max_tokens_per_microbatch": 150, **LORA}, marks=pytest.mark.slow),
    ],
    ids=["mid-epoch", "before the first save", "micro-batches and recomputed activations", "LoRA with dropout"],
)
def test_sft_goes_on_where_it_was_interrupted(stop_at: int, more: dict[str, Any], rows: Path, tmp_path: Path) -> None:
    values = sft(rows)
    values["local"] |= more
    start("sft", tmp_path / "whole", values)
    with pytest.raises(KeyboardInterrupt):
        start("sft", tmp_path / "broken", values, stop_at=stop_at)
    assert saved_steps(tmp_path / "broken") == stop_at
    start("sft", tmp_path / "broken", values)
    same_sft(tmp_path / "broken", tmp_path / "whole")


def test_sft_goes_on_when_interrupted_between_two_micro_batches(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = sft(rows)
    values["local"] |= {"max_tokens_per_microbatch": 150}
    start("sft", tmp_path / "whole", values)
    calls = count(100)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and next(calls) == 185:
            raise KeyboardInterrupt
        return score_tokens(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tau2rl.train.sft.score_tokens", interrupted)
        start("sft", tmp_path / "broken", values)
    assert 10 < len(curve(tmp_path / "broken")) < 30
    assert saved_steps(tmp_path / "broken") == len(curve(tmp_path / "broken"))
    start("sft", tmp_path / "broken", values)
    same_sft(tmp_path / "broken", tmp_path / "whole")


def same_sft(broken: Path, whole: Path) -> None:
    assert curve(broken, *LOSSES) == curve(whole, *LOSSES)
    assert [step for step, *_ in curve(whole)] == list(range(1, 31))
    assert checkpoint_hash(final(broken)) == checkpoint_hash(final(whole))


PLAYED = (
    "score/mean", "groups/tried", "groups/useful", "train/loss", "train/kl", "train/gradient_norm", "tokens/sampled",
    "val/pass@1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        pytest.param({"kl_coef": 0.01}, {}, marks=pytest.mark.slow),
        ({"curriculum": {"enabled": True}, "kl_coef": 0.01}, {}),
        pytest.param(
            {"max_resample_rounds": 2, "estimator": "mt_gtpo", "curriculum": {"enabled": True}}, {}, marks=pytest.mark.slow
        ),
        (
            {"kl_coef": 0.01, "entropy_coef": 0.001},
            {"train__num_minibatches": 2, "local": {"max_tokens_per_microbatch": 600, **LORA}},
        ),
    ],
    ids=["shuffled", "curriculum", "resample rounds and turns", "LoRA with dropout, two minibatches"],
)
def test_grpo_goes_on_where_it_was_interrupted(
    algo: dict[str, Any], more: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    values = grpo(checkpoint, **algo)
    for name, value in more.items():
        put(values, name.replace("__", "."), value)
    start("grpo", tmp_path / "whole", values)
    with pytest.raises(KeyboardInterrupt):
        start("grpo", tmp_path / "broken", values, stop_at=3)
    assert saved_steps(tmp_path / "broken") == 3
    start("grpo", tmp_path / "broken", values)
    whole = curve(tmp_path / "whole", *PLAYED)
    assert curve(tmp_path / "broken", *PLAYED) == whole
    assert sum(line[3] for line in whole) > 0, "no group had a signal: the test would compare nothing"
    assert [line[0] for line in whole if line[-1] is not None] == [2, 4]  # the validations
    assert not algo.get("max_resample_rounds") or max(line[2] for line in whole) > 2, "no resample round was played"
    kept = [
        sorted((record.attempt.key, record.episode.token_ids) for record in read_records(tmp_path / name / "episodes.jsonl"))
        for name in ("whole", "broken")
    ]
    assert kept[0] == kept[1], "an episode of the discarded step was kept too"
    assert checkpoint_hash(final(tmp_path / "broken")) == checkpoint_hash(final(tmp_path / "whole"))
    assert checkpoint_hash(final(tmp_path / "whole")) != checkpoint_hash(checkpoint)


def rft(checkpoint: Path) -> dict[str, Any]:
    return {
        "tasks": tasks("synth-train", 0, 12),  # those that were demonstrated: it solves some of them
        "policy": {"kind": "local", "checkpoint": str(checkpoint), "sampling": SAMPLING},
        "rollout": {"num_samples": 4, "concurrency": 8},
        **TALK,
    }


def test_rejection_sampling_goes_on_where_it_was_interrupted(checkpoint: Path, tmp_path: Path) -> None:
    start("rft-filter", tmp_path / "whole", rft(checkpoint))
    with pytest.raises(KeyboardInterrupt):
        start("rft-filter", tmp_path / "broken", rft(checkpoint), stop_at=17)
    start("rft-filter", tmp_path / "broken", rft(checkpoint))
    same_rows(tmp_path / "broken", tmp_path / "whole")
    for name in ("broken", "whole"):
        better = {**sft(tmp_path / name / "sft.jsonl", steps=5), "model": {"init": str(checkpoint)}}
        better["data"]["val_fraction"] = 0.0
        del better["train"]["val_every"], better["local"]  # nothing is held out, and the model is there already
        start("sft", tmp_path / f"{name}-sft", better)
    assert checkpoint_hash(final(tmp_path / "broken-sft")) == checkpoint_hash(final(tmp_path / "whole-sft"))


def same_rows(broken: Path, whole: Path) -> None:
    """But for the names of the runs, which each row has."""
    texts = [(folder / "sft.jsonl").read_text("utf-8").replace(folder.name, "-") for folder in (broken, whole)]
    assert texts[0] == texts[1] != ""
    assert [read_json(folder / "report.json")["tried"] for folder in (broken, whole)] == [48, 48]


class Killed:
    """A stage as a subprocess of the command line, killed for good as soon as it has written so much."""

    def __init__(self, stage: str, folder: Path, values: dict[str, Any]) -> None:
        config = folder.with_suffix(".json")
        config.write_text(json.dumps({"stage": stage, **values}), "utf-8")
        self.folder = folder
        self.command = [sys.executable, "-m", "tau2rl", stage, "-c", str(config), "--output", str(folder), "--inline"]

    def at(self, file: str, lines: int) -> None:
        """Start it, and kill it when `file` has this many lines."""
        said = self.folder.with_suffix(".log")
        with said.open("wb") as log:
            process = subprocess.Popen([*self.command, "--resume"], stdout=log, stderr=log, env=child_environment())
        deadline = time.monotonic() + 240
        while not (self.folder / file).exists() or (self.folder / file).read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() < deadline, said.read_text("utf-8")
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    def finish(self) -> None:
        done = subprocess.run(
            [*self.command, "--resume"], capture_output=True, text=True, timeout=240, env=child_environment(), check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rft-filter", "grpo"])
def test_what_was_killed_goes_on_as_if_nothing_had_been(stage: str, rows: Path, checkpoint: Path, tmp_path: Path) -> None:
    values = {"sft": sft(rows), "rft-filter": rft(checkpoint), "grpo": grpo(checkpoint, curriculum={"enabled": True})}[stage]
    moments = {"sft": (4, 13, 27), "rft-filter": (3, 20, 41), "grpo": (1, 3, 4)}[stage]
    start(stage, tmp_path / "whole", values)
    killed = Killed(stage, tmp_path / "broken", values)
    for lines in moments:
        killed.at("episodes.jsonl" if stage == "rft-filter" else "metrics.jsonl", lines)
    killed.finish()
    if stage == "rft-filter":
        same_rows(tmp_path / "broken", tmp_path / "whole")
    elif stage == "sft":
        same_sft(tmp_path / "broken", tmp_path / "whole")
    else:
        assert curve(tmp_path / "broken", *PLAYED) == curve(tmp_path / "whole", *PLAYED)
        assert checkpoint_hash(final(tmp_path / "broken")) == checkpoint_hash(final(tmp_path / "whole"))


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

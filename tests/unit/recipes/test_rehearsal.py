"""`--rehearse`, pinned here through the command line on the local backend (tests/e2e/test_slime_job.py has slime's part):

- a step, a validation, a save, a resume, another step and an export take place, and what must hold is said to hold;
- the run itself is not started, its folder not touched; the next rehearsal replaces the last one;
- one that breaks ends with the exit code of the run and says where; one that loses what must hold ends with 1 and says what;
- every config for a cluster has a size that its layout takes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.backend import Trained, TrainingConfig
from tau2rl.cli import app
from tau2rl.config import GrpoConfig, SftConfig, ShapeConfig
from tau2rl.recipes.rehearsal import rehearsed
from tau2rl.recipes.training import backend_for
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.records import validation_file
from tau2rl.train.backend import LocalBackend
from tau2rl.train.tiny import create_tiny
from tests.slime_configs import CONFIGS, load_slime

runner = CliRunner()
HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
SHAPE = ShapeConfig(hidden=16, layers=1, heads=1, head_dim=16, intermediate=32, vocab_size=300)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of GRPO with 40 steps of eight tasks."""
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(tmp_path / "outputs"))
    create_tiny([("a", {"messages": HELLO})], SHAPE, tmp_path / "start", seed=0)
    values = {
        "stage": "grpo",
        "name": "big",
        "model": {"init": str(tmp_path / "start")},
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 40},
        "val": {"domains": ["mock"], "split": "synth-select", "limit": 20, "num_samples": 4},
        "user": {"kind": "scripted"},
        "sampling": {"max_tokens": 4},
        "limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0},
        "reward": {"preset": "outcome"},
        "rollout": {"num_samples": 8, "retries": 0},
        "train": {"steps": 40, "tasks_per_step": 8, "num_minibatches": 2, "val_every": 10, "save_every": 20},
        "launch": {"inline": True},
    }
    path = tmp_path / "grpo.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def rehearse(stage: str, file: Path, *more: str, code: int = 0) -> Any:
    result = runner.invoke(app, [stage, "-c", str(file), "--rehearse", "--json", *more])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else result.stderr


def test_grpo_in_small(file: Path, tmp_path: Path) -> None:
    told = rehearse("grpo", file)
    run = tmp_path / "outputs" / "rehearsal" / "grpo-big"
    assert (told["holds"], told["run"], len(told["checks"]), len(told["seconds"])) == (True, str(run), 5, 2)
    assert told["numbers"]["groups/tried"] == 2
    assert [len((run / "val" / f"step_0000{step}.jsonl").read_text("utf-8").splitlines()) for step in (1, 2)] == [1, 1]
    assert len((run / "episodes.jsonl").read_text("utf-8").splitlines()) == 2 * 2 * 2
    assert not (tmp_path / "outputs" / "grpo").exists()
    (run / "mark").touch()
    table = runner.invoke(app, ["grpo", "-c", str(file), "--rehearse"])
    assert table.exit_code == 0 and not (run / "mark").exists()
    assert "the run was resumed" in table.stdout and "tau2rl show" in table.stderr


@pytest.mark.parametrize(
    "more",
    [(), ("--train.early_stopping_patience", "1", "--train.lr", "1", "--train.schedule", "constant")],
    ids=["", "early stopping"],
)
def test_sft_in_small(file: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": HELLO, "id": n}) + "\n" for n in range(30)), "utf-8")
    values = {
        "stage": "sft", "model": {"init": str(tmp_path / "start")}, "data": {"files": [str(rows)], "val_fraction": 0.2},
        "train": {"steps": 100, "batch_size": 16}, "launch": {"inline": True},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values), "utf-8")
    told = rehearse("sft", file, *more)
    assert told["holds"] and {"loss", "val_loss"} <= told["numbers"].keys()


def test_what_breaks_is_said(file: Path) -> None:
    refused = rehearse("grpo", file, "--limits.context_tokens", "3000000", code=2)
    assert "positions" in refused


class Loses(LocalBackend):
    """A backend of the user's: the local one, which then loses something of what the second step left."""

    def train(self, config: TrainingConfig, folder: RunFolder, progress: Progress) -> Trained:
        trained = super().train(config, folder, progress)
        return self.lose(folder.path, trained) if config.train.steps == 2 else trained

    def lose(self, run: Path, trained: Trained) -> Trained:
        raise NotImplementedError


class LosesItsReport(Loses):
    def lose(self, run: Path, trained: Trained) -> Trained:
        return replace(trained, checkpoint=None)  # as slime does when it left none: then there is nothing to report


class LosesNumbers(Loses):
    def lose(self, run: Path, trained: Trained) -> Trained:
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] != 2), "utf-8")
        return trained


class LosesItsFirstStart(Loses):
    def lose(self, run: Path, trained: Trained) -> Trained:
        shutil.rmtree(run / "logs" / "session_1")
        return trained


class LosesAValidation(Loses):
    def lose(self, run: Path, trained: Trained) -> Trained:
        validation_file(run, 1).unlink()
        return trained


class LosesItsExport(Loses):
    def lose(self, run: Path, trained: Trained) -> Trained:
        assert trained.checkpoint is not None
        return replace(trained, checkpoint=trained.checkpoint.rename(run / "checkpoints" / "elsewhere"))


@pytest.mark.parametrize(
    ("backend", "lost"),
    [
        (LosesItsReport, ["the report is whole", "the last step can be loaded elsewhere"]),  # `final` is of step 1, it says
        (LosesNumbers, ["each step left its numbers"]),
        (LosesItsFirstStart, ["the run was resumed"]),
        (LosesAValidation, ["each step was validated"]),
        (LosesItsExport, ["the last step can be loaded elsewhere"]),
    ],
)
def test_what_is_lost_is_said(file: Path, backend: type[Loses], lost: list[str]) -> None:
    told = rehearse("grpo", file, "--backend", f"{__name__}:{backend.__name__}", code=1)
    assert (told["holds"], [check["what"] for check in told["checks"] if not check["holds"]]) == (False, lost)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_a_cluster_has_a_size(name: str) -> None:
    config = load_slime(name)
    for small in rehearsed(config):
        issues = backend_for(small).plan(small, probe=False).issues
        assert [issue.message for issue in issues if issue.kind == "error"] == []
        assert isinstance(small, SftConfig | GrpoConfig) and small.train.steps <= 2

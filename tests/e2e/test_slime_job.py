"""A training on slime as a real Ray job; only slime itself is replaced, by a program that behaves as its `train.py` does.

- slime starts with our options; its words and those of its actors reach whoever follows the job, keys in them do not;
- its actors get the job's variables and the path of the secrets file, and can read a key that is in none of them;
- a slime that fails leaves exit code 1, the reason, a report of the checkpoint that there is, and a run that can be continued;
- a continued run goes on behind its checkpoint, with the same options, and its curves hold each step once;
- a rehearsal is such a run of one step, continued for another one, and its checks hold
- a job that is stopped takes slime with it: 130;
- no key is in the run folder or in what Ray writes down.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from tau2rl.config import GrpoConfig, build
from tau2rl.launch import jobs
from tau2rl.launch.ray_head import LocalHead
from tau2rl.launch.submit import job_command
from tau2rl.recipes.rehearsal import numbers, rehearsal_checks, rehearsed
from tau2rl.runs.folder import RunFolder, run_path
from tau2rl.runs.progress import ProgressEvent
from tests.stubs.slime_program import COUNTED, SEEN, make_checkpoint, make_machine, make_slime

pytestmark = pytest.mark.e2e
SECRET = "sk-planted-for-slime-0123456789"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slime")


@pytest.fixture(scope="module")
def head(place: Path) -> Iterator[LocalHead]:
    """A cluster that looks as slime's container does, with a secrets file that its processes know by path."""
    secrets = place / "secrets"
    secrets.write_text(f"OPENAI_API_KEY={SECRET}\n")
    secrets.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in make_machine(place / "machine").items():
            patch.setenv(name, value)
        patch.setenv("TAU2RL_SECRETS_FILE", str(secrets))
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16, "GPU": 8}')
        with LocalHead(training=True) as running:
            yield running


def config(place: Path, name: str, mode: str) -> GrpoConfig:
    values: dict[str, Any] = {
        "backend": "slime",
        "output": str(place / name),
        "model": {"init": str(make_checkpoint(place / "start"))},
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 4},
        "user": {"kind": "scripted"},
        "chat": {"tokenizer": "bytes"},
        "sampling": {"max_tokens": 512},
        "limits": {"context_tokens": 8192},
        "rollout": {"num_samples": 2, "concurrency": 4},
        "train": {"steps": 3, "warmup_steps": 0, "save_every": 1, "tasks_per_step": 2},
        "slime": {"root": str(make_slime(place / f"slime-{name}", mode)), "megatron": str(place / "machine")},
    }
    return build(GrpoConfig, values)


class Job:
    """One job and all that it said."""

    def __init__(self, head: LocalHead, asked: GrpoConfig, *, resume: bool = False) -> None:
        self.folder = RunFolder.create(run_path(asked), asked, resume=resume)
        self.client = jobs.connect(head.address, head.headers)
        self.lines: list[str] = []
        self.events: list[ProgressEvent] = []
        self.id = jobs.new_id("slime")
        self.client.submit(job_command(self.folder), self.id)

    def follow(self) -> int:
        return self.client.follow(self.id, on_line=self.lines.append, on_progress=self.events.append)

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    def metrics(self) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["train/loss"]) for line in lines]


def test_slime_fails_and_is_continued(head: LocalHead, place: Path) -> None:
    asked = config(place, "broken", "fail-behind-rollout-1")
    first = Job(head, asked)
    assert first.follow() == 1, first.lines
    text = "\n".join(first.lines)

    seen = json.loads((asked.slime.root / SEEN).read_text())
    assert seen["argv"][seen["argv"].index("--num-rollout") + 1] == "3"
    assert seen["argv"][seen["argv"].index("--load") + 1] == str(first.folder / "checkpoints" / "megatron")
    assert seen["custom_config"]["tau2rl"]["folder"] == str(first.folder)
    assert seen["prompts"] == 4

    actor = seen["actor"]
    assert actor["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert actor["PYTHONPATH"].split(":")[:2] == [str(asked.slime.root), str(place / "machine")]
    assert "127.0.0.1" in actor["no_proxy"]
    assert actor["TAU2RL_SECRETS_FILE"] == str(place / "secrets")
    assert actor["OPENAI_API_KEY"] is None  # it reads the file when it needs the key
    assert actor["key_read"] == len(SECRET)

    assert "the actor plays" in text
    assert "the driver has [OPENAI_API_KEY]" in text
    assert "slime ended with exit code 1: RuntimeError: the rollout broke" in text
    assert [(event.done, event.total) for event in first.events][-1] == (2, 3)
    assert first.metrics() == [(1, 0.5), (2, 0.25)]
    assert first.report["incomplete"] is True
    assert first.report["outputs"]["checkpoint"]["path"] == str(first.folder / "checkpoints" / "hf" / "0")
    assert first.report["training"]["steps"] == 2

    make_slime(asked.slime.root, "good")
    second = Job(head, asked, resume=True)
    assert second.follow() == 0, second.lines
    again = json.loads((asked.slime.root / SEEN).read_text())
    assert again["argv"] == seen["argv"]
    assert again["began"] == 1  # rollout 0 is in the checkpoint
    assert second.metrics() == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert second.report["incomplete"] is False
    assert second.report["training"]["steps"] == 3
    assert (second.folder / "checkpoints" / "final").resolve() == second.folder / "checkpoints" / "hf" / "2"

    places = [second.folder, Path(again["session"]) / "logs", Path(again["runtime_env"])]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_a_rehearsal_is_a_run_and_its_continuation(head: LocalHead, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(place / "outputs"))
    first, second = rehearsed(config(place, "rehearsed", "good"))
    assert run_path(first) == run_path(second) == place / "outputs" / "rehearsal" / "grpo-rehearsed"
    assert isinstance(first, GrpoConfig) and isinstance(second, GrpoConfig)
    job = Job(head, first)
    assert job.follow() == 0, job.lines
    assert [check.what for check in rehearsal_checks(second) if not check.holds] == [
        "the report is whole", "each step left its numbers", "the run was resumed", "the last step can be loaded elsewhere",
    ]  # fmt: skip
    job = Job(head, second, resume=True)
    assert job.follow() == 0, job.lines
    assert [check for check in rehearsal_checks(second) if not check.holds] == []
    assert numbers(second)["train/loss"] == 0.25


def test_a_stopped_job_takes_slime_with_it(head: LocalHead, place: Path) -> None:
    asked = config(place, "stopped", "hang")
    job = Job(head, asked)
    started = asked.slime.root / COUNTED

    def stop() -> None:
        while not started.exists():
            time.sleep(0.2)
        JobSubmissionClient(head.address, headers=head.headers).stop_job(job.id)

    threading.Thread(target=stop, daemon=True).start()
    assert job.follow() == 130, job.lines
    process = Path("/proc") / started.read_text()
    assert not process.exists() or "Z" in (process / "stat").read_text().rpartition(")")[2].split()[0]
    assert not (job.folder / "report.json").exists()

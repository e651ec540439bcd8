"""A training that the system killed for its memory goes on with smaller pieces; pinned here, through the command line:

- kill -9, then `--resume --set local.max_tokens_per_microbatch=...`: it goes on behind its last saved state and ends, and
  `environment.json` says what changed;
- a finished training is extended by `--set train.steps=...`, and neither is refused for how often it saves;
- what is learned may not change on the way.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tau2rl.settings import child_environment
from tests.learning.chain import demonstrate

SHAPE = {"hidden": 16, "layers": 1, "heads": 1, "head_dim": 8, "intermediate": 32, "vocab_size": 600}


def words(config: Path, run: Path, *more: str) -> list[str]:
    sets = [word for setting in more for word in ("--set", setting)]
    return [sys.executable, "-m", "tau2rl", "sft", "-c", str(config), "--output", str(run), "--inline", "--resume", *sets]


def finish(*command: str, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=child_environment(), check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def steps(run: Path) -> list[int]:
    file = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    rows = demonstrate(folder / "seed", 0, 20, noise_prob=0.0) / "rows.jsonl"
    values = {
        "stage": "sft",
        "data": {"files": [str(rows)], "max_tokens": 600, "val_fraction": 0.0},
        "train": {"steps": 200, "batch_size": 4, "lr": 1e-3, "save_every": 5},
        "local": {"shape": SHAPE, "max_tokens_per_microbatch": 4096},
    }
    (folder / "sft.json").write_text(json.dumps(values), "utf-8")
    return folder / "sft.json"


@pytest.mark.slow
def test_it_goes_on_with_smaller_pieces(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words(config, run), stdout=log, stderr=log, env=child_environment())
    deadline = time.monotonic() + 240
    while len(steps(run)) < 12:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text("utf-8")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()

    refused = finish(*words(config, run, "local.max_tokens_per_microbatch=512", "train.lr=0.5"), code=2)
    assert "train.lr: was 0.001, now 0.5" in refused and "max_tokens_per_microbatch" not in refused

    smaller = ("local.max_tokens_per_microbatch=512", "local.gradient_checkpointing=true", "train.save_every=50")
    finish(*words(config, run, *smaller))
    assert steps(run) == list(range(1, 201))
    changed = json.loads((run / "environment.json").read_text("utf-8"))["changes"]
    assert {each["setting"]: (each["from"], each["to"]) for each in changed} == {
        "local.max_tokens_per_microbatch": (4096, 512),
        "local.gradient_checkpointing": (False, True),
        "train.save_every": (5, 50),
    }

    finish(*words(config, run, *smaller, "train.steps=203"))
    assert steps(run)[-1] == 203
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert (report["training"]["steps"], report["incomplete"]) == (203, False)
    assert "train.steps: was 203, now 200" in finish(*words(config, run, *smaller), code=2)

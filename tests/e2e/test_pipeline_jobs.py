"""A pipeline through real Ray jobs, on one local head for all of them; pinned here:

- each step is a job of its own, and the chain of hashes holds;
- SIGTERM in the middle ends the job, the head and the command with 130; the same command goes on with the step that broke;
- a finished pipeline starts no head.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tau2rl.launch import processes

pytestmark = pytest.mark.e2e
SMALL = {"hidden": 16, "layers": 1, "heads": 1, "head_dim": 16, "intermediate": 32}
STEPS = {
    "seed": {
        "stage": "seed",
        "settings": {"tasks": {"domains": ["mock"], "split": "synth-train", "limit": 4}, "user": {"kind": "scripted"}},
    },
    "sft": {"stage": "sft", "data": ["seed"], "settings": {"train": {"steps": 3}, "local": {"shape": SMALL}}},
}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"stage": "pipeline", "steps": STEPS}, sort_keys=False), "utf-8")
    return [sys.executable, "-m", "tau2rl", "run", "-c", str(tmp_path / "p.yaml"), "--output", str(tmp_path / "run"), "--json"]


def start(command: list[str]) -> subprocess.Popen[str]:
    without = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=without)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_pipeline_is_interrupted_and_goes_on(command: list[str], tmp_path: Path) -> None:
    seed = tmp_path / "run" / "runs" / "01-seed"
    first = start(command)
    while not (seed / "report.json").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    below = processes.descendants(first.pid)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert below, "there was no head"
    assert [process for process in below if alive(process)] == []

    second = start(command)
    out, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    report = json.loads(out)
    assert report["chain"] == {"links": 1, "broken": [], "holds": True}
    assert not report["incomplete"]
    assert len(list(seed.glob("logs/attempt_*"))) == 1

    third = start(command)
    out, said = third.communicate(timeout=60)
    assert third.returncode == 0
    assert "2 of 2 runs are finished already" in said
    assert "Ray head" not in said
    assert json.loads(out) == report

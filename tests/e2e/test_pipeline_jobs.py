"""A pipeline through real Ray jobs, on one local head for all of them; pinned here:

- each step is a job of its own, and the chain of hashes holds;
- a job that is killed with -9 ends the command with 1 and says how to go on; what was finished before is not made again;
- SIGTERM in the middle ends the job, the head and the command with 130; the same command goes on with the step that broke;
- a finished pipeline starts no head.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tau2rl.launch import supervisor

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


def starts(run: Path) -> int:
    return len(list(run.glob("logs/session_*")))


def job_of(run: Path, start: int, command: subprocess.Popen[str]) -> int:
    """The process of the job that carries the run out, as soon as it says so in its log."""
    log = run / "logs" / f"session_{start}" / "job.log"
    while not (log.exists() and (named := re.search(rf"begins, start {start}, pid (\d+)", log.read_text("utf-8")))):
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
    return int(named[1])


def test_a_pipeline_breaks_twice_and_goes_on(command: list[str], tmp_path: Path) -> None:
    seed, sft = (tmp_path / "run" / "runs" / name for name in ("01-seed", "02-sft"))
    first = start(command)
    os.kill(job_of(sft, 1, first), signal.SIGKILL)
    out, said = first.communicate(timeout=120)
    assert first.returncode == 1, said
    assert "the job was killed by signal 9" in said
    assert f"tau2rl run -c {tmp_path}/run/config.json --output {tmp_path}/run" in said
    assert json.loads(out)["not_done"] == ["sft"]

    second = start(command)
    job_of(sft, 2, second)
    below = supervisor.descendants(second.pid)
    second.send_signal(signal.SIGTERM)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 130, said
    assert below, "there was no head"
    assert [process for process in below if alive(process)] == []

    third = start(command)
    out, said = third.communicate(timeout=300)
    assert third.returncode == 0, said
    assert "1 of 2 runs finished already" in said
    report = json.loads(out)
    assert report["chain"] == {"links": 1, "broken": [], "holds": True}
    assert not report["incomplete"]
    assert (starts(seed), starts(sft)) == (1, 3)

    fourth = start(command)
    out, said = fourth.communicate(timeout=60)
    assert fourth.returncode == 0
    assert "2 of 2 runs finished already" in said
    assert "Ray head" not in said
    assert json.loads(out) == report

"""Pins `scripts/gpu_check.sh`, which is written for a GPU, on a CPU with tiny shapes:

- every number of a check is in the table: speed, weights, memory, sampler against trainer; the exit code is 0
- a check that has no time left is a row that says so, and the exit code is 1
- without a CUDA device it does nothing, and says what to do
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def check(*options: str) -> subprocess.CompletedProcess[str]:
    line = [str(ROOT / "scripts" / "gpu_check.sh"), *options]
    return subprocess.run(
        line, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=300
    )


def test_a_check_on_a_cpu_gives_its_part_of_the_table() -> None:
    done = check("--device", "cpu", "--only", "grpo-4b")
    assert done.returncode == 0, done.stdout + done.stderr
    first, _, *lines = done.stdout.splitlines()
    assert first.startswith("CPU")
    rows = {line[13:55].strip(): line[55:].strip() for line in lines if line.startswith("grpo-4b ")}
    assert float(rows["sampled tokens a second"].replace(",", "")) > 0
    assert float(rows["trained tokens a second"].replace(",", "")) > 0
    mean, highest = map(float, rows["sampler against trainer, mean and max"].split(", "))
    assert 0 <= mean <= highest < 0.1
    every, trained = (int(number.replace(",", "")) for number in rows["weights, of them trained"].split(", "))
    assert 0 < trained < every  # LoRA
    assert rows["peak memory (by docs/local.md)"].startswith("not measured on a CPU")


def test_a_check_without_time_is_a_failure_that_is_named() -> None:
    done = check("--device", "cpu", "--only", "sft-0.6b", "--minutes", "0")
    assert done.returncode == 1
    assert "no time was left" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_to_do() -> None:
    done = check()
    assert done.returncode == 2
    assert "torch sees no CUDA device" in done.stderr

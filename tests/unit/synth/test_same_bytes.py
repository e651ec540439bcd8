"""`tau2rl synth` in processes of its own: the same command and seed give the same files, byte for byte.

The processes hash strings by different seeds, so that sets and dicts come in other orders.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest


def made(folder: Path, domain: str, number: int, hash_seed: str) -> dict[str, str]:
    """File -> sha256."""
    command = ["synth", "--domain", domain, "--num-tasks", str(number), "--seed", "1", "--output", str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-m", "tau2rl", *command], check=True, capture_output=True, env=environment)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def check(folder: Path, domain: str, number: int) -> None:
    first, second = (made(folder / hash_seed, domain, number, hash_seed) for hash_seed in ("0", "1"))
    assert set(first) == {"tasks.json", "split_tasks.json", "proofs.jsonl", "card.json", "README.md"}
    assert first == second


@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_other_hashes_of_strings_give_the_same_bytes(domain: str, tmp_path: Path) -> None:
    check(tmp_path, domain, 4)


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_other_hashes_of_strings_give_the_same_bytes_of_300_tasks(domain: str, tmp_path: Path) -> None:
    check(tmp_path, domain, 300)

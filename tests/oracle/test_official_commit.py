"""Made tasks, graded by the official tau2-bench at the commit whose numbers are published (`scripts/grade_official.py`):

- every reference path scores 1 there and ends at the hash that its proof has;
- doing nothing, and always transferring, solve none;
- conversations of the gold teacher have the reward there that they have here.

Runs where TAU2_CHECKOUT names a git directory or work tree of sierra-research/tau2-bench, with `-m slow`: minutes of CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app

CHECKOUT = os.environ.get("TAU2_CHECKOUT", "")
SCRIPT = Path(__file__).parents[2] / "scripts" / "grade_official.py"
NUMBER = 20

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHECKOUT, reason="needs TAU2_CHECKOUT")]


def graded(*paths: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(SCRIPT), CHECKOUT, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)["graded"]


@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_made_tasks_are_graded_the_same(domain: str, tmp_path: Path) -> None:
    made, played = tmp_path / "made", tmp_path / "played"
    asked = ["synth", "--domain", domain, "--num-tasks", str(NUMBER), "--seed", "11", "--output", str(made)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    source = ["--domains", domain, "--task-source", str(made / "tasks.json"), "--task-split", "base", "--limit", "5"]
    asked = ["seed", *source, "--set", "allow_held_out=true", "--output", str(played), "--inline"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    found = graded(made, played)
    assert found[str(made)] == {
        "gold": {"graded": NUMBER, "solved": NUMBER, "same_hash": NUMBER},
        "do_nothing": {"graded": NUMBER, "solved": 0},
        "always_transfer": {"graded": NUMBER, "solved": 0},
        "different": [],
    }
    assert found[str(played)] == {"played": {"graded": 5, "solved": 5}, "different": []}

"""`tau2rl cost` and `report/break_even.py`, pinned here on numbers that can be worked out by hand:

- N* = 533, 922, 1,143 and 1,600 of docs/cost.md, each from the command that stands there;
- success with a verifier is the closed formula at one chance of success, and the published table over Beta distributed tasks;
- a perfect verifier gives pass@k, one that accepts blindly gives pass@1, and early stop plays fewer attempts;
- measured runs: costs are seconds of their reports, success that of their attempts; a break-even has an interval;
- what is not known, contradicts itself, or is on other tasks, is refused.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.errors import UserError
from tau2rl.report.break_even import BetaTasks, MeasuredTasks, beta_tasks, expected_attempts, success_of
from tau2rl.report.estimators import pass_at_k

runner = CliRunner()
DOCUMENT = Path(__file__).parents[3] / "docs" / "cost.md"


def answer(words: str) -> dict[str, Any]:
    result = runner.invoke(app, ["cost", *shlex.split(words), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def documented() -> list[tuple[str, str, str]]:
    """(options, kind of break-even, number of tasks) of every worked line of docs/cost.md."""
    text = DOCUMENT.read_text("utf-8")
    return re.findall(r"^    tau2rl cost (.*?) +# (by_\w+): ([\d,]+|never)$", text, flags=re.MULTILINE)


def test_the_document_works_out_the_published_numbers() -> None:
    assert {"533", "922", "1,143", "1,600"} <= {tasks for _, _, tasks in documented()}


@pytest.mark.parametrize(("options", "kind", "tasks"), documented())
def test_a_worked_line_of_the_document_gives_its_number(options: str, kind: str, tasks: str) -> None:
    found = answer(options)[kind]["tasks"]
    assert ("never" if found is None else f"{found:,.0f}") == tasks


@pytest.mark.parametrize(
    ("recall", "false_accepts", "published"),
    [
        (1.0, 0.0, (0.290, 0.441, 0.600, 0.736, 0.836)),
        (0.95, 0.05, (0.290, 0.426, 0.564, 0.670, 0.729)),
        (0.8, 0.2, (0.290, 0.380, 0.464, 0.509, 0.520)),
        (0.7, 0.3, (0.290, 0.350, 0.402, 0.425, 0.428)),
    ],
)
def test_success_over_beta_tasks_is_the_published(recall: float, false_accepts: float, published: tuple[float, ...]) -> None:
    tasks = beta_tasks(0.29, 0.60, 4)
    found = [success_of(tasks, k, recall=recall, false_accepts=false_accepts) for k in (1, 2, 4, 8, 16)]
    assert found == pytest.approx(published, abs=0.0015)


@pytest.mark.parametrize(("p", "r", "f", "k"), [(0.3, 0.8, 0.2, 4), (0.7, 0.9, 0.4, 3), (0.5, 0.6, 0.6, 5)])
def test_one_chance_of_success_gives_the_closed_formula(p: float, r: float, f: float, k: int) -> None:
    alike = BetaTasks(p * 1e7, (1 - p) * 1e7)  # all tasks equally hard
    a = p * r + (1 - p) * f
    closed = (1 - (1 - a) ** k) * p * r / a + (1 - a) ** (k - 1) * p * (1 - r)
    assert success_of(alike, k, recall=r, false_accepts=f) == pytest.approx(closed, abs=1e-5)
    assert expected_attempts(alike, k, recall=r, false_accepts=f) == pytest.approx((1 - (1 - a) ** k) / a, abs=1e-5)


def test_a_perfect_verifier_gives_pass_at_k_and_a_blind_one_pass_at_1() -> None:
    counts = [(6, c) for c in range(7)]
    tasks = MeasuredTasks(counts)
    for k in (1, 2, 5):
        assert success_of(tasks, k) == pytest.approx(sum(pass_at_k(n, c, k) for n, c in counts) / 7)
        assert success_of(tasks, k, recall=0.4, false_accepts=0.4) == pytest.approx(0.5)


def test_no_tasks_have_a_pass_at_k_beyond_equally_hard_ones() -> None:
    with pytest.raises(UserError, match="no tasks have"):
        beta_tasks(0.5, 0.95, 4)


def run_folder(path: Path, solved: list[int], *, seconds: float, stage: str = "eval", first: str = "t") -> Path:
    """A finished run of two attempts at each task that took so long."""
    path.mkdir()
    report = {
        "schema": 2, "stage": stage, "incomplete": False, "reason": None,
        "cost": {
            "process": {"wall_seconds": seconds, "cpu_seconds": None, "busy": None, "cores": None},
            "episodes": 2 * len(solved),
        },
    }  # fmt: skip
    if stage == "eval":
        report["overall"] = {}
        report["by_task"] = {f"mock/{first}{i}": {"attempts": 2, "valid": 2, "solved": c} for i, c in enumerate(solved)}
    (path / "report.json").write_text(json.dumps(report), "utf-8")
    return path


def test_measured_runs_say_their_own_costs(tmp_path: Path) -> None:
    before = run_folder(tmp_path / "before", [0, 1, 1, 2], seconds=16.0)  # 2 s an episode
    after = run_folder(tmp_path / "after", [2, 2, 1, 1], seconds=8.0)  # 1 s an episode
    training = run_folder(tmp_path / "training", [], seconds=300.0, stage="grpo")
    words = f"--sampled {before} --trained {after} --training {training} -k 2"
    found = answer(words)
    assert found["training_cost"] == 300.0
    assert found["sampling"] == {"attempts": 2.0, "attempt_cost": 2.0, "cost": 4.0, "success": 0.75}
    assert found["trained"] == {"attempts": 1.0, "attempt_cost": 1.0, "cost": 1.0, "success": 0.75}
    assert found["by_cost"]["tasks"] == found["by_cost_per_success"]["tasks"] == 100.0  # 300 / (4 - 1): they succeed alike
    low, high = found["interval"]["by_cost_per_success"]
    assert low < 100.0 and (high is None or high > 100.0)
    assert len(found["sensitivity"]) == 25
    assert answer(f"{words} --early-stop")["sampling"]["attempts"] == 1.5  # 1 + (1 + 1/2 + 1/2 + 0) / 4
    shown = runner.invoke(app, ["cost", *shlex.split(words)])
    assert "same cost: from 100 tasks on training is cheaper\n" in shown.stdout
    assert "95% interval" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--episode-cost 1", "the cost of the training is not known"),
        ("--training-cost 1", "the cost of an attempt of the sampled policy is not known"),
        ("--training-cost 1 --episode-cost 1 --sampled-passes 0.3", "is not pass@1, pass@K and K"),
        ("--training-cost 1 --episode-cost 1 --early-stop", "needs to know how hard the tasks are"),
        ("--training-cost 1 --sampled {a} --trained {b}", "not on the same tasks"),
        ("--training-cost 1 --sampled {a} --trained {a} -k 3", "k = 3 needs 3 attempts a task, the run has 2"),
        ("--training-cost 1 --sampled {c} --trained {a}", "is no evaluation"),
    ],
)
def test_what_is_not_known_is_refused(words: str, message: str, tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", [1, 2], seconds=4), run_folder(tmp_path / "b", [1, 2], seconds=4, first="u")
    c = run_folder(tmp_path / "c", [], seconds=4, stage="sft")
    result = runner.invoke(app, ["cost", *shlex.split(words.format(a=a, b=b, c=c))])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr

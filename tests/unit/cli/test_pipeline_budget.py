"""What a pipeline's budget reads and estimates, through `tau2rl run`; pinned here:

- an estimate has dollars where its runs have one price for each model, their own included, and is `dollars unknown` else;
- without a cap the records of finished runs are not read, nor at which cap one stopped; under one those of a finished run are
  read once;
- where a run stopped at what the pipeline had left for it, the pipeline's cap is the one that is said and lifted, also beside a
  larger one of the run's own; none is where it is the run's own, or was lifted since.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tau2rl.cli import app
from tests.stubs.interrupts import interrupt_before_the_session
from tests.stubs.openai import OpenAIStub

DAMAGED = "no record\n"


def run(tmp_path: Path, server: OpenAIStub, *more: str, steps: int = 1, settings: dict[str, Any] | None = None) -> Result:
    """A pipeline of steps that play against the stub."""
    played: dict[str, Any] = {
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 2},
        "policy": {"kind": "api", "model": "openai/stub-model", "api_base": server.api_base},
        "user": {"kind": "scripted"},
        "chat": {"protocol": "transcript"},
        "rollout": {"num_samples": 2, "retries": 0},
        "limits": {"max_turns": 2},
        **(settings or {}),
    }
    values = {"steps": {f"seed{i}": {"stage": "seed", "settings": played} for i in range(steps)}, "launch": {"inline": True}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(values), "utf-8")
    words = ["run", "-c", str(tmp_path / "pipeline.yaml"), "--output", str(tmp_path / "chain"), *more]
    return CliRunner().invoke(app, words)


def good_bye(meanwhile: Callable[[], object] = lambda: None) -> OpenAIStub:
    """An agent that says good-bye at once."""

    def answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        meanwhile()
        return "Good bye."

    return OpenAIStub(answer=answer)


def test_an_estimate_prices_the_tokens_of_its_steps(tmp_path: Path) -> None:
    with good_bye() as server:
        assert run(tmp_path, server).exit_code == 0
        whole = (tmp_path / "chain").rename(tmp_path / "whole")
        cost = json.loads((whole / "report.json").read_text("utf-8"))["cost"]
        like = ["--like", str(whole), "--dry-run"]
        unknown = run(tmp_path, server, *like)
        given = run(tmp_path, server, *like, "--budget.policy_price", "1000,2000")
        own = run(tmp_path, server, *like, settings={"budget": {"policy_price": [1000, 2000]}})
        machine = run(tmp_path, server, *like, "--budget.usd_per_hour", "36000")
    tokens = cost["tokens"]
    total = f"{tokens['policy_in'] + tokens['policy_out']:,} tokens"
    assert f"estimate for 1 run: {total}, dollars unknown, " in unknown.stdout, unknown.output
    dollars = tokens["policy_in"] * 1e-3 + tokens["policy_out"] * 2e-3
    assert f"{total}, ${dollars:,.2f}, " in given.stdout and f"{total}, ${dollars:,.2f}, " in own.stdout
    assert f"{total}, ${cost['seconds'] * 10:,.2f}, " in machine.stdout  # of the stub at an address of one's own


def test_without_a_cap_the_records_of_finished_runs_are_not_read(tmp_path: Path) -> None:
    with good_bye() as server:
        assert run(tmp_path, server, steps=2).exit_code == 0
        first, second = sorted((tmp_path / "chain" / "runs").iterdir())
        (first / "episodes.jsonl").write_text(DAMAGED, "utf-8")
        (second / "report.json").unlink()
        capped = run(tmp_path, server, "--max-tokens", "1000000", steps=2)
        assert capped.exit_code == 2 and "episodes.jsonl` line 1" in capped.stderr
        free = run(tmp_path, server, steps=2)
    assert free.exit_code == 0, free.stderr
    assert (second / "report.json").exists()


def test_the_cap_that_stopped_a_step_is_the_one_that_is_lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = {"tasks": {"domains": ["mock"], "split": "synth-train", "limit": 1}, "rollout": {"num_samples": 12, "retries": 0}}
    step = tmp_path / "chain" / "runs" / "01-seed0"
    with good_bye() as server:
        assert run(tmp_path, server, settings=alike).exit_code == 0
        tokens = json.loads((step / "report.json").read_text("utf-8"))["cost"]["tokens"]
        (tmp_path / "chain").rename(tmp_path / "whole")
        small, large = (tokens["policy_in"] + tokens["policy_out"]) * 3 // 5, 10**9
        own = run(tmp_path, server, "--max-tokens", str(large), settings={**alike, "budget": {"max_tokens": small}})
        assert own.exit_code == 1 and f"stopped at the cap budget.max_tokens = {small:,}" in own.stderr
        assert "of the pipeline is reached" not in own.stderr and "--max-tokens" not in own.stderr.splitlines()[-1]
        (tmp_path / "chain").rename(tmp_path / "own")

        capped = {**alike, "budget": {"max_tokens": large}}
        result = run(tmp_path, server, "--max-tokens", str(small), settings=capped)
        assert result.exit_code == 1, result.stderr
        assert "the cap budget.max_tokens of the pipeline is reached: " in result.stderr
        assert result.stderr.splitlines()[-1].endswith(f" --max-tokens {2 * small}")

        interrupt_before_the_session(monkeypatch, step)
        lifted = run(tmp_path, server, "--max-tokens", str(2 * small), settings=capped)
        assert lifted.exit_code == 130 and "--max-tokens" not in lifted.stderr.splitlines()[-1]
        (step / "logs" / "latest" / "stopped.json").write_text(DAMAGED, "utf-8")
        free = run(tmp_path, server, settings=capped)
    assert free.exit_code == 130 and "error" not in free.stderr, free.stderr


@pytest.mark.parametrize("cap", ["--max-tokens", "--max-hours"])
def test_under_a_cap_a_finished_run_is_read_once(cap: str, tmp_path: Path) -> None:
    def damage_the_first() -> None:
        runs = sorted((tmp_path / "chain" / "runs").iterdir())
        if len(runs) > 1:  # the second one is played: what the first spent is known
            (runs[0] / "episodes.jsonl").write_text(DAMAGED, "utf-8")

    with good_bye(damage_the_first) as server:
        result = run(tmp_path, server, cap, "1000000", steps=3)
    assert result.exit_code == 0, result.stderr
    runs = sorted((tmp_path / "chain" / "runs").iterdir())
    assert (runs[0] / "episodes.jsonl").read_text("utf-8") == DAMAGED
    assert len(runs) == 3 and all((each / "report.json").exists() for each in runs)

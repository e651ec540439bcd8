"""A base model beside its published card, and an evaluation beside who is to blame; pinned here:

- a model whose name is that of a published card is set beside it, with the interval, in `eval`, `report` and `--json`; outside
  the interval in the card's own protocol the set-up is the first suspect, and what to look at is said;
- what differs from the card's protocol is named, and then a distance is no verdict;
- `--card NAME` names the card; one that nobody knows, a run of another stage and a trained checkpoint are refused, and a trained
  one is never matched by its name;
- every row of the file has its source, and no trained checkpoint is among the cards;
- `eval` keeps `blame.json`: `report` and `show` have raw and adjusted success side by side, and not of other episodes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tau2rl.cli import app
from tau2rl.config import EvalConfig, build
from tau2rl.errors import UserError
from tau2rl.report.published import card_named, rows
from tau2rl.runs.checkpoints import card_for
from tests.stubs.openai import OpenAIStub

runner = CliRunner()
CARD = "Qwen3-4B-Instruct-2507"


def invoke(*words: str | Path) -> Result:
    return runner.invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own`: all of airline as on the card, by an agent that says good-bye and a user that hangs up; `other`: in another way."""
    root = tmp_path_factory.mktemp("runs")

    def answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        if tools:
            return "Good bye."
        return "I need help." if len(messages) < 4 else "###STOP###"

    with OpenAIStub(answer=answer) as server:
        values: dict[str, Any] = {
            "tasks": {"domains": ["airline"], "split": "base"},
            "policy": {"kind": "api", "model": f"openai/Qwen/{CARD}", "api_base": server.api_base},
            "user": {"kind": "llm", "model": "openai/user", "api_base": server.api_base},
            "chat": {"protocol": "transcript"},
            "rollout": {"num_samples": 1, "retries": 0},
            "launch": {"inline": True},
        }
        (root / "own.yaml").write_text(yaml.safe_dump(values), "utf-8")
        own = invoke("eval", "-c", root / "own.yaml", "--output", root / "own")
        (root / "own.txt").write_text(own.stdout, "utf-8")
        assert own.exit_code == 0, own.stderr
        values |= {"tasks": {"domains": ["airline"], "split": "test", "limit": 2}, "user": {"kind": "scripted"}}
        values["policy"]["model"] = "openai/other"
        (root / "other.yaml").write_text(yaml.safe_dump(values), "utf-8")
        other = invoke("eval", "-c", root / "other.yaml", "--output", root / "other", "--card", CARD)
        (root / "other.txt").write_text(other.stdout, "utf-8")
    return root


def test_outside_the_interval_the_set_up_is_the_first_suspect(runs: Path) -> None:
    shown = (runs / "own.txt").read_text("utf-8")
    report = json.loads((runs / "own" / "report.json").read_text("utf-8"))
    measured = report["by_domain"]["airline"]["pass@1"]
    beside = report["published"]["domains"]["airline"]
    assert (beside["published"], beside["measured"], beside["ci95"]) == (0.24, measured["value"], measured["ci95"])
    assert measured["value"] > 0.3 and beside["inside"] is False  # the floor of doing nothing is above the card
    assert report["published"]["differs"] == []
    assert f"card of {CARD}" in shown and "outside" in shown
    assert "airline: outside the interval, so the set-up is the first suspect. Look at" in shown
    assert "the chat template and the tool parser" in shown and "source: model card of" in shown
    again = invoke("report", runs / "own")
    assert "the set-up is the first suspect" in again.stdout


def test_another_protocol_than_the_cards_is_named(runs: Path) -> None:
    shown = " ".join((runs / "other.txt").read_text("utf-8").split())
    assert "not as on the card, tasks: a part of split `test`, and the card has the base split: 50 airline" in shown
    assert "not as on the card, user simulator: the scripted one" in shown
    assert "the set-up is the first suspect" not in shown


def test_a_card_can_be_named_and_must_be_one(runs: Path, tmp_path: Path) -> None:
    values = json.loads(invoke("report", runs / "own", "--card", "Qwen3-235B-A22B", "--json").stdout)
    assert values["published"]["domains"]["airline"]["published"] == 0.36
    nobody = invoke("report", runs / "own", "--card", "Nobody-7B")
    assert nobody.exit_code == 2 and "no published card of `Nobody-7B` is known" in nobody.stderr and CARD in nobody.stderr
    early = invoke("eval", "-c", runs / "own.yaml", "--output", tmp_path / "x", "--card", "Nobody-7B", "--dry-run")
    assert early.exit_code == 2 and "no published card" in early.stderr
    seed = ["seed", "--domains", "mock", "--limit", "1", "--inline", "--output", str(tmp_path / "seed")]
    assert invoke(*seed).exit_code == 0
    assert "is no evaluation" in invoke("report", tmp_path / "seed", "--card", CARD).stderr


def evaluation(checkpoint: Path, **more: Any) -> EvalConfig:
    policy = {"kind": "local", "checkpoint": str(checkpoint)}
    return build(EvalConfig, {"policy": policy, "chat": {"protocol": "native"}, **more})


def test_a_trained_checkpoint_has_no_card(tmp_path: Path) -> None:
    base, trained = tmp_path / CARD, tmp_path / "grpo" / "checkpoints" / CARD
    found = card_for(evaluation(base), "checkpoint 12")
    assert found is not None and found.model == CARD
    assert card_for(evaluation(tmp_path / f"{CARD}-mine"), "checkpoint 12") is None
    assert card_for(evaluation(trained), "checkpoint 12") is None
    with pytest.raises(UserError, match="was trained, and a card is of a model before training"):
        card_for(evaluation(trained, card=CARD), "checkpoint 12")
    served = build(EvalConfig, {"chat": {"tokenizer": "t"}})
    assert card_for(served, f"/models/{CARD}, 32768 tokens of context") is not None
    assert card_for(served, f"{trained}, 32768 tokens of context") is None


def test_every_row_has_its_source_and_the_cards_are_of_released_models() -> None:
    assert all(row.source and row.tasks and row.user and (row.domains or row.mean) for row in rows())
    assert card_named(f"Qwen/{CARD}").domains == {"airline": 0.24, "retail": 0.404, "telecom": 0.132}
    for row in rows():
        if row.of == "trained":
            with pytest.raises(UserError):
                card_named(row.model.replace(CARD, "x"))


def test_raw_and_adjusted_success_stand_side_by_side(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "own"
    shutil.copytree(runs / "own", run)
    scores = json.loads((run / "report.json").read_text("utf-8"))["blame"]["overall"]
    kept = json.loads((run / "blame.json").read_text("utf-8"))
    assert kept["scores"]["overall"] == scores
    blamed = json.loads(invoke("blame", run, "--json").stdout)
    assert (blamed["scores"], blamed["episodes"]) == (kept["scores"], kept["episodes"])
    raw = json.loads((run / "report.json").read_text("utf-8"))["overall"]["pass@1"]
    assert scores["raw"]["value"] == pytest.approx(raw["value"])
    assert scores["left_out"] > 0 and scores["adjusted"]["value"] != scores["raw"]["value"]
    line = f"raw {raw['value']:.3f} [{raw['ci95'][0]:.3f}, {raw['ci95'][1]:.3f}], adjusted {scores['adjusted']['value']:.3f}"
    assert line in " ".join(invoke("report", run).stdout.split())
    listed = invoke("show", run)
    assert line in " ".join(listed.stdout.split())
    one = next(entry for entry in kept["episodes"] if entry["fault"] == "task")
    page = json.loads(invoke("show", run, "--json", "--per-page", "50").stdout)
    assert next(row["blame"] for row in page["episodes"] if row["key"] == one["episode"]) == one
    task, attempt = one["episode"].split("#")
    assert f"blame: {one['fault']}, {one['name']}" in invoke("show", run, task, "--attempt", attempt).stdout

    (run / "episodes.jsonl").write_bytes((run / "episodes.jsonl").read_bytes().partition(b"\n")[0] + b"\n")
    assert "adjusted" not in invoke("show", run).stdout  # it is of other episodes
    assert invoke("blame", run).exit_code == 0
    assert "success: raw" in invoke("show", run).stdout

"""`tau2rl synth --from-failures RUN`, on runs of the command line with an agent that makes known mistakes; pinned here:

- failures are clustered by the names of `tau2rl blame`, by tool, argument and broken rule, in the share that they have;
- the gold of every new task has what its cluster failed at, is proved like any other, and is no task that was played;
- the card names the attempts; the same command gives the same bytes;
- a run on tasks that are kept for tests, and one without failures in the domain, are refused;
- a user who is told to volunteer what it knows is not blamed for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.types import Action, Attempt, CallTool
from tests.unit.cli import careless_agents
from tests.unit.cli.careless_agents import Json, lines, play, tau2rl

CARELESS = f"{__name__}:careless"
CANCEL, MOVE = "cancel_pending_order", "modify_user_address"
REASONS = ("no longer needed", "ordered by mistake")


def careless(codec: Any) -> Callable[[Attempt], ScriptedPolicy]:
    """An agent that always gives the other reason for a cancellation and forgets to change the address of a profile."""

    def wrong(action: Action) -> Action:
        if isinstance(action, CallTool) and action.name == CANCEL:
            other = next(reason for reason in REASONS if reason != action.arguments["reason"])
            return replace(action, arguments={**action.arguments, "reason": other})
        return action

    def forgotten(action: Action) -> bool:
        return isinstance(action, CallTool) and action.name == MOVE

    return careless_agents.careless(codec, wrong=wrong, forgotten=forgotten)


def writes(task: Json) -> list[Json]:
    made = [call for call in task["evaluation_criteria"]["actions"] if not call["name"].startswith(("get", "find"))]
    return [{"name": call["name"], "arguments": call["arguments"]} for call in made]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "first"
    grid = ("--writes", "1,2", "--burdens", "0-2,3-5", "--refusals", 0.1)
    tau2rl("synth", "--num-tasks", 40, "--seed", 4, *grid, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def run(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(CARELESS, "retail", first / "tasks.json", "train-learn", tmp_path_factory.mktemp("runs") / "careless")


@pytest.fixture(scope="module")
def second(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "second"
    tau2rl("synth", "--num-tasks", 12, "--seed", 5, "--from-failures", run, "--output", folder)
    return folder


def expected(first: Path) -> dict[str, list[str]]:
    """What the agent fails at: cluster -> tasks."""
    found: dict[str, list[str]] = {}
    learned = json.loads((first / "split_tasks.json").read_text("utf-8"))["train-learn"]
    for task in json.loads((first / "tasks.json").read_text("utf-8")):
        names = {call["name"] for call in writes(task)} if task["id"] in learned else set()
        if CANCEL in names:
            found.setdefault(f"wrong_argument/{CANCEL}/reason", []).append(task["id"])
        elif MOVE in names:
            found.setdefault(f"missing_write/{MOVE}", []).append(task["id"])
    return found


def test_failures_are_clustered_by_what_went_wrong(first: Path, run: Path, second: Path) -> None:
    card = json.loads((second / "card.json").read_text("utf-8"))["from_failures"]
    clusters = {"/".join(filter(None, (c["name"], c["tool"], c["argument"]))): c for c in card["clusters"]}
    wanted = expected(first)
    assert len(wanted) == 2
    assert {key: cluster["failures"] for key, cluster in clusters.items()} == {
        key: [f"{run}: retail/{id}#0" for id in ids] for key, ids in wanted.items()
    }
    assert card["left_out"] == {}  # several users here tell all at once, as they are told to
    assert card["failures"] == sum(map(len, wanted.values()))
    assert card["runs"][0]["run"] == str(run)
    readme = (second / "README.md").read_text("utf-8")
    assert f"| wrong_argument | {CANCEL} | reason |" in readme and f"--from-failures {run}" in readme


def test_new_tasks_exercise_what_failed_in_its_share(first: Path, second: Path) -> None:
    proofs = lines(second / "proofs.jsonl")
    tasks = {task["id"]: task for task in json.loads((second / "tasks.json").read_text("utf-8"))}
    wanted = expected(first)
    share = {key: len(ids) / sum(map(len, wanted.values())) for key, ids in wanted.items()}
    made = [proof["made_for"] for proof in proofs]
    for key, part in share.items():
        assert abs(made.count(key) - part * len(proofs)) <= 1, key
        tool = key.split("/")[1]
        assert all(tool in {call["name"] for call in writes(tasks[p["task_id"]])} for p in proofs if p["made_for"] == key)
    before = {json.dumps(writes(task)) for task in json.loads((first / "tasks.json").read_text("utf-8"))}
    assert not before & {json.dumps(writes(task)) for task in tasks.values()}
    assert {proof["rewards"]["gold"] for proof in proofs} == {1.0}
    assert {(proof["writes"], proof["burden_bin"]) for proof in proofs} <= {(w, b) for w in (1, 2) for b in ("0-2", "3-5")}


def test_the_same_command_gives_the_same_bytes(run: Path, second: Path, tmp_path: Path) -> None:
    tau2rl("synth", "--num-tasks", 12, "--seed", 5, "--from-failures", run, "--output", tmp_path / "again")
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == {
        file.name: file.read_bytes() for file in second.iterdir()
    }


def test_a_rule_that_was_broken_gets_tasks_that_break_it(first: Path, tmp_path: Path) -> None:
    proofs = {proof["task_id"]: proof for proof in lines(first / "proofs.jsonl") if not proof["writes"]}
    learned = json.loads((first / "split_tasks.json").read_text("utf-8"))["train-learn"]
    ids = [id for id in learned if id in proofs]
    agent = ("--policy", "always-transfer", "--user-model", "scripted", "--protocol", "transcript")
    source = ("--domains", "retail", "--task-source", first / "tasks.json", "--task-split", "train-learn")
    tau2rl("eval", "--inline", *agent, *source, "--set", f"tasks.ids=[{','.join(ids)}]", "--output", tmp_path / "run")
    made = ("--num-tasks", 20, "--refusals", 0.15, "--from-failures", tmp_path / "run", "--output", tmp_path / "made")
    card = json.loads(tau2rl("synth", *made, "--json").stdout)
    rules = {request["breaks"] for id in ids for request in proofs[id]["requests"]}
    assert {cluster["rule"] for cluster in card["from_failures"]["clusters"]} == rules
    assert set(card["refused_rules"]) <= rules
    assert card["tasks"] == 3  # refusals are free reward to who never acts: their cap of 15 in a hundred holds


@pytest.mark.parametrize("split", ["test", "train-select", "base"])
def test_a_run_on_tasks_for_tests_is_refused(split: str, first: Path, tmp_path: Path) -> None:
    run = play(CARELESS, "retail", first / "tasks.json", split, tmp_path / "run")
    refused = tau2rl("synth", "--from-failures", run, "--output", tmp_path / "made", code=2)
    assert "kept for selection or tests" in refused.stderr and not (tmp_path / "made").exists()


def test_a_run_without_failures_of_the_domain_is_refused(run: Path, tmp_path: Path) -> None:
    refused = tau2rl("synth", "--domain", "airline", "--from-failures", run, "--output", tmp_path / "made", code=2)
    assert "no attempt at a task of airline failed" in refused.stderr
    assert "there is no" in tau2rl("synth", "--from-failures", tmp_path / "none", "--output", tmp_path / "made", code=2).stderr

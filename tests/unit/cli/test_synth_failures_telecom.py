"""`tau2rl synth --domain telecom --from-failures RUN`, on runs of the command line; pinned here:

- failures are clustered by the names of `tau2rl blame` and the problem that was not put right: by the tool that was called wrong,
  by what the user was not asked to do, by the reason why it should have gone to a human;
- the gold of every new task has the problem of its cluster, is proved like any other, stands in the cells of the tasks that
  failed, and is no task that was played; clusters get tasks in their share, those for a human under their cap;
- tau2's own training tasks are understood by what their ids name;
- the card names the attempts; the same command gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.enums import TRANSFER_TOOL, UserSignal
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.types import Action, Attempt, CallTool, Say
from tests.stubs.openai import OpenAIStub
from tests.unit.cli import careless_agents
from tests.unit.cli.careless_agents import Json, lines, play, tau2rl

TOO_LITTLE = "wrong_argument/data_usage_exceeded/refuel_data/gb_amount"
NO_WORD_OF_THE_VPN = "missing_follow_up/bad_vpn/disconnect_vpn"
MADE = ("--domain", "telecom", "--num-tasks", 20, "--seed", 5, "--from-failures")


def careless(codec: Any) -> Callable[[Attempt], ScriptedPolicy]:
    """An agent that adds half a gigabyte whatever the user said, never speaks of a VPN, and never hands over."""

    def wrong(action: Action) -> Action:
        if isinstance(action, CallTool) and action.name == "refuel_data":
            return replace(action, arguments={**action.arguments, "gb_amount": 0.5})
        return action

    def forgotten(action: Action) -> bool:
        of_the_vpn = isinstance(action, Say) and "(disconnect_vpn)" in action.text
        return of_the_vpn or (isinstance(action, CallTool) and action.name == TRANSFER_TOOL)

    return careless_agents.careless(codec, wrong=wrong, forgotten=forgotten)


def clusters_of(card: Json) -> dict[str, Json]:
    found = card["from_failures"]["clusters"]
    return {"/".join(filter(None, (c["name"], c["problem"], c["tool"], c["argument"]))): c for c in found}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "first"
    grid = ("--problems", "1,2,3", "--refusals", 0.1)
    tau2rl("synth", "--domain", "telecom", "--num-tasks", 50, "--seed", 4, *grid, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def run(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "careless"
    return play(f"{__name__}:careless", "telecom", first / "tasks.json", "train-learn", folder)


@pytest.fixture(scope="module")
def second(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "second"
    tau2rl("synth", *MADE, run, "--output", folder)
    return folder


def expected(first: Path) -> dict[str, list[Json]]:
    """What the agent fails at: cluster -> the proofs of the tasks."""
    learned = json.loads((first / "split_tasks.json").read_text("utf-8"))["train-learn"]
    found: dict[str, list[Json]] = {}
    for proof in lines(first / "proofs.jsonl"):
        key = f"other/{proof['to_a_human']}" if proof["to_a_human"] else ""
        key = key or (TOO_LITTLE if "data_usage_exceeded" in proof["problems"] else "")
        key = key or (NO_WORD_OF_THE_VPN if "bad_vpn" in proof["problems"] else "")
        if key and proof["task_id"] in learned:
            found.setdefault(key, []).append(proof)
    return found


def test_failures_are_clustered_by_the_problem_that_was_not_put_right(first: Path, run: Path, second: Path) -> None:
    card, wanted = json.loads((second / "card.json").read_text("utf-8")), expected(first)
    assert {TOO_LITTLE, NO_WORD_OF_THE_VPN} < set(wanted)
    assert {key: cluster["failures"] for key, cluster in clusters_of(card).items()} == {
        key: [f"{run}: telecom/{proof['task_id']}#0" for proof in proofs] for key, proofs in wanted.items()
    }
    assert card["from_failures"]["left_out"] == {}
    assert card["from_failures"]["failures"] == sum(map(len, wanted.values()))
    readme = (second / "README.md").read_text("utf-8")
    assert "| wrong_argument | data_usage_exceeded/refuel_data | gb_amount |" in readme
    assert f"--domain telecom --num-tasks 20 --seed 5 --from-failures {run}" in readme


def test_new_tasks_have_the_problem_of_their_cluster_in_its_share(first: Path, second: Path) -> None:
    proofs, wanted = lines(second / "proofs.jsonl"), expected(first)
    made = Counter(proof["made_for"] for proof in proofs)
    assert set(made) <= set(wanted) and made.total() == 20
    assert sum(made[key] for key in wanted if key.startswith("other/")) == 2  # the cap of a tenth
    share = len(wanted[TOO_LITTLE]) / len(wanted[TOO_LITTLE] + wanted[NO_WORD_OF_THE_VPN])
    assert abs(made[TOO_LITTLE] - 18 * share) <= 1
    for proof in proofs:
        name, problem = proof["made_for"].split("/")[:2]
        assert problem in proof["problems"], proof["task_id"]
        assert proof["to_a_human"] == (problem if name == "other" else None)
        if not proof["to_a_human"]:
            cells = {(len(p["problems"]), p["intent"], p["behaviour"]["persona"]) for p in wanted[proof["made_for"]]}
            assert (len(proof["problems"]), proof["intent"], proof["behaviour"]["persona"]) in cells
    called = {proof["made_for"]: {each["call"]["name"] for each in proof["perturbed"]} for proof in proofs}
    assert "refuel_data" in called[TOO_LITTLE] and "disconnect_vpn" in called[NO_WORD_OF_THE_VPN]
    assert {proof["rewards"]["gold"] for proof in proofs} == {1.0}
    assert {max(proof["rewards"]["do_nothing"], proof["rewards"]["always_transfer"]) for proof in proofs} == {0.0}
    played = {(proof["user_id"], proof["intent"], *proof["problems"]) for proof in lines(first / "proofs.jsonl")}
    assert not played & {(proof["user_id"], proof["intent"], *proof["problems"]) for proof in proofs}


def test_the_same_command_gives_the_same_bytes(run: Path, second: Path, tmp_path: Path) -> None:
    tau2rl("synth", *MADE, run, "--output", tmp_path / "again")
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == {
        file.name: file.read_bytes() for file in second.iterdir()
    }


def test_of_tau2s_own_tasks_the_first_problem_in_the_order_of_the_manual_counts(tmp_path: Path) -> None:
    """An agent that hands everything over, and a user who tells nothing else than why it calls."""
    roams = "[mobile_data_issue]bad_network_preference|bad_vpn|user_abroad_roaming_disabled_on[PERSONA:None]"
    flies = "[mobile_data_issue]airplane_mode_on|data_mode_off[PERSONA:None]"

    def says(messages: list[Json], tools: list[Json]) -> str:
        spoke = any(message["role"] == "assistant" for message in messages)
        return UserSignal.TRANSFER.value if spoke else "My phone does not work as it should."

    with OpenAIStub(answer=says) as server:
        user = ("--user-model", "openai/stub", "--user.api_base", server.api_base)
        tasks = ("--domains", "telecom", "--task-split", "train", "--set", f"tasks.ids={json.dumps([roams, flies])}")
        agent = ("--policy", "always-transfer", "--protocol", "transcript", "--num-samples", 1, "--concurrency", 1)
        tau2rl("eval", "--inline", *agent, *user, *tasks, "--output", tmp_path / "run")
    card = json.loads(tau2rl("synth", *MADE, tmp_path / "run", "--output", tmp_path / "made", "--json").stdout)
    assert {key: cluster["failures"] for key, cluster in clusters_of(card).items()} == {
        "premature_transfer/airplane_mode_on/toggle_airplane_mode": [f"{tmp_path / 'run'}: telecom/{flies}#0"],
        "premature_transfer/user_abroad_roaming_disabled_on/enable_roaming": [f"{tmp_path / 'run'}: telecom/{roams}#0"],
    }
    assert card["problems"]["airplane_mode_on"] >= 10 and card["problems"]["user_abroad_roaming_disabled_on"] >= 10
    assert {name: sum(row.values()) for name, row in card["grid"].items() if sum(row.values())} == {"mobile_data, none": 20}
    assert {number for row in card["grid"].values() for number, count in row.items() if count} == {"2", "3"}

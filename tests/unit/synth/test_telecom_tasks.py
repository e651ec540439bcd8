"""Telecom tasks that `tau2rl synth` made, on tau2's own phone, lines and grader:

- the same command gives the same bytes, also when it was interrupted and went on;
- cells of problems x intents x personas get equal parts, tasks for a human their share, and no two splits an intent
  with the same problems, which the data card says of the disjoint splits alone;
- a reference path scores 1 and does not without any one of its actions; doing nothing and always transferring score 0;
- what is done, and by whom, is what an independent diagnosis of the phone and the line comes to, and tau2's own check of a
  telecom task passes;
- a task that shares a person, all its problems or a run of words with a test task is found;
- users put a wrong amount right or have no customer number, and a task is told in several ways; changes of mind are refused;
- an action that is not needed, and a deed against the policy that goes unseen, are found when a task is proved;
- the gold teacher plays them, and so do eval and rft-filter: the phone is the user's, who does what the agent asks for, and the
  agent asks before it adds data, sends a bill or hands over; its rows share nothing with the test tasks.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import SynthConfig
from tau2rl.env.domain import domain
from tau2rl.env.task_cells import named_problems
from tau2rl.env.task_replay import Replayer, TaskReplayer
from tau2rl.errors import UserError
from tau2rl.synth.contamination import TelecomGuard
from tau2rl.synth.generator import Rejected
from tau2rl.synth.make import make_tasks
from tau2rl.synth.telecom import TelecomTasks
from tau2rl.synth.telecom_problems import ProblemBook
from tau2rl.synth.telecom_proof import prove_case
from tests.unit.synth import telecom_oracle

from tau2.data_model.tasks import Task
from tau2.domains.telecom.tasks.mms_issues import mms_issue_task_manager
from tau2.domains.telecom.tasks.mobile_data_issues import mobile_data_task_manager
from tau2.domains.telecom.tasks.service_issues import service_issues_task_manager
from tau2.domains.telecom.user_tools import TelecomUserTools

runner = CliRunner()
Json = dict[str, Any]
NUMBER = 54
TELECOM = ["--domain", "telecom"]
MANAGERS = {each.name: each for each in (mms_issue_task_manager, mobile_data_task_manager, service_issues_task_manager)}
TRANSFER = "transfer_to_human_agents"


def command(*arguments: str, code: int = 0) -> Any:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if result.stdout else result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "tasks"
    card = command("synth", *TELECOM, "--num-tasks", str(NUMBER), "--seed", "5", "--output", str(path))
    assert card["tasks"] == NUMBER
    return path


@pytest.fixture(scope="module")
def tasks(folder: Path) -> list[Json]:
    return json.loads((folder / "tasks.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def proofs(folder: Path) -> list[Json]:
    return rows_of(folder / "proofs.jsonl")


def rows_of(file: Path) -> list[Json]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def named(folder: Path) -> list[str]:
    return ["--domains", "telecom", "--task-source", str(folder / "tasks.json"), "--task-split", "base"]


def test_an_interrupted_command_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    config = SynthConfig(domain="telecom", num_tasks=8, seed=3)
    make_tasks(config, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_tasks(config, tmp_path / "parts", stop)
    make_tasks(config.model_copy(update={"resume": True}), tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_cells_get_equal_parts_and_splits_share_no_composition(folder: Path, proofs: list[Json]) -> None:
    solvable = [proof for proof in proofs if not proof["to_a_human"]]
    cells = Counter((len(p["problems"]), p["intent"], p["behaviour"]["persona"]) for p in solvable)
    assert NUMBER - len(solvable) == 5  # a tenth
    # service has four problems that can be solved at once, the others six and more
    assert len(cells) == 3 * (4 + 6 + 6)
    assert set(cells.values()) == {1, 2}
    splits = json.loads((folder / "split_tasks.json").read_text("utf-8"))
    compositions = {proof["task_id"]: (proof["intent"], *proof["problems"]) for proof in proofs}
    apart = {name: {compositions[id] for id in splits[name]} for name in ("train-learn", "train-select", "test")}
    assert all(apart.values())
    assert sum(map(len, apart.values())) == len(set(compositions.values())) < NUMBER
    listed = ", ".join(f"{name} {len(splits[name])}" for name in apart)
    assert f"no two of which share an intent with its problems: {listed}." in (folder / "README.md").read_text("utf-8")
    assert sorted(splits["base"]) == sorted(id for name in ("train-learn", "train-select", "test") for id in splits[name])


def test_the_grid_is_what_was_asked_for(tmp_path: Path) -> None:
    asked = ["--problems", "2,8", "--intents", "mms,service", "--personas", "hard", "--refusals", "0"]
    card = command("synth", *TELECOM, "--num-tasks", "4", *asked, "--output", str(tmp_path / "out"))
    assert card["grid"] == {
        "mms, hard": {"2": 2, "8": 1},
        "service, hard": {"2": 1, "8": 0},  # there are not so many problems of service
        "mms, to a human": {"2": 0, "8": 0},
        "service, to a human": {"2": 0, "8": 0},
    }
    assert "tau2rl synth --domain telecom --num-tasks 4 --seed 0 --problems 2,8 --intents mms,service" in card["command"]
    assert "its grid is problems" in command("synth", *TELECOM, "--writes", "2", "--output", str(tmp_path / "no"), code=2)


def test_reference_paths_score_1_and_constant_policies_nothing(folder: Path) -> None:
    assert command("tasks", "validate", *named(folder))["solved"] == NUMBER
    found = command("tasks", "audit", *named(folder))["domains"]["telecom"]
    assert {policy: floor["solved"] for policy, floor in found["floor"].items()} == {"do_nothing": 0, "always_transfer": 0}
    assert found["train_test_overlap"] == {}


def test_without_any_one_of_its_actions_a_reference_path_scores_0(tasks: list[Json]) -> None:
    to_a_human = next(task for task in tasks if task["evaluation_criteria"]["actions"][0]["name"] == TRANSFER)
    for task in (*tasks[-6:], to_a_human):
        criteria, replayer = task["evaluation_criteria"], TaskReplayer("telecom", task)
        said = [f"It is {value}." for value in criteria["communicate_info"]]
        assert replayer.reward(criteria["actions"], said) == 1
        for place in range(len(criteria["actions"])):
            assert replayer.reward(criteria["actions"][:place] + criteria["actions"][place + 1 :], said) == 0


def check_by_oracle(folder: Path) -> None:
    proofs = rows_of(folder / "proofs.jsonl")
    for task, proof in zip(json.loads((folder / "tasks.json").read_text("utf-8")), proofs, strict=True):
        assert telecom_oracle.taken(task) == telecom_oracle.diagnose(task), task["id"]
        assert len(proof["perturbed"]) == (0 if proof["to_a_human"] else len(task["evaluation_criteria"]["actions"]))
        for perturbed in proof["perturbed"]:
            assert proof["gold_hash"] not in {perturbed["left_out"], *(each["hash"] for each in perturbed["altered"])}


def test_what_is_done_is_what_an_independent_diagnosis_comes_to(folder: Path) -> None:
    check_by_oracle(folder)


def check_by_tau2(tasks: list[Json], monkeypatch: pytest.MonkeyPatch) -> None:
    """tau2's own check of a task: not fixed before each reference action, fixed after the last, and its assertions hold."""
    # `break_vpn` writes into what tau2 keeps on the class.
    monkeypatch.setattr(TelecomUserTools, "default_vpn_details", copy.deepcopy(TelecomUserTools.default_vpn_details))
    for task in tasks:
        MANAGERS[task["id"][1:].partition("]")[0]].verify_task(Task.model_validate(task))


def test_tau2s_own_task_managers_verify_them(tasks: list[Json], monkeypatch: pytest.MonkeyPatch) -> None:
    check_by_tau2(tasks, monkeypatch)


def test_the_oracle_finds_what_is_missing_or_wrong(tasks: list[Json]) -> None:
    """A test of the test."""
    for task in tasks:
        wrong = copy.deepcopy(task)
        wrong["evaluation_criteria"]["actions"].pop()
        assert telecom_oracle.taken(wrong) != telecom_oracle.diagnose(wrong)
    adds = next(copy.deepcopy(t) for t in tasks if any(a["name"] == "refuel_data" for a in t["evaluation_criteria"]["actions"]))
    adds["user_scenario"]["instructions"]["known_info"] = (
        telecom_oracle.words(adds).replace("1 GB", "1.7 GB").replace("2 GB", "1.7 GB").replace(".5 GB", ".7 GB")
    )
    assert telecom_oracle.taken(adds) != telecom_oracle.diagnose(adds)


def test_a_task_is_told_in_several_ways_by_users_with_twists(tmp_path: Path) -> None:
    asked = ["--problems", "2,3", "--intents", "mms,mobile_data", "--personas", "none,easy", "--refusals", "0"]
    twists = ["--behaviours", "4", "--twists", "corrected,does_not_know"]
    card = command("synth", *TELECOM, "--num-tasks", "8", "--seed", "6", *asked, *twists, "--output", str(tmp_path / "made"))
    told, proofs = json.loads((tmp_path / "made" / "tasks.json").read_text("utf-8")), rows_of(tmp_path / "made" / "proofs.jsonl")
    assert (card["tasks"], card["told_anew"]) == (32, 24) and [t["id"] for t in told] == [p["task_id"] for p in proofs]
    for first in range(0, 32, 4):
        same = proofs[first : first + 4]
        assert len({proof["gold_hash"] for proof in same}) == 1
        assert len({json.dumps(proof["behaviour"]) for proof in same}) == 4
        assert len({task["user_scenario"]["persona"] for task in told[first : first + 4]}) == 1
    for task, proof in zip(told, proofs, strict=True):
        lines = telecom_oracle.words(task).splitlines()
        wrong = [place for place, line in enumerate(lines) if line.startswith("Sorry, ") and "amount" in line]
        unsure = any("customer number" in line or "without it" in line for line in lines)
        assert (bool(wrong), unsure) == tuple(proof["behaviour"]["twist"] == twist for twist in ("corrected", "does_not_know"))
        assert all(" GB" in lines[place - 1] for place in wrong)
    assert {proof["behaviour"]["twist"] for proof in proofs} == {"none", "corrected", "does_not_know"}
    check_by_oracle(tmp_path / "made")
    output = ["--output", str(tmp_path / "seed"), "--set", "allow_held_out=true", "--inline"]
    report = command("seed", *named(tmp_path / "made"), *output)
    assert (report["solved"], report["tried"]) == (32, 32)
    refused = command("synth", *TELECOM, "--twists", "changes_mind", "--output", str(tmp_path / "no"), code=2)
    assert "no user of a telecom task changes their mind" in refused


def test_a_problem_that_the_policy_does_not_speak_of_is_refused() -> None:
    policy = Replayer("telecom").policy
    assert len(ProblemBook(policy).problems) == 20
    with pytest.raises(UserError, match="problem `unseat_sim_card` of `telecom` quotes a sentence that is not in the policy"):
        ProblemBook(policy.replace("reseat_sim_card", "reinsert_sim_card"))


def test_planted_overlaps_with_test_tasks_are_found(tasks: list[Json], proofs: list[Json]) -> None:
    replayer = Replayer("telecom")
    guard = TelecomGuard(rows=replayer.rows(), tests=replayer.tasks("test"))
    for task, proof in zip(tasks, proofs, strict=True):
        assert not guard.overlap(task, proof["intent"], proof["problems"])
    target = replayer.tasks("test")[0]
    named = named_problems(target["id"])
    assert named is not None and guard.overlap(tasks[0], named.intent, named.names).composition
    assert not guard.overlap(tasks[0], "service", named.names).composition  # the same, but not what is wanted
    for text in ("I'm John Smith.", "It is 555-123-2002.", "L1001", "B1003"):
        planted = copy.deepcopy(tasks[0])
        planted["user_scenario"]["instructions"]["known_info"] += text
        assert guard.overlap(planted, "mms", ["bad_vpn"]).people == ("C1001",)
    planted = copy.deepcopy(tasks[0])
    planted["user_scenario"]["instructions"]["known_info"] += target["user_scenario"]["instructions"]["reason_for_call"]
    assert guard.overlap(planted, "mms", ["bad_vpn"]).words


def drawn(number: int, intent: str, persona: str = "none") -> Any:
    generator, rng = TelecomTasks(SynthConfig(domain="telecom")), random.Random(4)
    cell: tuple[Any, ...] = (number, intent, persona) if number else generator.declined
    return next(draft for _ in range(200) if (draft := generator.draw("t", cell, rng, lambda _: True)))


def proved(draft: Any, task: Mapping[str, Any]) -> Json:
    return prove_case(draft.case, dict(task), task["evaluation_criteria"]["communicate_info"])


def test_a_task_that_does_not_hold_is_not_proved() -> None:
    draft = drawn(3, "mms")
    assert proved(draft, draft.task)["rewards"] == {"gold": 1.0, "do_nothing": 0.0, "always_transfer": 0.0}
    more = copy.deepcopy(draft.task)
    more["evaluation_criteria"]["actions"].insert(
        0, {"action_id": "x", "requestor": "user", "name": "toggle_wifi", "arguments": {}}
    )
    with pytest.raises(Rejected, match="leaving out an action is enough"):
        proved(draft, more)
    less = copy.deepcopy(draft.task)
    less["evaluation_criteria"]["actions"].pop(0)
    with pytest.raises(Rejected, match="does not end as it should"):
        proved(draft, less)
    easy = copy.deepcopy(draft.task)
    easy["evaluation_criteria"]["env_assertions"] = []
    with pytest.raises(Rejected, match="leaving out an action is enough"):
        proved(draft, easy)


def test_a_deed_against_the_policy_is_seen_and_handing_over_alone_does_not_do() -> None:
    draft = drawn(0, "")
    while not draft.case.beyond.forbidden:
        draft = drawn(0, "")
    rewards = proved(draft, draft.task)["rewards"]
    assert rewards == {"gold": 1.0, "without_the_hand_over": 0.0, "do_nothing": 0.0, "always_transfer": 0.0}
    blind = copy.deepcopy(draft.task)
    blind["evaluation_criteria"]["env_assertions"] = []
    with pytest.raises(Rejected, match="what the policy forbids goes unseen"):
        proved(draft, blind)
    unasked = copy.deepcopy(draft.task)
    unasked["evaluation_criteria"]["communicate_info"] = []
    with pytest.raises(Rejected, match="the policy always_transfer solves it"):
        prove_case(replace(draft.case, question=None), unasked, [])


def test_the_gold_teacher_asks_and_the_user_acts(folder: Path, tasks: list[Json], tmp_path: Path) -> None:
    report = command("seed", *named(folder), "--output", str(tmp_path), "--set", "allow_held_out=true", "--inline")
    assert (report["solved"], report["tried"], report["floor"]["telecom"]["do_nothing"]) == (NUMBER, NUMBER, 0.0)
    by_id, phone = {task["id"]: task for task in tasks}, {tool.name for tool in domain("telecom").user_tools or ()}
    for row in rows_of(tmp_path / "rows.jsonl"):
        task, messages = by_id[row["metadata"]["task_id"]], row["messages"]
        said = "\n".join(m["content"] for m in messages if m["role"] == "user")
        assert all(line in said for line in telecom_oracle.words(task).splitlines()), task["id"]
        for place, message in enumerate(messages):
            called = {call["function"]["name"] for call in message.get("tool_calls") or ()}
            assert not called & phone, task["id"]
            if called & {"refuel_data", "send_payment_request", "enable_roaming", TRANSFER}:
                assert messages[place - 1]["content"] == "Yes, please go ahead.", task["id"]
        assert messages[-1]["content"].startswith("Thank you, that is all I needed."), task["id"]
    overlap = command("data", "card", str(tmp_path / "rows.jsonl"), "--license", "mit")["overlap"]
    assert (overlap["domains"]["telecom"]["rows"], overlap["rows"]) == (NUMBER, 0)
    played = rows_of(tmp_path / "episodes.jsonl")
    messages = [message for line in played for message in line["episode"]["trajectory"] if message["role"] == "user"]
    mine = [call["name"] for message in messages for call in message.get("tool_calls") or ()]
    asked_for = [a["name"] for task in tasks for a in task["evaluation_criteria"]["actions"] if a["requestor"] == "user"]
    assert not Counter(asked_for) - Counter(mine)
    assert {"check_status_bar", "check_payment_request", "run_speed_test", "can_send_mms"} <= set(mine) <= phone


def test_eval_and_rft_filter_play_the_file(folder: Path, tmp_path: Path) -> None:
    gold = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted", "--limit", "6", "--inline"]
    evaluated = command("eval", *named(folder), *gold, "--num-samples", "1", "--output", str(tmp_path / "eval"))
    assert evaluated["overall"]["pass@1"]["value"] == 1.0
    cells = Counter(
        row["cell"] for row in rows_of(folder / "proofs.jsonl") if f"telecom/{row['task_id']}" in evaluated["by_task"]
    )
    assert {cell: part["tasks"] for cell, part in evaluated["by_cell"].items()} == cells
    profile = command("synth", "profile", str(tmp_path / "eval"), "--output", str(tmp_path / "profile.json"))
    assert {cell: sum(buckets.values()) for cell, buckets in profile["by_cell"].items()} == cells
    train = [*named(folder)[:-1], "train"]
    kept = command("rft-filter", *train, *gold, "--num-samples", "1", "--output", str(tmp_path / "rft"))
    assert (kept["tried"], kept["kept"]) == (6, 6)


@pytest.mark.slow
def test_300_tasks_of_another_seed_hold_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make_tasks(SynthConfig(domain="telecom", num_tasks=300, seed=11), tmp_path / "made")
    assert (card["tasks"], card["proofs"]["reference_path_rewarded_1"]) == (300, 300)
    check_by_oracle(tmp_path / "made")
    check_by_tau2(json.loads((tmp_path / "made" / "tasks.json").read_text("utf-8")), monkeypatch)
    output = ["--output", str(tmp_path / "seed"), "--set", "allow_held_out=true", "--inline"]
    report = command("seed", *named(tmp_path / "made"), *output)
    assert (report["solved"], report["tried"]) == (300, 300)

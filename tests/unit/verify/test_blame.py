"""Who is to blame, pinned here on conversations with one planted fault each:

- simulator faults in many wordings are the user's, with at least 95% precision and 80% recall against clean conversations in as
  many; each kind gets its own name;
- simulator faults and clean users on real tasks of three domains, in eleven sets, each written before the gates had seen it;
- planted agent failures get their own name, and wrong arguments say which; on real tasks too;
- a broken world is infrastructure's, a quarantined task the task's, whatever the user did;
- a user's mistake is seen in a success too; a clean success blames nobody;
- `tau2rl blame` shows raw and adjusted side by side, and leaves lucky successes out of the adjusted one;
- a model that reviews the users as well moves no score; its agreement with the gates is shown; it is asked once each and
  sees the reference actions only where that was declared;
- the facts of every task of every domain can be read.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.env.domain import domain
from tau2rl.runs.records import encode
from tau2rl.types import (
    Attempt,
    CallTool,
    Checks,
    Episode,
    EpisodeRecord,
    Failure,
    Fault,
    Grade,
    Message,
    Status,
    StopReason,
    TaskRef,
)
from tau2rl.verify.blame import TaskFacts, blame, facts_of
from tau2rl.verify.fault_names import MEANINGS
from tests.planted_users import cases_of
from tests.stubs.openai import OpenAIStub

WHO = CallTool(name="find_user_id_by_name_zip", arguments={"zip": "19122"})
CANCEL = CallTool(name="cancel_pending_order", arguments={"order_id": "#W2378156", "reason": "no longer needed"})
RETURN = CallTool(name="return_delivered_order_items", arguments={"order_id": "#W2378156", "item_ids": ["1"]})
TRANSFER = CallTool(name="transfer_to_human_agents", arguments={"summary": "s"})
FACTS = TaskFacts(
    instructions="You are Yusuf Rossi in zip code 19122, yusuf.rossi@example.com, phone 555-123-2002, user yusuf_rossi_9620. "
    "You want to cancel order #W2378156 because you do not need it any longer. You keep the 1000ml bottle.",
    reason="You want to cancel order #W2378156 because you do not need it any longer.",
    gold=(WHO, CANCEL),
    domain_policy=domain("retail").policy,
    tool_kinds=domain("retail").tool_types,
    user_tools=frozenset({"reboot_device"}),
)
GREETING = "Hi! How can I help you today?"
ASKS = "Could you give me your name and zip code, please?"
PROPOSAL = "I would cancel order #W2378156. Do you confirm that I should go ahead?"


def agent(text: str, *calls: CallTool, error: bool = False) -> tuple[Message, ...]:
    results = (Message(role="tool", content="{}", error=error) for _ in calls)
    return (Message(role="assistant", content=text, tool_calls=calls), *results)


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def episode(messages: tuple[Message, ...], *, solved: bool = False, **facts: Any) -> Episode:
    values: dict[str, Any] = {"status": Status.COMPLETED, "stop_reason": StopReason.USER_STOP, "checks": Checks(db=(solved,))}
    values |= facts
    grade = Grade(reward=float(solved), checks=values.pop("checks"), reward_basis=("DB", "COMMUNICATE"))
    task = TaskRef(domain="retail", task_id="24", split="base")
    return Episode(**{
        "task": task, "seed": 1, "token_ids": (), "turns": (), "messages": messages, "grade": grade, **values,
    })  # fmt: skip


def talk(
    first: str = "I need to cancel order #W2378156.", told: str = "Yusuf Rossi, 19122.", answer: str = "Yes, please do.",
    last: str = "Thank you, that was all. ###STOP###", made: tuple[CallTool, ...] = (),
) -> tuple[Message, ...]:  # fmt: skip
    """A conversation in which the agent does not do what it should, but for `made`, and the user says these words."""
    done = tuple(message for call in made for message in agent("", call))
    ending = () if "###STOP###" in answer else (*done, *agent("Anything else I can do for you?"), *user(last))
    return (*agent(GREETING), *user(first), *agent(ASKS), *user(told), *agent("", WHO), *agent(PROPOSAL), *user(answer), *ending)


FAULTS: dict[str, list[tuple[Message, ...]]] = {
    "told_before_asked": [
        talk(first="Hello, Yusuf Rossi here, zip 19122, please cancel #W2378156."),
        talk(first="Hey. You can find me under yusuf.rossi@example.com, I want something cancelled."),
        talk(first="Cancel my order. For verification purposes my user name is yusuf_rossi_9620."),
        talk(first="I don't need #W2378156 any more; reach me on 5551232002 if anything is unclear."),
        talk(first="Before you ask: 19122 is where I live. It is about an order."),
    ],
    "invented_fact": [
        talk(told="Yusuf Rossi, and the zip is 90210."),
        talk(told="I am Yusuf Rossi from 19122, my other order is #W7654321."),
        talk(told="Sure, it's rossi.private@nowhere.org."),
        talk(answer="Yes, and put the money on gift_card_4455667."),
        talk(told="My customer number would be YR-88213-B."),
    ],
    "role_flip": [
        talk(told="Of course! Could you please provide your order number so that I can look into it?"),
        talk(told='<tool_call>{"name": "get_order_details"}</tool_call>'),
        talk(answer="Great news, I have successfully cancelled your order."),
        talk(told="Thanks for reaching out. How may I assist you with this order?"),
        talk(answer="Your order has been cancelled and the refund is on its way."),
        talk(told="Let me pull up your account. One moment."),
    ],
    "stopped_too_early": [
        talk(answer="Yes, please cancel it. ###STOP###"),
        talk(answer="###STOP###"),
        talk(answer="Sounds good to me, thanks! ###STOP###"),
        talk(answer="Absolutely, do that. Bye. ###STOP###"),
        talk(answer="Correct. ###STOP###"),
    ],
    "repetition": [
        (*talk()[:-1], *(3 * (*user("I really want my money back."), *agent("I see."))), *user("###STOP###")),
        (*talk()[:-1], *(4 * (*user("When will this be done, please?"), *agent("Soon."))), *user("Bye ###STOP###")),
    ],
    "empty_turn": [talk(told=""), talk(answer="  ")],
}  # fmt: skip
CLEAN = [
    (*talk()[:-1], *(4 * (*agent("Is there anything else?"), *user("No, that is really all."))), *user("###STOP###")),
    talk(),
    talk(first="Hi there, there's an order I would like to cancel."),
    talk(first="I want to get rid of order #W2378156, please?", told="It's Yusuf Rossi, and the zip code is 19122"),
    talk(told="yusuf.rossi@example.com"),
    talk(told="You can use my phone number, (555) 123-2002, or 19122."),
    talk(answer="No, wait. What happens to the refund?"),
    talk(answer="Yes, but leave the 1000ml bottle in, I use it at 10am every day."),
    talk(answer="Yes.", last="Perfect, I appreciate your help! ###STOP###"),
    talk(last="###STOP###"),
    talk(answer="Ok, go ahead.", last="No, you've been very helpful. Bye. ###STOP###"),
    talk(first="Hey, I changed my mind about a purchase. Can you help?", answer="yes"),
    talk(told="My name is Yusuf Rossi. I'd rather not give more than the zip: 19122."),
    talk(answer="Sure, cancel it, I do not need it any longer."),
    talk(answer="I'm not sure. Would I get the money back on my card?"),
    talk(last="What a pity. Then that is it for now. ###STOP###"),
    talk(first="ugh, this order is taking 3 weeks. I want out", told="rossi, yusuf. 19122"),
    talk(last="Could you tell me whether it is done? ###STOP###"),
    talk(answer="Can I have your name so that I can mention you in the survey? And yes."),
    talk(told="19122, and the name's Rossi, Yusuf Rossi", answer="Do it!"),
    talk(answer="Please proceed.", last="Great. Thanks for your patience. ###STOP###"),
]  # fmt: skip


def test_simulator_faults_are_the_users_and_clean_users_are_not() -> None:
    planted = [(name, messages) for name, group in FAULTS.items() for messages in group]
    found = [blame(episode(messages), FACTS) for _, messages in planted]
    clean = [blame(episode(messages), FACTS) for messages in CLEAN]
    right = sum(one is not None and one.fault is Fault.USER for one in found)
    wrong = sum(one is not None and one.fault is Fault.USER for one in clean)
    assert right / len(planted) >= 0.8
    assert right / (right + wrong) >= 0.95
    named = sum(one is not None and one.name == name for (name, _), one in zip(planted, found, strict=True))
    assert named / right >= 0.9
    assert None not in clean  # a failure is always somebody's


@pytest.mark.parametrize("name", FAULTS)
def test_each_kind_of_simulator_fault_is_found(name: str) -> None:
    assert any((one := blame(episode(messages), FACTS)) and one.name == name for messages in FAULTS[name])


SWITCHED = CallTool(name="cancel_pending_order", arguments={"order_id": "#W2378156", "reason": "ordered by mistake"})
REBOOT = CallTool(name="reboot_device", arguments={})


@pytest.mark.parametrize(
    ("name", "detail", "made"),
    [
        ("missing_write", "cancel_pending_order", episode(talk())),
        ("wrong_argument", "cancel_pending_order: reason", episode(talk(made=(SWITCHED,)))),
        ("wrong_tool", "return_delivered_order_items for cancel_pending_order", episode(talk(made=(RETURN,)))),
        ("extra_write", "return_delivered_order_items", episode(talk(made=(CANCEL, RETURN)))),
        ("premature_transfer", "cancel_pending_order", episode(talk(made=(TRANSFER,)))),
        ("tool_ownership", "reboot_device", episode((*agent(GREETING), *agent("", REBOOT, error=True)))),
        ("missing_information", "", episode(talk(made=(CANCEL,)), checks=Checks(db=(True,), communicate=(False,)))),
        ("gave_up", "cancel_pending_order", episode((*user("Cancel it."), *agent("I cannot."), *user("Oh. ###STOP###")))),
        ("loop", "find_user_id_by_name_zip", episode((*talk()[:-1], *agent("", WHO), *agent("", WHO), *user("###STOP###")))),
        ("truncated", "turns", episode(talk(), status=Status.TRUNCATED, stop_reason=StopReason.TURNS)),
        ("malformed", "", episode(talk()[:4], status=Status.MALFORMED, stop_reason=StopReason.MALFORMED)),
        (
            "write_without_confirmation", "return_delivered_order_items",
            episode((*user("Cancel order #W2378156."), *agent("", RETURN), *agent("Done."), *user("Ok ###STOP###"))),
        ),
    ],
)  # fmt: skip
def test_a_planted_agent_failure_gets_its_name(name: str, detail: str, made: Episode) -> None:
    found = blame(made, FACTS)
    assert found is not None
    assert (found.fault, found.name, found.detail) == (Fault.AGENT, name, detail)


def test_planted_failures_on_real_tasks_get_their_names() -> None:
    cases = list(cases_of("agents"))
    found = {case.name: (one.fault, one.name, one.detail) for case in cases if (one := case.blamed())}
    wanted = {case.name: (Fault.AGENT, case.fault, case.detail) for case in cases}
    assert found == wanted
    planted = {case.fault for case in cases}
    assert planted == {
        "wrong_tool", "wrong_argument", "missing_write", "extra_write", "write_without_confirmation", "premature_transfer",
        "tool_ownership", "missing_follow_up", "gave_up", "loop", "truncated", "malformed",
    }  # fmt: skip


SETS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh")


@pytest.mark.parametrize("name", SETS)
def test_planted_users_of_three_domains(name: str) -> None:
    """The gates were improved on all but the last; what each gave when it was new is in docs/decide.md."""
    cases = list(cases_of(name))
    blamed = {case.name: one for case in cases if (one := case.blamed()) is not None and one.fault is Fault.USER}
    planted = {case.name for case in cases if case.fault}
    caught = planted & blamed.keys()
    assert len({case.episode.task.domain for case in cases}) == 3
    assert len(planted) >= 50
    assert len(caught) / len(planted) >= 0.8
    assert len(caught) / len(blamed) >= 0.95
    assert sum(blamed[case.name].name == case.fault for case in cases if case.name in caught) / len(caught) >= 0.9


def test_a_scripted_user_that_reads_its_instructions_out_is_no_agent() -> None:
    told = "You have your order cancelled."
    facts = replace(FACTS, instructions=f"{FACTS.instructions}\n{told}")
    found, elsewhere = (blame(episode(talk(first=told)), one) for one in (facts, FACTS))
    assert found is not None and (found.fault, found.name) == (Fault.AGENT, "missing_write")
    assert elsewhere is not None and (elsewhere.fault, elsewhere.name) == (Fault.USER, "role_flip")


def test_a_user_that_is_left_alone_with_what_it_found() -> None:
    facts = replace(FACTS, gold=(), user_gold=("check_sim", "reseat_sim"))
    checked = {"role": "user", "content": "", "tool_calls": [{"name": "check_sim", "arguments": {}, "requestor": "user"}]}
    found = blame(episode((*agent(GREETING),), trajectory=(checked, {"role": "user", "content": "It is not seated."})), facts)
    assert found is not None
    assert (found.name, found.detail) == ("missing_follow_up", "reseat_sim")
    again = blame(episode((*agent(GREETING),), trajectory=(checked,)), replace(facts, user_gold=("check_sim", "check_sim")))
    assert again is not None
    assert (again.name, again.detail) == ("missing_follow_up", "check_sim")  # what is to be done twice, and was done once


def test_world_and_task_come_before_user_and_agent() -> None:
    faulty = FAULTS["role_flip"][0]
    broken = replace(episode(faulty), grade=None, failure=Failure(fault=Fault.INFRA, kind="EnvironmentFailure", message="m"))
    found = blame(broken, FACTS)
    assert found is not None and (found.fault, found.name) == (Fault.INFRA, "EnvironmentFailure")
    defective = blame(episode(faulty), replace(FACTS, quarantined="wrong reference actions"))
    assert defective is not None and (defective.fault, defective.name) == (Fault.TASK, "quarantined")


def test_a_lucky_success_is_seen_and_a_clean_one_blames_nobody() -> None:
    assert blame(episode(talk(made=(CANCEL,)), solved=True), FACTS) is None
    lucky = blame(episode(FAULTS["told_before_asked"][0], solved=True), FACTS)
    assert lucky is not None and lucky.fault is Fault.USER


def test_the_command_shows_raw_and_adjusted_side_by_side(tmp_path: Path) -> None:
    task = TaskRef(domain="mock", task_id="create_task_1", split="base")
    said = {"good": "Please create a task called Important Meeting for user_1.", "bad": "How may I assist you today?"}
    marks = [("good", True), ("good", False), ("bad", True), ("bad", False)]
    records = [
        EpisodeRecord(
            schema=2, run="r", attempt=Attempt(task=task, index=i, seed=1), tries=1, score=None,
            episode=replace(episode((*agent(GREETING), *user(said[kind])), solved=solved), task=task),
        )
        for i, (kind, solved) in enumerate(marks)
    ]  # fmt: skip
    (tmp_path / "episodes.jsonl").write_bytes(b"".join(map(encode, records)))
    result = CliRunner().invoke(app, ["blame", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    row = values["scores"]["overall"]
    assert (row["raw"]["value"], row["adjusted"]["value"], row["left_out"], row["left_out_solved"]) == (0.5, 0.5, 2, 1)
    assert row["faults"] == {"agent": 1, "user": 1, "task": 0, "infra": 0}
    assert row["names"]["user"] == {"role_flip": 1}
    assert {one["episode"]: one["fault"] for one in values["episodes"]} == {
        "mock/create_task_1#1": "agent", "mock/create_task_1#2": "user", "mock/create_task_1#3": "user",
    }  # fmt: skip
    shown = CliRunner().invoke(app, ["blame", str(tmp_path)]).stdout
    assert "adjusted [95%]" in shown
    assert "solved, and left out with the user's mistake or on a defective task: 1 (1 role_flip)\n" in shown
    assert "  role_flip: the user spoke as the agent\n" in shown and "scripted user" not in shown
    one = CliRunner().invoke(app, ["show", str(tmp_path), "create_task_1", "--attempt", "2"]).stdout
    assert "blame: user, role_flip" in one and "  role_flip: the user spoke as the agent\n" in one


def test_the_names_of_the_documents_table_are_the_ones_that_have_a_meaning() -> None:
    lines = (Path(__file__).parents[3] / "docs" / "decide.md").read_text("utf-8").splitlines()
    rows = {name: line for name in ("user", "agent") for line in lines if line.startswith(f"| `{name}` |")}
    tabled = {name for row in rows.values() for name in re.findall(r"`([a-z_]+)`", row)} - {"user", "agent"}
    assert tabled | {"quarantined"} == MEANINGS.keys()
    assert FAULTS.keys() <= MEANINGS.keys()


def test_what_a_scripted_user_does_by_nature_is_said_and_domains_stand_as_in_the_report(tmp_path: Path) -> None:
    words = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted", "--domains", "airline,retail"]
    words += ["--limit", "3"]
    made = CliRunner().invoke(app, ["eval", *words, "--inline", "--output", str(tmp_path / "run")])
    assert made.exit_code == 0, made.stderr
    shown = CliRunner().invoke(app, ["blame", str(tmp_path / "run")])
    assert "told_before_asked is expected then, with the gold policy too" in shown.stdout
    orders = [re.findall(r"^ (retail|airline) ", out, re.MULTILINE) for out in (made.stdout, shown.stdout)]
    assert orders == [["airline", "retail"], ["airline", "retail"]]
    kept = json.loads((tmp_path / "run" / "blame.json").read_text("utf-8"))
    assert list(kept["scores"]) == ["airline", "retail", "overall"]


def test_a_run_whose_settings_cannot_be_read_has_its_faults_all_the_same(tmp_path: Path) -> None:
    words = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted", "--domains", "retail", "--limit", "1"]
    made = CliRunner().invoke(app, ["eval", *words, "--inline", "--output", str(tmp_path / "run")])
    assert made.exit_code == 0, made.stderr
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "of_a_later_version": 1}), "utf-8")
    blamed = CliRunner().invoke(app, ["blame", str(tmp_path / "run")])
    assert blamed.exit_code == 0, blamed.stderr
    assert "told_before_asked: " in blamed.stdout and "is expected then" not in blamed.stdout
    task = json.loads((tmp_path / "run" / "blame.json").read_text("utf-8"))["episodes"][0]["episode"].partition("#")[0]
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run"), task, "--attempt", "0"])
    assert shown.exit_code == 0 and "  told_before_asked: " in shown.stdout, shown.output


def test_a_reviewer_is_set_against_the_gates(tmp_path: Path) -> None:
    """It blames the first and the third user of four; the gates blame the third and the fourth."""
    task = TaskRef(domain="mock", task_id="create_task_1", split="base")
    said = ["I want it blue instead.", "Please create a task.", "How may I assist you today?", "I will look up your account."]
    records = [
        EpisodeRecord(
            schema=2, run="r", attempt=Attempt(task=task, index=i, seed=1), tries=1, score=None,
            episode=replace(episode((*agent(GREETING), *user(text))), task=task),
        )
        for i, text in enumerate(said)
    ]  # fmt: skip
    (tmp_path / "episodes.jsonl").write_bytes(b"".join(map(encode, records)))
    plain = json.loads(CliRunner().invoke(app, ["blame", str(tmp_path), "--json"]).stdout)

    def answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        shown = messages[0]["content"]
        if "blue" in shown:
            return "It was told otherwise.\nVERDICT: guideline_violation critical_hindered"
        return f"VERDICT: {'role_flip minor' if 'assist you today' in shown else 'none none'}"

    with OpenAIStub(answer=answer) as server:
        words = ["--judge-model", "openai/r", "--judge-api-base", server.api_base, "--judgments", str(tmp_path / "kept")]
        found = [json.loads(CliRunner().invoke(app, ["blame", str(tmp_path), *words, "--json"]).stdout) for _ in range(2)]
        assert len(server.bodies) == 4
        assert not any("reference_actions" in body["messages"][0]["content"] for body in server.bodies)
        shown = CliRunner().invoke(app, ["blame", str(tmp_path), *words]).stdout
        declared = CliRunner().invoke(app, ["blame", str(tmp_path), *words, "--show-reference"]).stdout
        assert len(server.bodies) == 8 and "reference_actions" in server.bodies[-1]["messages"][0]["content"]
    review = found[0]["review"]
    cells = [review[name] for name in ("both", "gates_only", "reviewer_only", "neither")]
    assert (cells, review["agreement"], review["kappa"]) == ([1, 1, 1, 1], 0.5, 0.0)
    assert (found[0]["review"]["judge"]["asked"], found[1]["review"]["judge"]["cached"]) == (4, 4)
    assert found[0]["scores"] == plain["scores"]
    assert "agree on 0.500 of 4 users, kappa 0.00; it saw no reference actions" in shown
    assert "it saw the reference actions" in declared


def test_a_run_without_episodes_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["blame", str(tmp_path)])
    assert result.exit_code == 2
    assert "has no episodes" in result.stderr


@pytest.mark.parametrize("name", ["mock", "airline", "retail", "telecom"])
def test_the_facts_of_every_task_can_be_read(name: str) -> None:
    facts = [facts_of(TaskRef(domain=name, task_id=task, split="base")) for task in domain(name).tasks("base")]
    assert all(one.instructions and one.reason for one in facts)
    assert any(one.gold or one.user_gold for one in facts)
    assert any(one.user_tools for one in facts) == (name == "telecom")

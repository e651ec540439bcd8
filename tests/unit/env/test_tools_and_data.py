"""What this package adds around tau2's tools and data.

- one power of the calculator cannot stop the process; every other expression gets tau2's own answer
- broken or missing data of tau2 are said as such; an id that exists is never called unknown
- the scripted user waits as long as it hears something new
- the shipped floors are those that a replay finds, and every reference path of the test split earns its reward
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tau2rl.config import TasksConfig
from tau2rl.env.audit import POLICIES, measure, validate
from tau2rl.env.domain import domain, readable
from tau2rl.env.scripted_user import ScriptedUser
from tau2rl.env.tasks import select
from tau2rl.errors import UserError

from tau2.data_model.message import ToolCall

from tau2.registry import registry  # isort: skip

FLOORS = Path(__file__).parents[3] / "tau2rl" / "env" / "floors.json"


def test_a_huge_power_is_an_error_message_and_not_the_end_of_the_process() -> None:
    program = (
        "from tau2rl.env.domain import domain\n"
        "from tau2.data_model.message import ToolCall\n"
        "call = ToolCall(name='calculate', arguments={'expression': '9**9**9'})\n"
        "print(domain('retail').environment().get_response(call).content)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "Error: int too large to convert to float"


EXPRESSIONS = ["2 ** 10", "2**0.5", "(1 + 2) * 3 / 7", "-2**2", "7 // 2 ** 1", "1/0**1", "(-8)**(1/3)", "2**", "2 ** x", "0**0"]
MISSING = FileNotFoundError(2, "No such file", "tasks.json")
BROKEN = json.JSONDecodeError("Expecting value", "{", 1)


@pytest.mark.parametrize("expression", [*EXPRESSIONS, "9**99//9**98", "1e5"])
def test_the_calculator_answers_as_tau2s_own(expression: str) -> None:
    call = ToolCall(name="calculate", arguments={"expression": expression})
    ours = domain("airline").environment().get_response(call)
    official = registry.get_env_constructor("airline")().get_response(call)
    assert (ours.content, ours.error) == (official.content, official.error)


@pytest.mark.parametrize("error", [MISSING, BROKEN])
def test_broken_data_are_said_as_such(error: Exception) -> None:
    with pytest.raises(UserError, match="tau2's data of `retail`"), readable("retail"):
        raise error


def test_an_id_that_the_limit_leaves_out_exists() -> None:
    ids = ("create_task_1", "update_task_1")
    assert len(select(TasksConfig(domains=("mock",), split="base", ids=ids, limit=1))) == 1
    with pytest.raises(UserError, match="no such tasks in split `base`: nonsense"):
        select(TasksConfig(domains=("mock",), split="base", ids=(*ids, "nonsense")))


def test_a_user_that_hears_something_new_stays() -> None:
    from types import SimpleNamespace

    from tau2.data_model.message import AssistantMessage, UserMessage

    criteria = SimpleNamespace(actions=[], communicate_info=["11", "22", "33", "44"])
    task = SimpleNamespace(id="t", evaluation_criteria=criteria, user_scenario=None)
    simulation = SimpleNamespace(task=task, trajectory=[], doing="")
    simulation.trajectory.append(UserMessage(role="user", content="Hello."))
    user = ScriptedUser(simulation, max_stalled_turns=2)  # pyright: ignore[reportArgumentType]
    answers: list[str] = []
    for number in ("11", "22", "33", "44"):
        message = AssistantMessage(role="assistant", content=f"It is {number}.")
        simulation.trajectory.append(message)
        answers.append(user.generate_next_message(message, None)[0].content or "")
    assert answers[:3] == ["Yes, please go ahead."] * 3
    assert "###STOP###" in answers[3]
    assert "Thank you" in answers[3]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "counts"), [("airline", (6, 6)), ("retail", (2, 2)), ("telecom", (0, 12)), ("mock", (1, 2))])
def test_the_shipped_floors_are_what_a_replay_finds(name: str, counts: tuple[int, int]) -> None:
    split = "base" if name == "mock" else "test"
    refs = select(TasksConfig.model_validate({"domains": [name], "split": split}))
    shipped, found = json.loads(FLOORS.read_text())[name], measure(name, refs)
    assert found["hashes"] == shipped["hashes"]
    for policy, count in zip(POLICIES, counts, strict=True):
        assert len(found[policy]) == count
        assert set(found[policy]) == {r.task_id for r in refs} & set(shipped[policy])


@pytest.mark.oracle
def test_every_reference_path_of_the_test_split_earns_its_reward() -> None:
    results = list(validate(TasksConfig(split="test")))
    assert len(results) == 100
    assert [v.ref.key for v in results if v.why] == []

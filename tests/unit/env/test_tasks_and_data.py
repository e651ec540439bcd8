"""What this package adds around tau2's tools and data.

- broken or missing data of tau2 are said as such; an id that exists is never called unknown
- the scripted user waits as long as it hears something new
- the shipped floors are those that a replay finds, and every reference path of the test split earns its reward
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tau2rl.config import TasksConfig
from tau2rl.env.audit import POLICIES, measure_floors, validate_tasks
from tau2rl.env.domain import readable_data
from tau2rl.env.scripted_user import ScriptedUser
from tau2rl.env.tasks import select
from tau2rl.errors import UserError

FLOORS = Path(__file__).parents[3] / "tau2rl" / "env" / "floors.json"


MISSING = FileNotFoundError(2, "No such file", "tasks.json")
BROKEN = json.JSONDecodeError("Expecting value", "{", 1)


@pytest.mark.parametrize("error", [MISSING, BROKEN])
def test_broken_data_are_said_as_such(error: Exception) -> None:
    with pytest.raises(UserError, match="tau2's data of `retail`"), readable_data("retail"):
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
    simulation = SimpleNamespace(task=task, trajectory=[], doing="", loaded=SimpleNamespace(user_reads={}))
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
    shipped, found = json.loads(FLOORS.read_text())[name], measure_floors(name, refs)
    assert found["hashes"] == shipped["hashes"]
    for policy, count in zip(POLICIES, counts, strict=True):
        assert len(found[policy]) == count
        assert set(found[policy]) == {r.task_id for r in refs} & set(shipped[policy])


@pytest.mark.oracle
def test_every_reference_path_of_the_test_split_earns_its_reward() -> None:
    results = list(validate_tasks(TasksConfig(split="test")))
    assert len(results) == 100
    assert [v.ref.key for v in results if v.why] == []

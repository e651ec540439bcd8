"""Shared databases are the databases of tau2, and what is not done again would have come out the same.

- the hash of a changed text is the hash of the text written anew, wherever the changes are and whatever the ids
- a shared database hashes as tau2 hashes it after looking, changing, adding and deleting; others see nothing of it
- the tools stand in tau2's order and their classes keep their names
- an episode is graded in its own environment, and a reference path is carried out once for each content
- where a repetition could end otherwise (NaN, a refused call on the phone, a random bill), tau2 repeats the conversation
- phones are their own: a broken VPN stays in its episode, however many run at once
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tau2rl.config import UserConfig
from tau2rl.env.database import IncrementalHash
from tau2rl.env.domain import domain
from tau2rl.env.grading import is_repeatable, reference_grade
from tau2rl.env.tasks import gold_script
from tau2rl.env.tau2_env import Tau2Env
from tau2rl.env.user_simulator import make_user
from tau2rl.types import Say, TaskRef

from tau2.data_model.message import AssistantMessage, ToolCall, ToolMessage

from tau2.registry import registry  # isort: skip

ids = st.text(st.sampled_from('ab!"é~\U0001f600'), max_size=3)
entities = st.dictionaries(ids, st.integers(0, 10**6).map(str), max_size=6)
tables = st.dictionaries(st.sampled_from(["users", "orders", "x"]), entities, min_size=1, max_size=3)


@given(tables=tables, data=st.data(), block=st.sampled_from([1, 2, 100]))
def test_a_changed_text_is_hashed_as_if_it_were_written_anew(tables: dict[str, dict[str, str]], data: Any, block: int) -> None:
    changed = st.dictionaries(ids, st.none() | st.integers(-5, 10**9).map(str), max_size=5)
    changes = {name: data.draw(changed) for name in tables}
    changes = {name: {k: v for k, v in c.items() if v is not None or k in tables[name]} for name, c in changes.items()}
    after = {name: {k: json.loads(v) for k, v in {**tables[name], **changes[name]}.items() if v is not None} for name in tables}
    expected = hashlib.sha256(json.dumps(after, sort_keys=True).encode()).hexdigest()
    assert IncrementalHash(tables, block=block).hash(changes) == expected


def tau2_hash(toolkit: Any) -> str:
    """As `tau2.utils.get_dict_hash` does it."""
    return hashlib.sha256(json.dumps(toolkit.db.model_dump(), sort_keys=True, default=str).encode()).hexdigest()


@pytest.mark.parametrize("name", ["airline", "retail"])
def test_a_shared_database_hashes_as_tau2_does(name: str) -> None:
    toolkit: Any = domain(name).environment().tools
    untouched: Any = domain(name).environment().tools
    before = toolkit.get_db_hash()
    users = toolkit.db.users
    first, second, *_, last = users
    users[first].model_copy()  # looked at
    assert toolkit.get_db_hash() == before == tau2_hash(toolkit)
    users[second].name.last_name = "Ünlü"
    assert toolkit.get_db_hash() == tau2_hash(toolkit) != before
    users["zzz_new"], users["!new"] = users[first].model_copy(), users[second].model_copy()
    assert toolkit.get_db_hash() == tau2_hash(toolkit)
    del users[last], users["zzz_new"]
    assert toolkit.get_db_hash() == tau2_hash(toolkit)
    assert list(users) == [*list(untouched.db.users)[:-1], "!new"] == list(users.keys())
    assert len(users) == len(untouched.db.users) == len(list(users.values()))
    assert untouched.get_db_hash() == before


@pytest.mark.parametrize("name", ["airline", "retail", "telecom", "mock"])
def test_an_environment_has_tau2s_tools_in_tau2s_order(name: str) -> None:
    ours, official = domain(name).environment(), registry.get_env_constructor(name)()
    assert [t.openai_schema for t in ours.get_tools()] == [t.openai_schema for t in official.get_tools()]
    assert type(ours.tools).__name__ == type(official.tools).__name__
    assert ours.get_policy() == official.get_policy()
    if official.user_tools:
        assert [t.name for t in ours.get_user_tools()] == [t.name for t in official.get_user_tools()]


async def played(ref: TaskRef, *turns: str) -> Tau2Env:
    """The gold path, or these sentences, graded."""
    env = Tau2Env(ref, make_user=make_user(UserConfig(kind="scripted"), seed=0))
    await env.open()
    for actions in [(Say(text=text),) for text in turns] or gold_script(ref):
        if (await env.step(actions)).done:
            break
    await env.close(grade=True)
    return env


def test_a_reference_path_is_known_by_its_content() -> None:
    loaded = domain("mock")
    refs = [TaskRef(domain="mock", task_id=id, split="base") for id in ("create_task_1", "update_task_1")]
    names = [reference_grade(loaded, loaded.task(ref)) for ref in refs]
    assert names[0] != names[1]
    ends = [asyncio.run(played(ref)).db_hashes for ref in refs]
    assert [loaded.gold_end(name) for name in names] == ends  # both were solved
    task = loaded.task(refs[0])
    assert reference_grade(loaded, task.model_copy(update={"id": "another", "description": None})) == names[0]


@pytest.mark.parametrize(
    ("name", "call", "content", "error", "repeatable"),
    [
        ("airline", "get_user_details", "{}", False, True),
        ("airline", "get_user_details", "Error: no such user", True, True),
        ("airline", "calculate", '{"x": NaN}', False, False),
        ("telecom", "get_customer_by_id", "{}", False, True),
        ("telecom", "get_customer_by_id", "Error: no such customer", True, False),
        ("telecom", "refuel_data", "{}", False, False),
    ],
)
def test_what_could_end_otherwise_is_repeated(name: str, call: str, content: str, error: bool, repeatable: bool) -> None:
    messages = [
        AssistantMessage(role="assistant", tool_calls=[ToolCall(id="1", name=call, arguments={})]),
        ToolMessage(id="1", role="tool", content=content, error=error),
    ]
    assert is_repeatable(messages, domain(name).environment()) is repeatable


def test_a_broken_vpn_stays_in_its_episode_at_any_concurrency() -> None:
    loaded = domain("telecom")

    def breaks(task: Any) -> bool:
        return any(action.func_name == "break_vpn" for action in task.initial_state.initialization_actions or ())

    tasks = loaded.tasks("test")
    broken = [id for id, task in tasks.items() if breaks(task)][:4]
    whole = [id for id, task in tasks.items() if not breaks(task)][:4]

    async def main() -> list[str]:
        refs = [TaskRef(domain="telecom", task_id=id, split="test") for pair in zip(broken, whole, strict=True) for id in pair]
        envs = [Tau2Env(ref, make_user=make_user(UserConfig(kind="scripted"), seed=0)) for ref in refs * 4]
        await asyncio.gather(*(env.open() for env in envs))  # every broken VPN is broken before anyone else connects
        phones: list[Any] = [env._simulation.environment.user_tools for env in envs]
        for phone in phones:
            phone.disconnect_vpn()
            phone.connect_vpn()
        await asyncio.gather(*(env.close(grade=False) for env in envs))
        return [phone.db.device.vpn_details.server_performance.value for phone in phones]

    found = asyncio.run(main())
    assert len(found) == 32
    assert found[1::2] == ["excellent"] * 16
    assert found[::2] == ["poor"] * 16  # in its own episode it stays broken, as in tau2

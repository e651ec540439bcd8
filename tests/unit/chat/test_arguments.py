"""Pinned here: which arguments a tool's schema takes, keyword by keyword; every gold call of tau2 passes."""

from __future__ import annotations

from typing import Any

import pytest

from tau2rl.chat.parsing import check_call, complaint
from tau2rl.types import CallTool
from tests.unit.chat.talk import FIND

SCHEMA: dict[str, Any] = FIND["function"]["parameters"]
GOOD: list[dict[str, Any]] = [
    {},
    {"limit": 3},
    {"limit": 3.0},
    {"price": 3},
    {"price": 2.5},
    {"urgent": True},
    {"status": "pending"},
    {"note": None},
    {"items": []},
    {"items": [{"id": "a"}, None, {"id": "b", "colour": "red"}]},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"limit": "3"}, "`limit` must be a whole number"),
    ({"limit": 3.5}, "`limit` must be a whole number"),
    ({"limit": True}, "`limit` must be a whole number"),
    ({"limit": None}, "`limit` must be a whole number"),
    ({"price": "2"}, "`price` must be a number"),
    ({"urgent": 1}, "`urgent` must be true or false"),
    ({"status": "lost"}, "`status` must be one of 'pending', 'delivered'"),
    ({"note": 5}, "`note` must be a string"),
    ({"items": {"id": "a"}}, "`items` must be a list"),
    ({"items": [{"id": 5}]}, "`items[0].id` must be a string"),
    ({"colour": "red"}, "there is no argument `colour`"),
]


@pytest.mark.parametrize("more", GOOD, ids=str)
def test_taken(more: dict[str, Any]) -> None:
    assert complaint({"order_id": "#W1", **more}, SCHEMA) == ""


@pytest.mark.parametrize(("more", "problem"), BAD, ids=str)
def test_refused(more: dict[str, Any], problem: str) -> None:
    assert complaint({"order_id": "#W1", **more}, SCHEMA) == problem


def test_what_is_missing_is_named() -> None:
    assert complaint({}, SCHEMA) == "`order_id` is missing"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"const": 1}, 1, True),
        ({"type": ["string", "null"]}, None, 5),
        ({"type": "string", "nullable": True}, None, 5),
        ({"allOf": [{"type": "string"}, {"enum": ["a"]}]}, "a", "b"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 5, []),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": "b"}),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, {"a": 1}, {"b": 1}),
    ],
    ids=str,
)
def test_further_keywords(schema: dict[str, Any], good: Any, bad: Any) -> None:
    assert complaint({"x": good}, {"properties": {"x": schema}}) == ""
    assert complaint({"x": bad}, {"properties": {"x": schema}}) != ""


@pytest.mark.parametrize(("domain", "least"), [("airline", 100), ("retail", 400), ("telecom", 100), ("mock", 5)])
def test_every_gold_call_of_tau2_passes(domain: str, least: int) -> None:
    pytest.importorskip("tau2")
    from tau2.registry import registry

    tools = [tool.openai_schema for tool in registry.get_env_constructor(domain)().get_tools()]
    gold = [
        CallTool(name=action.name, arguments=action.arguments)
        for task in registry.get_tasks_loader(domain)(None)
        for action in (task.evaluation_criteria.actions if task.evaluation_criteria else None) or []
        if action.requestor == "assistant"
    ]
    assert len(gold) >= least
    assert [check_call(call, tools) for call in gold] == gold

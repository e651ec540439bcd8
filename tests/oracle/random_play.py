"""Seeded random conversations: tool calls of both sides, right and wrong, with arguments drawn from the databases."""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tau2rl.env.domain import domain
from tau2rl.env.tasks import gold_actions
from tau2rl.types import Actions, CallTool, Say, TaskRef

from tau2.data_model.message import ToolCall, UserMessage  # isort: skip
from tau2.user.user_simulator import DummyUser

NONSENSE = ("", "nonsense", -1, None, 10**9, 2.5, [], {}, "#W0000000", True)
EXPRESSIONS = ("2 + 2", "(1 + 2) * 3 / 7", "1 / 0", "2 ** 10", "9 // 2", "import os")
UNREPEATABLE = ("refuel_data",)  # its bill has a random id: two runs of the untouched package differ


def random_script(ref: TaskRef, seed: int, *, turns: int = 15) -> tuple[Actions, ...]:
    """The agent's turns: one call or one sentence each."""
    rng = random.Random(f"agent/{ref.key}/{seed}")
    draw = _Draw(ref.domain, rng)
    calls = [draw.call(domain(ref.domain).tools, "assistant") for _ in range(turns)]
    return tuple((Say(text=f"Let me see, {i}."),) if rng.random() < 0.25 else (call,) for i, call in enumerate(calls))


class RandomUser(DummyUser):
    """A user who talks, uses the phone at random, and sometimes hangs up; the same one for the same task and seed."""

    def __init__(self, ref: TaskRef, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(f"user/{ref.key}/{seed}")
        self._draw = _Draw(ref.domain, self._rng)
        self._tools = [tool.openai_schema for tool in domain(ref.domain).user_tools or ()]
        self._calls = self._said = 0

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """One or two calls, or a sentence."""
        if self._tools and self._rng.random() < 0.4:
            calls = [self._call() for _ in range(self._rng.choice((1, 1, 2)))]
            return UserMessage(role="user", content=None, tool_calls=calls, cost=0.0), state
        self._said += 1
        text = "That is all. ###STOP###" if self._said > 1 and self._rng.random() < 0.03 else "Please go on."
        return UserMessage(role="user", content=text, cost=0.0), state

    def _call(self) -> ToolCall:
        self._calls += 1
        call = self._draw.call(self._tools, "user")
        return ToolCall(id=f"user_{self._calls}", name=call.name, arguments=call.arguments, requestor="user")


class _Draw:
    def __init__(self, name: str, rng: random.Random) -> None:
        self._values, self._rng = _values(name), rng
        self._gold = {side: _gold_calls(name, side) for side in ("assistant", "user")}

    def call(self, tools: Any, side: str) -> CallTool:
        """A reference call of some task, one with an argument changed, or one made up from a schema; a few of them broken."""
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        kind = self._rng.random()
        if kind < 0.6 and self._gold[side]:
            name, arguments = self._rng.choice(self._gold[side])
            arguments = dict(arguments)
            if kind < 0.2 and arguments:
                key = self._rng.choice(sorted(arguments))
                arguments[key] = self._value(schemas[name]["properties"].get(key, {}), key, schemas[name])
        else:
            name = self._rng.choice([n for n in schemas if n not in UNREPEATABLE])
            wanted = schemas[name].get("properties", {})
            arguments = {key: self._value(schema, key, schemas[name]) for key, schema in wanted.items()}
        match self._rng.randrange(25):
            case 0:
                name = "no_such_tool"
            case 1:
                arguments["extra"] = 1
            case 2 if arguments:
                arguments.pop(sorted(arguments)[0])
        return CallTool(name=name, arguments=arguments)

    def _value(self, schema: Mapping[str, Any], key: str, root: Mapping[str, Any]) -> Any:
        if self._rng.random() < 0.05:
            return self._rng.choice(NONSENSE)
        if "anyOf" in schema:
            return self._value(self._rng.choice(schema["anyOf"]), key, root)
        if "$ref" in schema:
            return self._value(root["$defs"][schema["$ref"].rpartition("/")[2]], key, root)
        if "enum" in schema:
            return self._rng.choice(schema["enum"])
        match schema.get("type"):
            case "array":
                inner = key.removesuffix("s")
                return [self._value(schema.get("items", {}), inner, root) for _ in range(self._rng.randrange(1, 3))]
            case "object" if "properties" in schema:
                return {name: self._value(part, name, root) for name, part in schema["properties"].items()}
            case "boolean":
                return self._rng.random() < 0.5
            case _:
                known = self._values.get(key.removeprefix("new_")) or (
                    "text" if schema.get("type") == "string" else (0, 1, 2, 50),
                )
                found = self._rng.choice(known)
                return self._rng.choice(found) if isinstance(found, tuple) else found


@functools.cache
def _gold_calls(name: str, side: str) -> list[tuple[str, dict[str, Any]]]:
    actions = (action for task in domain(name).tasks("base").values() for action in gold_actions(task))
    return [(a.name, a.arguments) for a in actions if a.requestor == side and a.name not in UNREPEATABLE]


@functools.cache
def _values(name: str) -> dict[str, list[Any]]:
    """Field name -> what stands in such fields anywhere in the databases; tables give the ids of what they hold."""
    found: defaultdict[str, set[Any]] = defaultdict(set)
    environment = domain(name).environment()

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for inner, part in value.items():
                found[f"{key.removesuffix('s')}_id"].add(inner)
                walk(part, inner)
        elif isinstance(value, list):
            for part in value:
                walk(part, key.removesuffix("s"))
        elif isinstance(value, str | int | float):
            found[key].add(value)
            if key.endswith("_id"):
                found["id"].add(value)

    for toolkit in (environment.tools, environment.user_tools):
        if toolkit is not None:
            assert toolkit.db is not None
            walk(toolkit.db.model_dump(mode="json"), "")
    found["expression"] = set(EXPRESSIONS)
    return {key: sorted(values, key=repr) for key, values in found.items()}

"""Writing a turn so that it reads back as the same actions: the half of the contract that every protocol shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tau2rl.errors import MalformedTurn
from tau2rl.types import Actions

Dump = Callable[[Any], str]


def readable(value: Any) -> str:
    """JSON as chat templates write it.

    >>> readable({"city": "Zürich"})
    '{"city": "Zürich"}'
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def escaped(value: Any) -> str:
    r"""The same JSON in plain ASCII without `<`: no tag, no control token and no letter that a tokenizer normalises is left.

    >>> escaped("</tool_call>")
    '"\\u003c/tool_call>"'
    """
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def write_back(actions: Actions, write: Callable[[Dump], list[int]], read: Callable[[list[int]], Actions]) -> list[int]:
    """The first way of writing the actions that reads back as exactly them. Raises ValueError when there is none."""
    for dump in (readable, escaped):
        ids = write(dump)
        try:
            if read(ids) == actions:
                return ids
        except MalformedTurn:
            continue
    raise ValueError(f"this protocol has no turn that performs {actions!r:.300}")

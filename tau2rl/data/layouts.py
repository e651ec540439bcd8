"""Which published layout a row has, and what it says of itself: domain, task, user, source, licence, and what was done in it.

Recognized by the keys that a row has, never by the name of its file. Of WRIT-2K and AReaL-tau2-data the data cards were read, of
tau2-sft-seed-v3 what trains on it; `docs/data.md` says what of each was seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from tau2rl.data.encoding import unmasked_turns
from tau2rl.data.rows import BadRow, Row, read_row
from tau2rl.types import CallTool


class RowLayout(StrEnum):
    """Whose layout a row has."""

    OURS = "tau2rl"
    OPENAI = "messages"
    WRIT = "WRIT-2K"
    AREAL = "AReaL-tau2-data"
    SEED_V3 = "tau2-sft-seed-v3"
    AREAL_TASK = "AReaL-tau2-data task"
    TASK = "tau2 task"
    PROMPT = "prompt row"
    UNKNOWN = "unknown"

    @property
    def is_conversation(self) -> bool:
        """Whether its rows can be trained on by `sft`."""
        return self in (RowLayout.OURS, RowLayout.OPENAI, RowLayout.WRIT, RowLayout.AREAL, RowLayout.SEED_V3)


LICENCES = {RowLayout.WRIT: "mit", RowLayout.AREAL: "apache-2.0", RowLayout.AREAL_TASK: "apache-2.0"}  # as the data cards have it
NOT_SAID = "not said"
DOMAINS = ("airline", "retail", "telecom")
POLICY = re.compile(rf"#\s*({'|'.join(DOMAINS)})\s+agent\s+policy", re.IGNORECASE)  # the heading of tau2's domain policies
DIALOG = re.compile(rf"^({'|'.join(DOMAINS)})(?:\b|_)")  # how ids of AReaL begin
USER_ID = re.compile(r"\b[a-z]+_[a-z]+_\d{3,5}\b")
TEXT_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a row of a conversation says: `Facts(layout=Layout.WRIT, domain="retail", licence="mit", turns=12, ...)`."""

    layout: RowLayout
    id: str
    domain: str  # "" where nothing says it
    task: str
    split: str
    user: str
    source: str
    licence: str
    behaviour: str
    cell: str  # "3 writes, 6-9 reads" of a synthesized task; WRIT-2K: its type
    reward: float | None
    turns: int  # the assistant's, that are learned
    calls: tuple[CallTool, ...]  # of all the assistant's turns
    said: str  # by the user
    told: str  # by the assistant
    fingerprint: bytes  # 16 bytes: two rows with the same one teach the same


def layout_of(data: Mapping[str, Any]) -> RowLayout:
    """The layout of a row.

    >>> layout_of({"messages": [], "tools": [], "trajectory_type": "normal", "has_user_script": False}).value
    'WRIT-2K'
    >>> layout_of({"id": "airline_1", "user_scenario": {}, "db_path": "tau2_rl_database/x.json"}).value
    'AReaL-tau2-data task'
    """
    metadata = _mapping(data.get("metadata"))
    if "user_scenario" in data:
        return RowLayout.AREAL_TASK if "db_path" in data else RowLayout.TASK
    if isinstance(data.get("messages"), list):
        if _mapping(data.get("answer")):
            return RowLayout.AREAL
        if "trajectory_type" in data:
            return RowLayout.WRIT
        return RowLayout.OURS if "protocol" in {*metadata, *data} else RowLayout.OPENAI
    if isinstance(data.get("prompt"), list):
        return RowLayout.SEED_V3
    named = _mapping(metadata.get("task")) or metadata
    if "task_id" in named and isinstance(data.get("input", data.get("text")), str):
        return RowLayout.PROMPT
    return RowLayout.UNKNOWN


def row_facts(data: Mapping[str, Any], *, name: str, licence: str = "", source: str = "") -> tuple[Row, Facts]:
    """A row that `sft` can read, and what it says. `licence`, `source`: of rows that do not name theirs. Raises BadRow."""
    layout = layout_of(data)
    if not layout.is_conversation:
        raise BadRow(f"it is no conversation but of the layout `{layout.value}`")
    row = read_row(data, name=name)
    metadata = _mapping(data.get("metadata"))
    given = {**data, **metadata}
    calls = row_calls(row)
    reward = given.get("reward", given.get("reward_score"))
    if reward is None and isinstance(given.get("success"), bool):
        reward = float(given["success"])
    return row, Facts(
        layout=RowLayout(given["layout"]) if given.get("layout") in list(RowLayout) else layout,
        id=row.id,
        domain=_domain(given, row),
        task=str(given.get("tau2_task_id") or given.get("task_id") or given.get("source_dialog_id") or ""),
        split=str(given.get("split") or ""),
        user=str(given.get("user_id") or _user(row, calls)),
        source=str(given.get("source") or source or given.get("run") or layout.value),
        licence=licence_of(given, layout) or licence or NOT_SAID,
        behaviour=_in_words(given.get("behaviour")),
        cell=str(given.get("cell") or given.get("trajectory_type") or ""),
        reward=float(reward) if isinstance(reward, (int, float)) else None,
        turns=len(unmasked_turns(row)),
        calls=calls,
        said="\n".join(message.content for message in row.messages if message.role == "user"),
        told="\n".join(message.content for message in row.messages if message.role == "assistant"),
        fingerprint=_fingerprint(row),
    )


def licence_of(given: Mapping[str, Any], layout: RowLayout) -> str:
    """The licence that a row names, or that the card of its data set has; "" where neither says one."""
    named = given.get("licence") or given.get("license")
    return str(named) if isinstance(named, str) and named != NOT_SAID else LICENCES.get(layout, "")


def row_calls(row: Row) -> tuple[CallTool, ...]:
    """The calls of the assistant, those that are written as text among them.

    >>> text = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    >>> row_calls(read_row({"prompt": [{"role": "assistant", "content": text}]}, name="a"))
    (CallTool(name='f', arguments={'a': 1}),)
    """
    found: list[CallTool] = []
    for message in row.messages:
        if message.role != "assistant":
            continue
        found += message.tool_calls
        if not message.tool_calls:
            found += [call for text in TEXT_CALL.findall(message.content) if (call := _text_call(text))]
    return tuple(found)


def _text_call(text: str) -> CallTool | None:
    """A call as text; None for JSON that is none, and for the cookbook's `respond` and `done`, which speak."""
    try:
        call = _mapping(json.loads(text))
    except ValueError:
        return None
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or name in ("respond", "done") or not isinstance(arguments, dict):
        return None
    return CallTool(name=name, arguments=cast("dict[str, Any]", arguments))


def _domain(given: Mapping[str, Any], row: Row) -> str:
    if isinstance(given.get("domain"), str):
        return str(given["domain"])
    for key in ("source_dialog_id", "task_id", "id"):
        if found := DIALOG.match(str(given.get(key) or "").strip("[")):
            return found[1] or found[2]
    system = row.messages[0].content if row.messages[0].role == "system" else ""
    return found[1].lower() if (found := POLICY.search(system)) else ""


def _user(row: Row, calls: tuple[CallTool, ...]) -> str:
    """The user that the agent looked up: named in a call, or by the answer to one."""
    texts = [json.dumps(call.arguments) for call in calls if "user" in call.name or "user_id" in call.arguments]
    texts += [message.content for message in row.messages if message.role == "tool" and len(message.content) < 80]
    return next((found[0] for text in texts if (found := USER_ID.search(text))), "")


def _in_words(behaviour: Any) -> str:
    """A behaviour as one word: its own, or its parts joined.

    >>> _in_words({"pace": "bit_by_bit", "style": "terse"}), _in_words("curt"), _in_words(None)
    ('bit_by_bit/terse', 'curt', '')
    """
    parts = _mapping(behaviour)
    return "/".join(str(value) for value in parts.values()) if parts else str(behaviour or "")


def _fingerprint(row: Row) -> bytes:
    said = [[m.role, m.content, m.reasoning, [[call.name, call.arguments] for call in m.tool_calls]] for m in row.messages]
    text = json.dumps([said, unmasked_turns(row)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}

"""A reward for each turn: the values of its tool calls, by tiers, against the task's reference actions.

Each call falls into one tier, decided in this order: error -> exact match of a reference call not yet used -> duplicate ->
soft match -> read -> write -> other. A turn's reward is the sum (or mean) over its calls. Source: arXiv 2604.02869, section on
turn rewards; the order is that of its independent re-implementation.

A reference list is ONE way to solve a task, not a requirement: a reward for its reads teaches imitation of that way. That is
why `REFERENCE_WRITE`, which pays only for the writes that change the graded state, and at most 1 in all, is the safe table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, cast

from tau2rl.types import CallTool

ToolKind = Literal["read", "write", "other"]


class Tier(StrEnum):
    """What a tool call, or a turn without one, was."""

    GOLD = "gold"  # a reference call, with its arguments
    SOFT = "soft"  # the right tool, some of the arguments
    READ = "read"  # a successful read outside the reference
    WRITE = "write"  # a successful write outside the reference
    OTHER = "other"  # a successful call of a tool that does neither
    MESSAGE = "message"  # no tool call
    ERROR = "error"  # the environment refused the call, or the turn could not be read
    DUPLICATE = "duplicate"  # the same successful call again


@dataclass(frozen=True, slots=True, kw_only=True)
class TierTable:
    """The value of each tier: `TierTable(values={Tier.GOLD: 1.0})`; a tier that is not named has 0."""

    values: Mapping[Tier, float]
    writes_only: bool = False  # only reference writes can match; reference reads are like any other read
    flat_soft: bool = False  # a soft match has its whole value, however many arguments are met
    share_gold: bool = False  # GOLD is divided by the number of reference calls that can match: at most values[GOLD] in all
    per_turn: Literal["sum", "mean"] = "sum"  # how the calls of one turn are put together
    coerce_numbers: bool = False  # "123" equals 123; off, because ids and zip codes are text that looks like numbers

    def value(self, tier: Tier) -> float:
        """The value of a tier."""
        return self.values.get(tier, 0.0)


# The paper's first table ("V5"); under MT-GRPO its soft and read tiers end up with the wrong sign.
DENSE = TierTable(
    values={
        Tier.GOLD: 1.0,
        Tier.SOFT: 1.0,  # times (1 + overlap) / 2, so 0.5 to 1
        Tier.READ: 0.3,
        Tier.WRITE: 0.1,
        Tier.ERROR: -0.1,
        Tier.DUPLICATE: -0.2,
    }
)
# The same after the paper's calibration; it does not restate duplicates.
CALIBRATED = TierTable(
    values={Tier.GOLD: 1.0, Tier.SOFT: 1.0, Tier.READ: 0.0, Tier.WRITE: -0.1, Tier.ERROR: -0.1, Tier.DUPLICATE: -0.2}
)
REFERENCE_WRITE = TierTable(values={Tier.GOLD: 1.0, Tier.ERROR: -0.1}, writes_only=True, share_gold=True)
TABLES: Mapping[str, TierTable] = {"dense": DENSE, "calibrated": CALIBRATED, "reference_write": REFERENCE_WRITE}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """A tool call and whether the environment refused it: `CallResult(call=CallTool(name="f", arguments={}), error=False)`."""

    call: CallTool
    error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCalls:
    """One agent turn: its calls with their results, or that it could not be read. No calls = a message."""

    calls: tuple[CallResult, ...] = ()
    malformed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCall:
    """The tier of one call and its value: `ScoredCall(tier=Tier.SOFT, value=0.75)`."""

    tier: Tier
    value: float


def turn_rewards(
    turns: Sequence[TurnCalls], gold: Sequence[CallTool], kinds: Mapping[str, ToolKind], table: TierTable = REFERENCE_WRITE
) -> list[float]:
    """One reward a turn.

    `gold` is the agent's side of the reference actions; leave out those that fail when they are replayed, for a refused
    call is an error here even where the reference makes it too. `kinds` maps a tool to what it does.

    >>> read, write = CallTool(name="get", arguments={"id": "7"}), CallTool(name="cancel", arguments={"id": "7"})
    >>> turns = [TurnCalls(calls=(CallResult(call=c, error=e),)) for c, e in [(read, False), (write, True), (write, False)]]
    >>> turn_rewards(turns, [read, write], {"get": "read", "cancel": "write"})
    [0.0, -0.1, 1.0]
    """
    rewards: list[float] = []
    for calls in score_calls(turns, gold, kinds, table):
        total = math.fsum(call.value for call in calls)
        rewards.append(total / len(calls) if table.per_turn == "mean" else total)
    return rewards


def score_calls(
    turns: Sequence[TurnCalls], gold: Sequence[CallTool], kinds: Mapping[str, ToolKind], table: TierTable
) -> list[tuple[ScoredCall, ...]]:
    """The tier of every call, by turn; a turn without calls has one entry, its own."""
    score = _Matcher(gold, kinds, table)
    out: list[tuple[ScoredCall, ...]] = []
    for turn in turns:
        if turn.malformed or not turn.calls:
            tier = Tier.ERROR if turn.malformed else Tier.MESSAGE
            out.append((ScoredCall(tier=tier, value=table.value(tier)),))
        else:
            out.append(tuple(score(result) for result in turn.calls))
    return out


class _Matcher:
    """Remembers, along one conversation, which reference calls are used up and which calls were made."""

    def __init__(self, gold: Sequence[CallTool], kinds: Mapping[str, ToolKind], table: TierTable) -> None:
        self.kinds = kinds
        self.table = table
        countable = [call for call in gold if not table.writes_only or kinds.get(call.name) == "write"]
        self.gold = [(call.name, self._canonical(call.arguments)) for call in countable]
        self.open = set(range(len(self.gold)))  # not yet matched exactly
        self.soft_open = set(self.open)  # nor softly: variations of one call are not paid again and again
        self.seen: set[tuple[str, str]] = set()

    def __call__(self, result: CallResult) -> ScoredCall:
        if result.error:  # uses nothing up: trying again is allowed
            return self._of(Tier.ERROR)
        name, arguments = result.call.name, self._canonical(result.call.arguments)
        identity = (name, _text(arguments))
        repeated = identity in self.seen
        self.seen.add(identity)
        for index in sorted(self.open):
            if self.gold[index] == (name, arguments):
                self.open.discard(index)
                share = len(self.gold) if self.table.share_gold else 1
                return ScoredCall(tier=Tier.GOLD, value=self.table.value(Tier.GOLD) / share)
        if repeated:
            return self._of(Tier.DUPLICATE)
        index, overlap = self._nearest(name, arguments)
        if overlap > 0:
            self.soft_open.discard(index)
            part = 1.0 if self.table.flat_soft else (1 + overlap) / 2
            return ScoredCall(tier=Tier.SOFT, value=self.table.value(Tier.SOFT) * part)
        kind = self.kinds.get(name, "other")
        return self._of({"read": Tier.READ, "write": Tier.WRITE, "other": Tier.OTHER}[kind])

    def _of(self, tier: Tier) -> ScoredCall:
        return ScoredCall(tier=tier, value=self.table.value(tier))

    def _nearest(self, name: str, arguments: dict[str, Any]) -> tuple[int, float]:
        """The open reference call of this tool with the largest share of its arguments met, and that share."""
        best, most = -1, 0.0
        for index in sorted(self.open & self.soft_open):
            gold_name, wanted = self.gold[index]
            if gold_name != name or not wanted:
                continue
            overlap = sum(key in arguments and arguments[key] == value for key, value in wanted.items()) / len(wanted)
            if overlap > most:
                best, most = index, overlap
        return best, most

    def _canonical(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return cast(dict[str, Any], canonical(arguments, coerce_numbers=self.table.coerce_numbers))


def canonical(value: Any, *, coerce_numbers: bool = False) -> Any:
    """Arguments in the form in which they are compared: empty values dropped, lists of objects sorted, the rest as it is.

    >>> canonical({"b": "", "a": [{"x": 2}, {"x": 1}]})
    {'a': [{'x': 1}, {'x': 2}]}
    >>> canonical({"zip": "07001"}), canonical({"zip": "07001"}, coerce_numbers=True)
    ({'zip': '07001'}, {'zip': 7001})
    """
    if isinstance(value, Mapping):
        pairs = ((k, canonical(v, coerce_numbers=coerce_numbers)) for k, v in cast(Mapping[str, Any], value).items())
        return {k: v for k, v in pairs if v not in ("", None, [], {})}
    if isinstance(value, (list, tuple)):
        items = [canonical(v, coerce_numbers=coerce_numbers) for v in cast(Sequence[Any], value)]
        return sorted(items, key=_text) if items and all(isinstance(v, dict) for v in items) else items
    if isinstance(value, bool):
        return "true" if value else "false"  # Python's True equals 1, a tool's does not
    if coerce_numbers and isinstance(value, str):
        return _number(value)
    return value


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if number.is_integer() else number


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)

"""What each turn of an episode was worth: its tool calls against the reference actions, for the estimators of turns."""

from __future__ import annotations

from collections.abc import Iterator

from tau2rl.bench.domain import domain
from tau2rl.bench.gold import gold_actions
from tau2rl.rewards.tiers import CallResult, TierTable, ToolKind, TurnCalls, turn_rewards
from tau2rl.types import CallTool, Episode, Message

KINDS: dict[str, ToolKind] = {"read": "read", "write": "write"}


def episode_turn_rewards(episode: Episode, table: TierTable) -> list[float]:
    """One reward a turn, [num_turns]."""
    loaded = domain(episode.task.domain)
    gold = [
        CallTool(name=action.name, arguments=dict(action.arguments))
        for action in gold_actions(loaded.task(episode.task))
        if action.requestor == "assistant"
    ]
    kinds: dict[str, ToolKind] = {name: KINDS.get(kind, "other") for name, kind in loaded.tool_types.items()}
    return turn_rewards(turn_calls(episode), gold, kinds, table)


def turn_calls(episode: Episode) -> list[TurnCalls]:
    """The calls of each turn with what became of them; results stand in the messages in the order of the calls."""
    results = _results(episode.messages)
    return [
        TurnCalls(
            calls=tuple(
                CallResult(call=action, error=next(results, False)) for action in turn.actions if isinstance(action, CallTool)
            ),
            malformed=turn.malformed is not None,
        )
        for turn in episode.turns
    ]


def _results(messages: tuple[Message, ...]) -> Iterator[bool]:
    return (message.error for message in messages if message.role == "tool")

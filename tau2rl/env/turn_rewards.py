"""What the turns of an episode are worth against the reference actions of its task, for the estimators of turns."""

from __future__ import annotations

from collections.abc import Iterator

from tau2rl.env.domain import domain
from tau2rl.env.tasks import gold_actions
from tau2rl.reward.tiers import CallResult, Tier, TierTable, ToolKind, TurnCalls, score_calls, turn_rewards
from tau2rl.types import CallTool, Episode, Message, TaskRef

KINDS: dict[str, ToolKind] = {"read": "read", "write": "write"}


def episode_turn_rewards(episode: Episode, table: TierTable) -> list[float]:
    """One reward a turn, [num_turns]."""
    return turn_rewards(turn_calls(episode), *reference_calls(episode.task), table)


def tiers_of(episode: Episode, table: TierTable) -> tuple[tuple[Tier, ...], ...]:
    """The tier of every call, [num_turns][calls of that turn]; a turn without calls has one."""
    scored = score_calls(turn_calls(episode), *reference_calls(episode.task), table)
    return tuple(tuple(call.tier for call in turn) for turn in scored)


def reference_calls(task: TaskRef) -> tuple[list[CallTool], dict[str, ToolKind]]:
    """The agent's side of the reference actions, and what each tool does."""
    loaded = domain(task.domain)
    actions = (action for action in gold_actions(loaded.task(task)) if action.requestor == "assistant")
    gold = [CallTool(name=action.name, arguments=dict(action.arguments)) for action in actions]
    return gold, {name: KINDS.get(kind, "other") for name, kind in loaded.tool_types.items()}


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

"""What each turn of an episode was worth: its tool calls against the reference actions, for the estimators of turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tau2rl.env import synth
from tau2rl.env.domain import domain
from tau2rl.reward.tiers import CallResult, TierTable, ToolKind, TurnCalls, turn_rewards
from tau2rl.types import Actions, CallTool, Episode, Message, Say, TaskRef


def gold_actions(task: Any) -> list[Any]:
    """The task's reference actions of both sides, in order (tau2 `Action`s)."""
    return list((task.evaluation_criteria.actions if task.evaluation_criteria else None) or ())


def gold_script(ref: TaskRef, *, noise_prob: float = 0.0, seed: int = 0) -> tuple[Actions, ...]:
    """The turns that solve a task by its reference path.

    One turn an agent-side action; one message for each run of user-side actions, naming them; at the end a message with
    everything that must be communicated. A synthesised task has a demonstration of its own, with the questions that a user
    has to be asked; `noise_prob` is how often its teacher gets a change wrong, decided by `seed`.
    """
    if synth.is_synth(ref.split):
        made = synth.of(ref)
        return tuple((step,) for step in (synth.slipped(made, share=noise_prob, seed=seed) if noise_prob else made.demo))
    task = domain(ref.domain).task(ref)
    turns: list[Actions] = []
    asked: list[str] = []
    for action in gold_actions(task):
        if action.requestor == "user":
            asked.append(action.name)
            continue
        if asked:
            turns.append((ask(asked),))
            asked = []
        turns.append((CallTool(name=action.name, arguments=action.arguments),))
    if asked:
        turns.append((ask(asked),))
    turns.append(
        (Say(text=closing_words((task.evaluation_criteria.communicate_info if task.evaluation_criteria else None) or ())),)
    )
    return tuple(turns)


def ask(names: Sequence[str]) -> Say:
    """A request that the user perform its tools, in order.

    >>> ask(["toggle_airplane_mode", "reboot_device"]).text
    'Please do this on your phone: toggle airplane mode, then reboot device.'
    """
    return Say(text=f"Please do this on your phone: {', then '.join(name.replace('_', ' ') for name in names)}.")


def closing_words(information: Sequence[str]) -> str:
    """The last message, with what must be communicated.

    >>> closing_words(["327", "blue"])
    'That is done. For your information: 327; blue. Is there anything else?'
    """
    told = f" For your information: {'; '.join(information)}." if information else ""
    return f"That is done.{told} Is there anything else?"


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

"""ScriptedPolicy and the scripts of the floors.

Pinned here:

- turns come in order, whatever the prompt says; then the last text, or what was given, for ever
- a turn longer than the budget is cut and says so; an object belongs to one episode
- the floors never touch the database: one only talks, the other only transfers, in tau2's prescribed words
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tau2rl.policy.scripted import CLOSING, ScriptedPolicy, always_transfer_script, do_nothing_script
from tau2rl.types import Actions, CallTool, Completion, FinishReason, Message, Opening, Say, ToolSchema

LOOKUP = CallTool(name="get_user", arguments={"id": "u1"})


class NumberCodec:
    """A chat protocol in which a turn is three numbers: calls, texts, and the length of the first text."""

    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def open(self, opening: Opening) -> list[int]:
        return [0]

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        return [*prompt_ids, *completion_ids]

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        return (Say(text="x" * completion_ids[2]),)

    def write(self, actions: Actions) -> list[int]:
        texts = [action.text for action in actions if isinstance(action, Say)]
        return [sum(isinstance(action, CallTool) for action in actions), len(texts), len(texts[0]) if texts else 0]


def play(policy: ScriptedPolicy, turns: int, *, max_tokens: int = 100) -> list[Completion]:
    async def inside() -> list[Completion]:
        return [await policy.complete([9] * n, seed=n, session="mock/a#0", max_tokens=max_tokens) for n in range(turns)]

    return asyncio.run(inside())


def test_turns_come_in_order_and_then_the_last_text_repeats() -> None:
    policy = ScriptedPolicy(((LOOKUP,), (Say(text="abc"),), (LOOKUP, LOOKUP)), NumberCodec())
    ids = [completion.token_ids for completion in play(policy, 5)]
    assert ids == [(1, 0, 0), (0, 1, 3), (2, 0, 0), (0, 1, 3), (0, 1, 3)]


def test_a_given_action_follows_the_script() -> None:
    policy = ScriptedPolicy(((Say(text="abc"),),), NumberCodec(), after=LOOKUP)
    assert [completion.token_ids for completion in play(policy, 3)] == [(0, 1, 3), (1, 0, 0), (1, 0, 0)]


def test_a_script_without_words_ends_with_a_question() -> None:
    assert play(ScriptedPolicy(((LOOKUP,),), NumberCodec()), 2)[1].token_ids == (0, 1, len(CLOSING.text))


def test_a_turn_beyond_the_budget_is_cut_and_says_so() -> None:
    (completion,) = play(ScriptedPolicy(((LOOKUP,),), NumberCodec()), 1, max_tokens=2)
    assert (completion.token_ids, completion.finish_reason) == ((1, 0), FinishReason.LENGTH)


def test_nothing_is_sampled_so_there_are_no_logprobs() -> None:
    (completion,) = play(ScriptedPolicy(((LOOKUP,),), NumberCodec()), 1)
    assert completion.logprobs is None
    assert completion.finish_reason is FinishReason.STOP


def test_a_second_episode_needs_a_second_policy() -> None:
    policy = ScriptedPolicy(((LOOKUP,),), NumberCodec())
    play(policy, 1)
    with pytest.raises(ValueError, match="plays one episode: it began `mock/a#0`, not `mock/b#0`"):
        asyncio.run(policy.complete([1], seed=1, session="mock/b#0", max_tokens=5))


def test_doing_nothing_is_words_only() -> None:
    assert all(isinstance(action, Say) for turn in do_nothing_script() for action in turn)


def test_transferring_is_the_call_and_then_tau2s_own_sentence() -> None:
    (call,), (sentence,) = always_transfer_script()
    assert isinstance(call, CallTool)
    assert call.name == "transfer_to_human_agents"
    assert list(call.arguments) == ["summary"]
    assert sentence == Say(text="YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.")

"""Pinned here: the mask covers what was sampled and nothing else; a prompt that changed after sampling is found and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.data.encoding import pack
from tau2rl.hashing import prefix_hash
from tau2rl.types import Episode, FinishReason, MalformedKind, Message, Opening, Say, Status, StopReason, TaskRef, Turn


def turn(
    ids: tuple[int, ...], start: int, end: int, logprobs: tuple[float, ...] | None, malformed: MalformedKind | None = None
) -> Turn:
    return Turn(
        start=start,
        end=end,
        prompt_hash=prefix_hash(ids[:start]),
        logprobs=logprobs,
        finish_reason=FinishReason.STOP,
        actions=() if malformed else (Say(text="x"),),
        malformed=malformed,
    )


def episode(ids: tuple[int, ...], *turns: Turn) -> Episode:
    task = TaskRef(domain="mock", task_id="a", split="base")
    return Episode(
        task=task,
        seed=1,
        status=Status.COMPLETED,
        stop_reason=StopReason.USER_STOP,
        token_ids=ids,
        turns=turns,
        messages=(),
        grade=None,
    )


IDS = (9, 8, 7, 6, 5, 4, 3)
FIRST = turn(IDS, 2, 4, (-0.5, -0.25))
SECOND = turn(IDS, 5, 6, (-1.0,), MalformedKind.BAD_JSON)


def test_only_sampled_tokens_are_trained_on() -> None:
    (sample,) = pack(episode(IDS, FIRST, SECOND))
    assert sample.token_ids == IDS[:6]  # nothing behind what was sampled last
    assert sample.loss_mask == (0, 0, 1, 1, 0, 1)
    assert sample.logprobs == (0.0, 0.0, -0.5, -0.25, 0.0, -1.0)
    assert sample.turn_spans == ((2, 4), (5, 6))


def test_one_turn_without_logprobs_leaves_none() -> None:
    assert pack(episode(IDS, FIRST, replace(SECOND, logprobs=None)))[0].logprobs is None


def test_an_episode_without_turns_has_nothing_to_train_on() -> None:
    assert pack(episode(IDS)) == ()


def test_a_changed_prompt_is_found_and_named() -> None:
    changed = (9, 8, 7, 6, 0, 4, 3)  # token 4 stands before the second turn only
    with pytest.raises(ValueError, match="turn 1 was sampled behind another prompt than its first 5 tokens"):
        pack(episode(changed, FIRST, SECOND))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(SECOND, start=3), r"turn 1 spans \[3, 6\) behind token 4 of 7"),
        (replace(SECOND, end=8), r"turn 1 spans \[5, 8\)"),
        (replace(SECOND, end=5), r"turn 1 spans \[5, 5\)"),
        (replace(SECOND, logprobs=(-1.0, -1.0)), "turn 1 has 1 tokens and 2 logprobs"),
    ],
    ids=["overlap", "past the end", "empty", "logprobs"],
)
def test_a_span_that_does_not_fit_is_named(wrong: Turn, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(episode(IDS, FIRST, wrong))


def test_a_played_conversation_packs_to_its_assistant_text() -> None:
    tokenizer = ByteTokenizer()
    codec = NativeCodec(tokenizer)
    ids = codec.open(Opening(domain_policy="P", messages=(Message(role="user", content="Hi"),), tools=()))
    turns: list[Turn] = []
    for text in ("One", "Two"):
        sampled = codec.write((Say(text=text),))
        turns.append(turn(tuple(ids), len(ids), len(ids) + len(sampled), None))
        ids = codec.extend(ids, sampled, [Message(role="user", content="and")])
    (sample,) = pack(episode(tuple(ids), *turns))
    trained = [i for i, kept in zip(sample.token_ids, sample.loss_mask, strict=True) if kept]
    assert tokenizer.decode(trained) == "One<|im_end|>Two<|im_end|>"

"""One sampled turn under the budget of thoughts, `chat.thinking_tokens`, and how many of its tokens were thought.

A thought that reaches the budget is closed: the ids that close it are put in, and sampling goes on behind them. They are tokens
of the turn, but nobody sampled them, so they are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tau2rl.hashing import derive_seed
from tau2rl.protocols import ChatCodec, Policy
from tau2rl.types import Completion, FinishReason

OPENING_TOKENS = 32  # a thought stands first in its turn: no family's opening is longer, not even in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingBudget:
    """`ThinkingBudget(thinking_tokens=2048, turn_tokens=4096)`."""

    thinking_tokens: int  # of a turn's thought
    turn_tokens: int  # of a whole turn, what closes the thought included: `max_tokens` of the sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTurn:
    """A turn as one completion, however many calls it took: `SampledTurn(completion=..., forced=(2048, 2050))`."""

    completion: Completion
    forced: tuple[int, int] | None = None  # those of its tokens that closed the thought; half-open


async def sample_turn(
    policy: Policy,
    codec: ChatCodec,
    prompt: Sequence[int],
    *,
    seed: int,
    session: str,
    max_tokens: int,
    budget: ThinkingBudget | None,
    check: Callable[[Completion], None],
) -> SampledTurn:
    """Sample a turn. `check` sees each completion as the policy gave it. Raises PolicyFailure.

    Without a budget it is one call. With one, a call ends where the thought may end: it is closed there, or, if none is open any
    more, the turn goes on as it was. What follows has the same distribution as in one call, and a seed of its own.
    """
    if budget is None:
        completion = await policy.complete(prompt, seed=seed, session=session, max_tokens=max_tokens)
        check(completion)
        return SampledTurn(completion=completion)
    room = min(max_tokens, budget.turn_tokens)
    ids: list[int] = []
    parts: list[Completion] = []
    forced: tuple[int, int] | None = None
    while True:
        closing, spent = _closing(codec, ids), num_thought_tokens(codec, ids)
        if forced is None and closing and spent >= budget.thinking_tokens and len(ids) + len(closing) < room:
            forced = (len(ids), len(ids) + len(closing))
            ids += closing
        may_think = forced is None and spent < budget.thinking_tokens and (closing or len(ids) < OPENING_TOKENS)
        asked = min(room - len(ids), budget.thinking_tokens - spent if may_think else room)
        part = await policy.complete(
            [*prompt, *ids], seed=derive_seed(seed, len(ids)) if ids else seed, session=session, max_tokens=asked
        )
        check(part)
        parts.append(part)
        ids += part.token_ids
        if part.finish_reason is not FinishReason.LENGTH or len(part.token_ids) < asked or len(ids) >= room:
            return SampledTurn(completion=_joined(ids, parts, forced), forced=forced)


def _joined(ids: Sequence[int], parts: Sequence[Completion], forced: tuple[int, int] | None) -> Completion:
    """The calls of a turn as one completion; log-probabilities of 0 on what was put in, the first call's weights."""
    logprobs: list[float] | None = []
    for part in parts:
        if part.logprobs is None:
            logprobs = None
            break
        if forced and len(logprobs) == forced[0]:
            logprobs += [0.0] * (forced[1] - forced[0])
        logprobs += part.logprobs
    usage = parts[0].usage
    for part in parts[1:]:
        usage += part.usage
    return replace(
        parts[-1],
        token_ids=tuple(ids),
        logprobs=None if logprobs is None else tuple(logprobs),
        usage=usage,
        throttled_seconds=sum(part.throttled_seconds for part in parts),
        weight_version=parts[0].weight_version,
    )


def _closing(codec: ChatCodec, ids: Sequence[int]) -> list[int]:
    """See `ChatCodec.close_thoughts`, which a codec of the user's need not have."""
    close_thoughts = getattr(codec, "close_thoughts", None)
    return [] if close_thoughts is None else list(close_thoughts(ids))


def num_thought_tokens(codec: ChatCodec, ids: Sequence[int]) -> int:
    """How many of a turn's tokens are its thought, with what opens and closes it.

    A turn has one thought at most, and it stands first, so that where it ends is found by halving.
    """
    start = next((n for n in range(min(OPENING_TOKENS, len(ids)) + 1) if _closing(codec, ids[:n])), None)
    if start is None:
        return 0
    low, high = start, len(ids)  # open behind `low` tokens; the last place where it is, is at most `high`
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _closing(codec, ids[:middle]) else (low, middle - 1)
    return min(low + 1, len(ids))

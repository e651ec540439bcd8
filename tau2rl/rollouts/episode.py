"""One episode: the policy's tokens go to the environment as actions, what comes back goes to the policy as tokens.

Nothing here knows tau2, a model or a server. What was sampled is never rendered again: each prompt begins with the one
before it and its completion, or says from where on it does not (thoughts that the template takes out), and carries a hash that
proves it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tau2rl.config import LimitsConfig
from tau2rl.errors import ContextExceeded, EnvironmentFailure, EpisodeFailure, MalformedTurn, PolicyFailure
from tau2rl.hashing import PrefixHash, derive_seed
from tau2rl.protocols import ChatCodec, Env, Policy
from tau2rl.rollouts.thinking import SampledTurn, ThinkingBudget, num_thought_tokens, sample_turn
from tau2rl.types import (
    Actions,
    Attempt,
    Completion,
    Episode,
    Failure,
    FinishReason,
    Grade,
    MalformedKind,
    Message,
    Status,
    StopReason,
    Turn,
    without_thoughts,
)

# tau2 cut the conversation off; every other ending is a verdict.
CUT_BY_TAU2 = frozenset({StopReason.MAX_STEPS, StopReason.TIMEOUT})


# Rounding puts a log-probability of 0 a little above it; beyond this it is no log-probability.
MAX_LOGPROB = 1e-3
MAX_VOCABULARY = 2**31  # of a codec that does not tell its own


async def run_episode(
    attempt: Attempt, *, env: Env, policy: Policy, codec: ChatCodec, limits: LimitsConfig, budget: ThinkingBudget | None = None
) -> Episode:
    """Play one attempt to its end and close its environment. Never raises EpisodeFailure: that is a FAILED episode.

    `attempt.seed` decides every turn's seed. Cancellation closes the environment and passes on.
    """
    play = _Play(attempt, env, policy, codec, limits, budget)
    try:
        status, stop_reason, grade = await play.run()
    except EpisodeFailure as failure:
        await env.close(grade=False)
        return play.episode(
            Status.FAILED,
            StopReason.FAILED,
            None,
            Failure(fault=failure.fault, kind=type(failure).__name__, message=str(failure)),
        )
    except BaseException:
        await env.close(grade=False)
        raise
    return play.episode(status, stop_reason, grade)


@dataclass(slots=True)
class _Play:
    """The state of one episode while it runs."""

    attempt: Attempt
    env: Env
    policy: Policy
    codec: ChatCodec
    limits: LimitsConfig
    budget: ThinkingBudget | None = None
    started: float = field(default_factory=time.monotonic)
    prompt: list[int] = field(default_factory=list[int])  # [num_tokens], of the turn at hand
    prompt_hash: PrefixHash = field(default_factory=PrefixHash)
    kept: int | None = None  # of the prompt at hand; see `Turn`
    log: list[int] = field(default_factory=list[int])  # `Episode.token_ids`, up to the prompt at hand
    sampled: tuple[int, ...] = ()  # the last completion, not yet part of a prompt
    new: tuple[Message, ...] = ()  # what followed it
    turns: list[Turn] = field(default_factory=list[Turn])
    messages: list[Message] = field(default_factory=list[Message])
    malformed_in_a_row: int = 0

    async def run(self) -> tuple[Status, StopReason, Grade | None]:
        """Turns until tau2 or a limit ends it: (status, stop reason, grade). Raises EpisodeFailure."""
        opening = await self.env.open()
        self.messages += opening.messages
        self.prompt = self.codec.open(opening)
        self.log += self.prompt
        while True:
            self._advance()
            if stop := self._limit_reached():
                return Status.TRUNCATED, stop, await self._close()
            try:
                sampled, seconds = await self._sample()
            except ContextExceeded:  # of a model whose context nobody told us; our own limit is checked above
                return Status.TRUNCATED, StopReason.CONTEXT, await self._close()
            completion = sampled.completion
            if not completion.token_ids:  # the model said nothing, not even that its turn ends
                return Status.MALFORMED, StopReason.MALFORMED, await self._close()
            try:
                actions = self.codec.parse(completion.token_ids, opening.tools)
            except MalformedTurn as error:
                self._record(sampled, seconds, malformed=error.kind)
                if completion.finish_reason is FinishReason.LENGTH:
                    return Status.TRUNCATED, StopReason.LENGTH, await self._close()
                self.malformed_in_a_row += 1
                if self.malformed_in_a_row > self.limits.repairs:
                    return Status.MALFORMED, StopReason.MALFORMED, await self._close()
                self._follow(repair_request(error))
                continue
            if completion.finish_reason is FinishReason.LENGTH:  # cut in the middle of a sentence: nobody said that
                self._record(sampled, seconds)
                return Status.TRUNCATED, StopReason.LENGTH, await self._close()
            self.malformed_in_a_row = 0
            before = time.monotonic()
            reply = await self.env.step(without_thoughts(actions))
            self._record(sampled, seconds, actions, env_seconds=time.monotonic() - before)
            self.messages.append(Message.of(actions))
            self._follow(*reply.messages)
            if reply.done:
                if reply.grade is None or reply.stop_reason is None:
                    raise EnvironmentFailure("the conversation ended without a grade")
                await self.env.close(grade=False)
                status = Status.TRUNCATED if reply.stop_reason in CUT_BY_TAU2 else Status.COMPLETED
                return status, reply.stop_reason, reply.grade

    def _advance(self) -> None:
        """Move the prompt on to the next turn: everything so far, and what followed it.

        A codec that takes thoughts out begins anew where they stood; what it wrote from there on goes into the log.
        """
        if self.sampled:
            before = [*self.prompt, *self.sampled]
            self.prompt = self.codec.extend(self.prompt, self.sampled, self.new)
            kept = num_shared(before, self.prompt)
            self.kept = None if kept == len(before) else kept
            if self.kept is not None:
                self.prompt_hash = PrefixHash()
            self.log += [*self.sampled, *self.prompt[kept:]]
            self.sampled, self.new = (), ()

    def _limit_reached(self) -> StopReason | None:
        if len(self.turns) >= self.limits.max_turns:
            return StopReason.TURNS
        if len(self.prompt) >= self.limits.context_tokens:
            return StopReason.CONTEXT
        # Only between turns: a call in flight has a deadline of its own, and one that is never answered is the server's failure.
        late = time.monotonic() - self.started >= self.limits.episode_timeout_seconds
        return StopReason.DEADLINE if late and self.turns else None

    async def _sample(self) -> tuple[SampledTurn, float]:
        """One turn of the policy, and the seconds that it took. Raises PolicyFailure."""
        before = time.monotonic()
        vocab_size = getattr(self.codec, "vocab_size", None)
        sampled = await sample_turn(
            self.policy,
            self.codec,
            self.prompt,
            seed=derive_seed(self.attempt.seed, len(self.turns)),
            session=f"{self.attempt.key}@{self.attempt.seed}",
            max_tokens=self.limits.context_tokens - len(self.prompt),
            budget=self.budget,
            check=lambda completion: check_completion(completion, vocab_size=vocab_size),
        )
        return sampled, time.monotonic() - before

    def _record(
        self,
        sampled: SampledTurn,
        seconds: float,
        actions: Actions = (),
        *,
        malformed: MalformedKind | None = None,
        env_seconds: float = 0.0,
    ) -> None:
        """Append the turn; `actions` are those that reached the environment."""
        completion, forced, start = sampled.completion, sampled.forced, len(self.log)
        self.turns.append(
            Turn(
                start=start,
                end=start + len(completion.token_ids),
                prompt_hash=self.prompt_hash.of(self.prompt),
                logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                actions=actions,
                malformed=malformed,
                seconds=seconds,
                throttled_seconds=completion.throttled_seconds,
                env_seconds=env_seconds,
                usage=completion.usage,
                weight_version=completion.weight_version,
                kept=self.kept,
                forced=None if forced is None else (start + forced[0], start + forced[1]),
                thought_tokens=num_thought_tokens(self.codec, completion.token_ids[: forced[0] if forced else None]),
            )
        )
        self.sampled = completion.token_ids

    def _follow(self, *messages: Message) -> None:
        """What came back for the turn just recorded."""
        self.new = messages
        self.messages += messages

    async def _close(self) -> Grade | None:
        grade = await self.env.close(grade=True)
        if grade is None:
            raise EnvironmentFailure("the conversation was cut off and could not be graded")
        return grade

    def episode(self, status: Status, stop_reason: StopReason, grade: Grade | None, failure: Failure | None = None) -> Episode:
        """The finished record of what happened."""
        return Episode(
            task=self.attempt.task,
            seed=self.attempt.seed,
            status=status,
            stop_reason=stop_reason,
            token_ids=(*self.log, *self.sampled),
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            grade=grade,
            failure=failure,
            seconds=time.monotonic() - self.started,
            user_usage=self.env.user_usage,
            env_time=self.env.time,
            db_hashes=self.env.db_hashes,
            trajectory=tuple(self.env.trajectory),
        )


def num_shared(before: Sequence[int], after: Sequence[int]) -> int:
    """How many tokens the two begin with in common.

    >>> num_shared([1, 2, 3], [1, 2, 4, 5])
    2
    """
    if after[: len(before)] == before:  # at the speed of C, and what nearly every turn does
        return len(before)
    return next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))


def check_completion(completion: Completion, *, vocab_size: int | None = None) -> None:
    """Whether a policy's answer can be what a model sampled. Raises PolicyFailure.

    Ids are in [0, vocab_size), log-probabilities are finite, not above 0, and as many as ids. What passes can be hashed,
    recorded and trained on; what does not would be silent nonsense there, or an error far from its cause.

    >>> check_completion(Completion(token_ids=(5,), logprobs=(-0.5,), finish_reason=FinishReason.STOP), vocab_size=6)
    """
    ids, logprobs = completion.token_ids, completion.logprobs
    size = vocab_size or MAX_VOCABULARY
    if ids and not (min(ids) >= 0 and max(ids) < size):
        wrong = next(token for token in ids if not 0 <= token < size)
        raise PolicyFailure(f"the policy sampled token id {wrong}, which is outside its vocabulary of {size}")
    if logprobs is None:
        return
    if len(logprobs) != len(ids):
        raise PolicyFailure(f"{len(ids)} tokens came with {len(logprobs)} log-probabilities")
    if logprobs and not (math.isfinite(sum(logprobs)) and max(logprobs) <= MAX_LOGPROB):
        wrong = next((number for number in logprobs if not -math.inf < number <= MAX_LOGPROB), -math.inf)
        raise PolicyFailure(f"the policy sent a log-probability of {wrong:g}")


REPAIR_REQUEST = "FORMAT ERROR ("  # how one begins


def repair_request(error: MalformedTurn) -> Message:
    """What the model is told after a turn that the protocol cannot read; it stays in the history, in training and in eval.

    >>> from tau2rl.types import MalformedKind
    >>> repair_request(MalformedTurn(MalformedKind.BAD_JSON, "expected `}`")).content
    'FORMAT ERROR (bad_json): expected `}`. Your last turn was not carried out. Answer again in the required format.'
    """
    return Message(
        role="user",
        content=f"{REPAIR_REQUEST}{error.kind.value}): {error.message}. "
        "Your last turn was not carried out. Answer again in the required format.",
    )

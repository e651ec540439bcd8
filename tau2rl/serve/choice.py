"""Which of several attempts is taken: the one that the verifiers score highest, the earliest of equals."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tau2rl.errors import ContextExceeded, PolicyFailure, UserError
from tau2rl.serve.requests import Refusal
from tau2rl.types import Transcript
from tau2rl.verify.verifiers import Scorer

log = logging.getLogger(__name__)
T = TypeVar("T")
SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Indices from the best on, with each verifier's scores: `Choice(order=(2, 0, 1), scores={"rules": [0.3, 0.3, 1.0]})`."""

    order: tuple[int, ...]
    scores: dict[str, list[float]]
    left_out: dict[str, str]  # verifiers that gave no scores, and why

    def about(self, chosen: int, *, asked: int, mode: str) -> dict[str, Any]:
        """What the client is told; `asked` attempts were begun, in all rounds; `usable`: of the last round."""
        told = {"mode": mode, "attempts": asked, "usable": len(self.order), "chosen": chosen, "scores": self.scores}
        return {**told, "left_out": self.left_out}


class VerifierPool:
    """The verifiers, each with threads of its own and a deadline: `VerifierPool(scorers, seconds=60.0, at_once=16)`.

    A request takes one thread of each. What hangs holds threads of its own verifier alone, and never a request for longer than
    the deadline, waiting for a thread included.
    """

    def __init__(self, scorers: Sequence[Scorer], *, seconds: float = 60.0, at_once: int = 16) -> None:
        """`seconds`: for one judgement; `at_once`: judgements of one verifier side by side."""
        self._seconds = seconds
        self._scorers = [(one, ThreadPoolExecutor(at_once, thread_name_prefix=one.name)) for one in scorers]

    async def choose(self, transcripts: Sequence[Transcript]) -> Choice:
        """The first verifier decides, the next ones break ties. A single attempt is not judged.

        A verifier that cannot judge, or not in time, is left out. Raises Refusal where no other is left.
        """
        if len(transcripts) == 1:
            return Choice(order=(0,), scores={}, left_out={})
        found = await asyncio.gather(*(self._judge(scorer, pool, transcripts) for scorer, pool in self._scorers))
        judged = {scorer.name: one for (scorer, _), one in zip(self._scorers, found, strict=True)}
        scores = {name: one for name, one in judged.items() if not isinstance(one, str)}
        left_out = {name: one for name, one in judged.items() if isinstance(one, str)}
        if not scores:
            raise Refusal(502, f"no verifier could judge: {_listed(left_out)}", code="verifier_error")
        order = sorted(range(len(transcripts)), key=lambda i: [-values[i] for values in scores.values()])
        return Choice(order=tuple(order), scores=scores, left_out=left_out)

    def close(self) -> None:
        """Judge nothing more; what is judged now is not waited for."""
        for _, pool in self._scorers:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _judge(self, scorer: Scorer, pool: ThreadPoolExecutor, transcripts: Sequence[Transcript]) -> list[float] | str:
        """Its scores, or why there are none, without what only the log may say."""
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(pool, scorer.score, transcripts)
        except TimeoutError:
            log.warning("verifier `%s` is left out: no judgement within %g s", scorer.name, self._seconds)
            return f"no judgement within {self._seconds:g} s"
        except UserError as error:
            log.warning("verifier `%s` is left out: %s", scorer.name, error.message)
            return "could not judge"


def _listed(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"`{name}`: {reason}" for name, reason in left_out.items())


async def gather(ask: Callable[[int], Awaitable[T]], k: int, *, seed: int | None) -> list[T]:
    """What k calls at once bring, each with a seed of its own; those that fail are left out. Raises Refusal if all do."""
    first = secrets.randbelow(SEEDS) if seed is None else seed
    found = await asyncio.gather(*(ask((first + i) % SEEDS) for i in range(k)), return_exceptions=True)
    failures: list[PolicyFailure] = []
    for one in found:
        if isinstance(one, PolicyFailure):
            failures.append(one)
        elif isinstance(one, BaseException):
            raise one
    for failure in failures:
        log.warning("an attempt failed: %s", failure)
    good = [one for one in found if not isinstance(one, BaseException)]
    if not good and all(isinstance(failure, ContextExceeded) for failure in failures):
        raise Refusal(
            400, "the conversation is longer than the model's context", code="context_length_exceeded", param="messages"
        )
    if not good and all(failure.status == 400 for failure in failures):
        raise Refusal(400, "the policy server refuses a field or a message of this request", code="refused_upstream")
    if not good:
        raise Refusal(502, "the policy server gave no usable answer", code="upstream_error")
    return good

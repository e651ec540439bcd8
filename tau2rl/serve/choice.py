"""Which of several attempts is taken: the one that the verifiers score highest, the earliest of equals."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
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

    def about(self, chosen: int, *, asked: int, mode: str) -> dict[str, Any]:
        """What the client is told; `asked` attempts were begun, in all rounds; `usable`: of the last round."""
        return {"mode": mode, "attempts": asked, "usable": len(self.order), "chosen": chosen, "scores": self.scores}


async def choose(scorers: Sequence[Scorer], transcripts: Sequence[Transcript]) -> Choice:
    """The first verifier decides, the next ones break ties. A single attempt is not judged. Raises Refusal."""
    if len(transcripts) == 1:
        return Choice(order=(0,), scores={})
    scores: dict[str, list[float]] = {}
    for scorer in scorers:
        try:
            scores[scorer.name] = await asyncio.to_thread(scorer.score, transcripts)
        except UserError as error:
            log.warning("verifier `%s`: %s", scorer.name, error.message)
            raise Refusal(502, f"the verifier `{scorer.name}` could not judge", code="verifier_error") from None
    order = sorted(range(len(transcripts)), key=lambda i: [-values[i] for values in scores.values()])
    return Choice(order=tuple(order), scores=scores)


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

"""What an episode leaves on its slime `Sample`, as JSON: all that rewards, filter, curves and curriculum know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tau2rl.data.task_sampling import outcome
from tau2rl.rollout.runner import Outcome
from tau2rl.types import CallTool, Episode, Score, Status, Turn

KEY = "tau2rl"  # where they stand in `Sample.metadata`
SHOWN = 200  # characters of a failure's message


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Small and JSON-able: `Marks(task="retail/17", domain="retail", split="train-learn", status="completed", evidence=True)`."""

    task: str  # `TaskRef.key`
    domain: str
    split: str
    status: str  # a `types.Status`, or "aborted": slime had enough and ended it
    evidence: bool = False  # whether it counts: in the loss, in its group's mean
    solved: bool | None = None  # None: nobody can say
    reward: float | None = None  # tau2's
    score: float | None = None  # ours, shaped; None = no evidence
    partial: float | None = None
    components: dict[str, float] | None = None  # shares of checks met, and the terms of the score
    termination: str = ""
    turns: int = 0
    spans: tuple[tuple[int, int, int], ...] = ()  # (turn, start, end) of sampled tokens, in response coordinates
    turn_rewards: tuple[float, ...] = ()  # [turns], for the estimators of turns
    refused: int = 0  # calls that the environment refused, and turns that could not be read
    sampled_tokens: int = 0
    fault: str | None = None  # a `types.Fault`
    failure: str = ""
    tries: int = 1
    seconds: float = 0.0
    policy_seconds: float = 0.0  # of all turns together
    user_seconds: float = 0.0  # waiting for the user, all messages to it together
    user_messages: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON values, equal after a round trip through text; `from_json` reads them.

        >>> marks = Marks(task="mock/a", domain="mock", split="base", status="completed", spans=((0, 0, 4), (1, 9, 12)))
        >>> Marks.from_json(marks.to_json()) == marks
        True
        """
        return {**asdict(self), "spans": [list(span) for span in self.spans], "turn_rewards": list(self.turn_rewards)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Marks:
        """The inverse of `to_json`."""
        known = {f.name: values[f.name] for f in fields(Marks) if f.name in values}
        spans: Sequence[Sequence[int]] = known.get("spans", ())
        return Marks(
            **{
                **known,
                "spans": tuple((turn, start, end) for turn, start, end in spans),
                "turn_rewards": tuple(known.get("turn_rewards", ())),
            }
        )


def mark(played: Outcome, score: Score | None, turn_rewards: Sequence[float], *, drop_truncated: bool) -> Marks:
    """The marks of an attempt. `turn_rewards` is [turns], or empty where no estimator asks for it.

    No evidence: what FAILED, what holds no sampled token, what tau2 did not grade, and with `drop_truncated` what was cut off.
    """
    episode, task = played.episode, played.attempt.task
    shaped = None if score is None else score.shaped
    cut = episode.status is Status.TRUNCATED and drop_truncated
    evidence = episode.status is not Status.FAILED and bool(episode.turns) and shaped is not None and not cut
    to_user = [turn for turn in episode.turns if turn.actions and not _calls(turn)]
    return Marks(
        task=task.key,
        domain=task.domain,
        split=task.split,
        status=episode.status.value,
        evidence=evidence,
        solved=outcome(episode),
        reward=None if episode.grade is None else episode.grade.reward,
        score=shaped if evidence else None,
        partial=None if score is None else score.partial,
        components=None if score is None else dict(score.components),
        termination=episode.stop_reason,
        turns=len(episode.turns),
        spans=response_spans(episode),
        turn_rewards=tuple(turn_rewards),
        refused=episode.invalid_calls,
        sampled_tokens=sum(turn.end - turn.start for turn in episode.turns),
        fault=None if episode.fault is None else episode.fault.value,
        failure="" if episode.failure is None else f"{episode.failure.kind}: {episode.failure.message}"[:SHOWN],
        tries=played.tries,
        seconds=episode.seconds,
        policy_seconds=sum(turn.seconds for turn in episode.turns),
        user_seconds=sum(turn.env_seconds for turn in to_user),
        user_messages=len(to_user),
    )


def response_spans(episode: Episode) -> tuple[tuple[int, int, int], ...]:
    """(turn, start, end) of what was sampled; slime counts from the first sampled token, where its response begins."""
    if not episode.turns:
        return ()
    first = episode.turns[0].start
    return tuple((number, turn.start - first, turn.end - first) for number, turn in enumerate(episode.turns))


def _calls(turn: Turn) -> bool:
    return any(isinstance(action, CallTool) for action in turn.actions)

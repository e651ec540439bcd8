"""Does each task's reference path earn the full reward through tau2's own grader?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tau2rl.bench.domain import domain
from tau2rl.bench.gold import closing_words, gold_actions
from tau2rl.bench.replay import replay, why_not_one
from tau2rl.bench.tasks import select
from tau2rl.config import TasksConfig
from tau2rl.errors import EnvironmentFailure
from tau2rl.types import TaskRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One task's result: `Validation(ref=..., reward=0.0, why="the database differs")`."""

    ref: TaskRef
    reward: float
    why: str  # "" when the reward is 1


def validate(config: TasksConfig) -> Iterator[Validation]:
    """Replay the gold path of each task, one result at a time. Raises UserError for an empty selection."""
    for ref in select(config):
        task = domain(ref.domain).task(ref)
        communicate = (task.evaluation_criteria.communicate_info if task.evaluation_criteria else None) or ()
        try:
            info = replay(ref, gold_actions(task), said=[closing_words(communicate)])
        except EnvironmentFailure as error:
            yield Validation(ref=ref, reward=0.0, why=str(error))
            continue
        yield Validation(ref=ref, reward=info["reward"], why=why_not_one(info))

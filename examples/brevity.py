"""A reward term of your own: short conversations score more.

    reward:
      preset: outcome
      terms: [{fn: "examples.brevity:brevity", weight: 0.1}]

It gives a number from 0 to 1 (`low` and `high` of the term declare another range). What it can add at most is part of the proof
that no failure outscores a success: with `weight: 1.0` this run is refused, unless `reward.allow_dominated` accepts it.
"""

from __future__ import annotations

from tau2rl import Episode, Grade

FULL = 20  # turns, from which on it gives 0


def brevity(episode: Episode, grade: Grade) -> float:
    """1 for a conversation without a turn, 0 from `FULL` turns on. Called for graded episodes, never for FAILED ones."""
    return max(0.0, 1.0 - len(episode.turns) / FULL)

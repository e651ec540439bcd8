"""The attempts of one group: their scores, the advantage of each by the trainer's own rule, and what each did turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tau2rl.config import AlgoConfig, GrpoConfig, RewardConfig
from tau2rl.config.kinds import TURN_ESTIMATORS
from tau2rl.errors import UserError
from tau2rl.reward.advantages import group_advantages
from tau2rl.reward.calibration import turn_table
from tau2rl.reward.tiers import TierTable
from tau2rl.runs.folder import read_config
from tau2rl.types import Episode, EpisodeRecord
from tau2rl.verify.blame import is_evidence
from tau2rl.view.conversation import items
from tau2rl.view.index import Index

Json = dict[str, Any]
Advantages = list[tuple[float, ...] | None]  # [group][1 or num_turns]; None: no evidence, or not known here
LONGEST_LABEL = 60  # characters of what a turn did


def members(run: Path, index: Index, row: Json) -> tuple[list[Json], Advantages, str]:
    """The rows of a record's group, their advantages, and the estimator: "" where the run trained nothing.

    In a run that trained, attempts are numbered through and a group is `rollout.num_samples` of them. Elsewhere it is all
    attempts at the task, with the advantages that the estimator of `AlgoConfig` would give them.
    """
    config = training(run)
    rows = index.attempts(row)
    if config is not None and row["place"] == "run":
        size = config.rollout.num_samples
        rows = [each for each in rows if each["attempt"] // size == row["attempt"] // size]
    algo, reward = (AlgoConfig(), RewardConfig()) if config is None else (config.algo, config.reward)
    found = advantages(rows, algo, reward, load=index.record)
    return rows, found, "" if config is None else algo.estimator


def advantages(
    rows: Sequence[Json], algo: AlgoConfig, reward: RewardConfig, *, load: Callable[[Json], EpisodeRecord]
) -> Advantages:
    """Of the attempts of one group, from the scores that were kept. Turn estimators and faults that are left out need tau2."""
    turn_rewards_G: list[Sequence[float]] = [()] * len(rows)
    try:
        scores_G = [row["score"] if is_evidence(load(row).episode, algo) else None for row in rows]
        if algo.estimator in TURN_ESTIMATORS:
            table = turn_table(reward, algo)
            turn_rewards_G = [
                () if score is None else _turn_rewards(load(row).episode, table)
                for row, score in zip(rows, scores_G, strict=True)
            ]
    except (UserError, ImportError, KeyError, ValueError):
        return [None] * len(rows)
    return group_advantages(scores_G, turn_rewards_G, algo)


def attempts(run: Path, index: Index, number: int) -> Json:
    """The group of a record with the turns of each: `{"task", "estimator", "attempts": [{"id", "score", "steps", ...}]}`."""
    row = index.find(number)
    rows, values, estimator = members(run, index, row)
    return {
        "task": f"{row['domain']}/{row['task']}",
        "estimator": estimator,
        "attempts": [
            _line(each, value) | {"steps": steps(index.record(each).episode)} for each, value in zip(rows, values, strict=True)
        ],
    }


def attempt_lines(rows: Iterable[Json], values: Iterable[tuple[float, ...] | None]) -> list[Json]:
    """The attempts of a group for a list: number, result, score, advantages."""
    return [_line(row, value) for row, value in zip(rows, values, strict=True)]


def steps(episode: Episode) -> list[Json]:
    """What each turn did: `{"turn": 0, "kind": "call", "label": "get_user", "refused": False}`; kinds: say, call, malformed."""
    out: list[Json] = []
    for item in items(episode):
        if item.get("turn") is not None:
            out.append({"turn": item["turn"], "kind": _kind(item), "label": _label(item), "refused": False})
        elif out and item["who"] == "result" and item["side"] == "agent" and item["error"]:
            out[-1]["refused"] = True
    return out


def _line(row: Mapping[str, Any], values: tuple[float, ...] | None) -> Json:
    """`advantage`: the attempt's, where it has one; `advantages`: one value, or one a turn."""
    kept = {key: row[key] for key in ("id", "attempt", "greedy", "status", "score", "reward", "turns")}
    one = values[0] if values is not None and len(values) == 1 else None
    return kept | {"advantage": one, "advantages": None if values is None else list(values)}


def _kind(item: Json) -> str:
    return "malformed" if item["who"] == "malformed" else "call" if item["calls"] else "say"


def _label(item: Json) -> str:
    words = ", ".join(call["name"] for call in item["calls"]) or str(item["text"]).replace("\n", " ")
    return words if len(words) <= LONGEST_LABEL else f"{words[:LONGEST_LABEL]} ..."


def _turn_rewards(episode: Episode, table: TierTable) -> list[float]:
    from tau2rl.env.turn_rewards import episode_turn_rewards

    return episode_turn_rewards(episode, table)


def training(run: Path) -> GrpoConfig | None:
    """The config of a run that trains with groups; None for any other."""
    try:
        config = read_config(run)
    except UserError:
        return None
    return config if isinstance(config, GrpoConfig) else None

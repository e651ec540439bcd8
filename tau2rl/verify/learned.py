"""A small learned verifier: logistic regression on the signals of other verifiers, fitted on kept attempts at other tasks.

{"schema": 1, "signals": ["rules", "logprob"], "features": ["rules: unfinished", ..., "logprob"], "means": [...], "scales": [...],
 "coefficients": [...], "intercept": -0.4, "fitted_on": {"tasks": ["mock/a", ...], ...}, "digest": "1f0c..."}

scikit-learn fits; a score is a sum, so whoever uses the file needs no library. `rules` counts as one feature a rule.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.config.extras import part_of
from tau2rl.errors import UserError
from tau2rl.runs.files import read_json, write_json, writing
from tau2rl.types import Transcript
from tau2rl.verify.rules import RULES, violations

SCHEMA = 1
RULE_SIGNAL = "rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A fitted verifier: `Learned(signals=("rules", "logprob"), weights=(...), intercept=-0.4, ...)`."""

    signals: tuple[str, ...]  # names of verifiers
    weights: tuple[float, ...]  # [num_features], of features as they are: means and scales are worked in
    intercept: float
    tasks: frozenset[str]  # it was fitted on, by key
    digest: str

    def score(self, features: Sequence[float]) -> float:
        """The chance of success that it sees, 0 to 1; `features` as `signals` gives them, [num_features]."""
        value = self.intercept + math.fsum(w * x for w, x in zip(self.weights, features, strict=True))
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, value))))


def feature_names(names: Sequence[str]) -> list[str]:
    """The features of these signals, in order.

    >>> len(feature_names(["rules", "logprob"])) == len(RULES) + 1
    True
    """
    return [feature for name in names for feature in ([f"rules: {rule}" for rule in RULES] if name == RULE_SIGNAL else [name])]


def features_of(scores: Mapping[str, Sequence[float]], transcripts: Sequence[Transcript]) -> list[list[float]]:
    """[num_transcripts][num_features]; `scores` are those of each signal but `rules`, in the order of the signals."""
    columns: list[Sequence[float]] = []
    broken = [violations(one) for one in transcripts]
    for name, values in scores.items():
        columns += [[float(rule in found) for found in broken] for rule in RULES] if name == RULE_SIGNAL else [values]
    return [list(row) for row in zip(*columns, strict=True)]


def fit(
    names: Sequence[str], rows: Sequence[Sequence[float]], solved: Sequence[bool], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of a file, without its digest; rows are [num_attempts][num_features]. Raises UserError."""
    try:
        from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise part_of("sklearn").refusal("`tau2rl select --fit`") from None
    if len(set(solved)) < 2:
        raise UserError(
            "every attempt ended alike, so there is nothing to learn", hint="fit on a run with successes and failures"
        )
    means = [math.fsum(column) / len(column) for column in zip(*rows, strict=True)]
    scales = [
        math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column)) or 1.0
        for column, mean in zip(zip(*rows, strict=True), means, strict=True)
    ]
    standard = [[(x - m) / s for x, m, s in zip(row, means, scales, strict=True)] for row in rows]
    found = cast(Any, LogisticRegression(max_iter=1000))
    found.fit(standard, list(solved))
    return {
        "schema": SCHEMA,
        "signals": list(names),
        "features": feature_names(names),
        "means": means,
        "scales": scales,
        "coefficients": [float(value) for value in found.coef_[0]],
        "intercept": float(found.intercept_[0]),
        "fitted_on": dict(about),
    }


def write_learned(file: Path, content: Mapping[str, Any]) -> str:
    """Freeze a verifier; the digest that names it."""
    digest = _digest(content)
    with writing(file):
        write_json(file, {**content, "digest": digest})
    return digest


def read_learned(file: Path) -> Learned:
    """A frozen verifier. Raises UserError: not there, none of this version, or changed since."""
    if not file.is_file():
        raise UserError(f"no verifier `{file}`", hint="make one with `tau2rl select RUN --fit FILE`")
    content = read_json(file)
    if content.get("schema") != SCHEMA or content.get("features") != feature_names(content.get("signals") or ()):
        raise UserError(f"`{file}` is no verifier of this version", hint="make one with `tau2rl select RUN --fit FILE`")
    if content.get("digest") != _digest({key: value for key, value in content.items() if key != "digest"}):
        raise UserError(f"`{file}` is not what was fitted: its hash is another", hint="make it again with `--fit`")
    weights = [c / s for c, s in zip(content["coefficients"], content["scales"], strict=True)]
    shift = math.fsum(w * m for w, m in zip(weights, content["means"], strict=True))
    return Learned(
        signals=tuple(content["signals"]),
        weights=tuple(weights),
        intercept=content["intercept"] - shift,
        tasks=frozenset(content["fitted_on"]["tasks"]),
        digest=content["digest"],
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

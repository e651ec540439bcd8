"""A profile: how often a policy solved each task, frozen by `tau2rl synth profile`, and the evidence that `grpo` begins with.

{"schema": 1, "tasks": {"retail/17": {"valid": 8, "solved": 3, "bucket": "medium"}, ...}, "tasks_sha256": "9c1e...", ...}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.errors import UserError
from tau2rl.runs.files import read_json, write_json, writing

SCHEMA = 1
BUCKETS = ("always", "easy", "medium", "hard", "never", "unknown")
SET_ASIDE = ("always", "never")  # a group of such a task has no signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of tasks before a training: `Profile(evidence={"retail/17": (3.0, 8.0)}, set_aside=frozenset(), ...)`."""

    evidence: Mapping[str, tuple[float, float]]  # task key -> (solved, graded attempts)
    set_aside: frozenset[str]  # the keys of tasks that were solved always, or never
    tasks_sha256: str | None  # of the file of tasks that was played; None: tau2's own
    digest: str


def bucket(solved: int, valid: int, *, easy: float, hard: float, least: int) -> str:
    """Where a task stands: `easy` from a pass rate of `easy` on, `hard` up to `hard`; "unknown" below `least` graded attempts.

    >>> [bucket(solved, 8, easy=0.7, hard=0.3, least=4) for solved in (0, 2, 4, 6, 8)]
    ['never', 'hard', 'medium', 'easy', 'always']
    """
    if valid < max(1, least):
        return "unknown"
    if solved in (0, valid):
        return "always" if solved else "never"
    rate = solved / valid
    return "easy" if rate >= easy else "hard" if rate <= hard else "medium"


def write_profile(file: Path, content: Mapping[str, Any]) -> str:
    """Freeze a profile; the digest that names it."""
    whole = {"schema": SCHEMA, **content}
    digest = _digest(whole)
    with writing(file):
        write_json(file, {**whole, "digest": digest})
    return digest


def read_profile(file: Path) -> Profile:
    """A profile as it was frozen. Raises UserError: none, or changed since."""
    path, hint = file.expanduser(), "make one with `tau2rl synth profile RUN_DIR...`"
    if not path.is_file():
        raise UserError(f"no profile `{file}`", hint=hint)
    content = read_json(path)
    if content.get("schema") != SCHEMA or not isinstance(content.get("tasks"), dict):
        raise UserError(f"`{file}` is no profile of this version", hint=hint)
    if content.get("digest") != _digest({key: value for key, value in content.items() if key != "digest"}):
        raise UserError(f"`{file}` is not what was frozen: its hash is another", hint=hint)
    tasks = cast("dict[str, dict[str, Any]]", content["tasks"])
    return Profile(
        evidence={key: (float(task["solved"]), float(task["valid"])) for key, task in tasks.items()},
        set_aside=frozenset(key for key, task in tasks.items() if task["bucket"] in SET_ASIDE),
        tasks_sha256=content["tasks_sha256"],
        digest=str(content["digest"]),
    )


def profile_for(file: Path, keys: Iterable[str], *, tasks_sha256: str | None) -> Profile:
    """The profile of tasks that are to be trained on. Raises UserError where it is one of others, or leaves none of them."""
    profile, wanted = read_profile(file), set(keys)
    if not wanted & profile.evidence.keys():
        raise UserError(f"`{file}` knows none of the tasks to train on", hint="profile a run on these tasks")
    if profile.tasks_sha256 != tasks_sha256:
        raise UserError(
            f"`{file}` is the profile of another file of tasks: the hashes differ", hint="profile a run on this file of tasks"
        )
    if wanted <= profile.set_aside:
        raise UserError(
            f"`{file}` sets all {len(wanted)} tasks aside: each was solved always, or never",
            hint="take other tasks, or train without `algo.curriculum.profile`",
        )
    return profile


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

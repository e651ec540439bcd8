"""The test-set access log: how often the checkpoints of one training run were evaluated on a test split.

A test says what it says once: whoever goes back, changes the choice and tests again has begun to choose by the test. Nobody is
stopped; but each access is written into the `selection.json` of the training run, and every report says how many there were.
Only what goes through `tau2rl eval` can be counted, and only after `tau2rl select-checkpoint`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.config import EvalConfig
from tau2rl.env.tasks import is_test
from tau2rl.runs.checkpoints import training_run
from tau2rl.runs.files import write_json
from tau2rl.runs.provenance import checkpoint_hash
from tau2rl.runs.reports import SELECTION, read_selection
from tau2rl.runs.sessions import RunLock
from tau2rl.types import TaskRef

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A test of a checkpoint whose run has a selection: `Access(selection=..., checkpoint=..., sha256="8f...", chosen=True)`."""

    selection: Path  # the `selection.json`
    checkpoint: Path
    sha256: str
    chosen: bool  # whether it is the one that was chosen
    domains: tuple[str, ...]  # of the test tasks

    def described(self) -> dict[str, Any]:
        """What `environment.json` records."""
        return {"selection": str(self.selection), "chosen": self.chosen, "sha256": self.sha256}


def find_test_access(config: EvalConfig, agent: str, tasks: Iterable[TaskRef]) -> Access | None:
    """The access that an evaluation is; None when it has no test task, or its checkpoint no selection beside it.

    `agent` is how the policy describes itself: an SGLang server says there which directory it serves.
    """
    checkpoint = evaluated_checkpoint(config, agent)
    run = None if checkpoint is None else training_run(checkpoint)
    if checkpoint is None or run is None or not (run / SELECTION).is_file():
        return None
    domains = tuple(sorted({task.domain for task in tasks if is_test(task)}))
    if not domains:
        return None
    sha256 = checkpoint_hash(checkpoint)
    chosen = read_selection(run / SELECTION)["chosen"].get("sha256") == sha256
    return Access(selection=run / SELECTION, checkpoint=checkpoint, sha256=sha256, chosen=chosen, domains=domains)


def log_test_access(access: Access, *, run: Path, digest: str) -> dict[str, Any]:
    """Write the access into the log, once for each run folder however often it is resumed; what the report says of it."""
    lock = RunLock(access.selection.parent / "logs" / "selection.lock")
    try:
        selection = read_selection(access.selection)
        entries: list[dict[str, Any]] = selection["test_access_log"]
        mine = next((entry for entry in entries if (entry["run"], entry["digest"]) == (str(run), digest)), None)
        if mine is None:
            mine = {
                "run": str(run),
                "digest": digest,
                "sha256": access.sha256,
                "chosen": access.chosen,
                "domains": list(access.domains),
            }
            entries.append(mine)
            write_json(access.selection, selection)
    finally:
        lock.close()
    earlier = entries[: entries.index(mine)]
    again = sorted({name for entry in earlier for name in entry["domains"]} & set(access.domains))
    summary = {**access.described(), "number": len(earlier) + 1, "seen_before": again}
    words = warning(summary)
    if words:
        log.warning("%s", words)
    return {**summary, "warning": words}


def warning(test_access: dict[str, Any]) -> str:
    """What has to be said of an access to the test split; "" of the first one for what was chosen.

    >>> warning({"selection": "a/selection.json", "chosen": True, "number": 2, "seen_before": ["retail"]})
    'the test tasks of retail were used before for this training run: this is access 2, see `a/selection.json`'
    >>> warning({"selection": "a/selection.json", "chosen": True, "number": 1, "seen_before": []})
    ''
    """
    file, words = test_access["selection"], list[str]()
    if not test_access["chosen"]:
        words.append(f"this checkpoint was not chosen by `{file}`: its test result is no ground to choose it")
    if test_access["seen_before"]:
        words.append(
            f"the test tasks of {', '.join(test_access['seen_before'])} were used before for this training run: "
            f"this is access {test_access['number']}, see `{file}`"
        )
    return "; ".join(words)


def evaluated_checkpoint(config: EvalConfig, agent: str) -> Path | None:
    """The directory of the model that is evaluated; None for APIs, scripts, and servers whose directory is not seen from here."""
    if config.policy.kind == "local":
        return None if config.policy.checkpoint is None else config.policy.checkpoint.expanduser()
    if config.policy.kind != "sglang":
        return None
    served = Path(agent.rpartition(", ")[0] or agent)  # `/models/a, 32768 tokens of context`
    return served if (served / "config.json").is_file() else None

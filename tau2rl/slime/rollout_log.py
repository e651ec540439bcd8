"""What the rollout process writes into the run folder: episodes as they end, a line of numbers a rollout and one a validation."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tau2rl.config import GrpoConfig, dump
from tau2rl.report.cost import Costs, Session
from tau2rl.rollouts.monitors import ConversationSample, Monitor, dominated, habit_metrics
from tau2rl.runs import records
from tau2rl.runs.files import json_lines, write_json
from tau2rl.runs.records import write_validation
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.sessions import session_folders
from tau2rl.runs.trackers import JsonlSink, open_trackers
from tau2rl.settings import available_cores
from tau2rl.slime.advantages import Member, batch_advantages
from tau2rl.slime.samples import ABORTED, SampleMetadata
from tau2rl.types import Episode, EpisodeRecord, Status

log = logging.getLogger(__name__)
FILE = "rollout.json"
Numbers = dict[str, float | int | None]


class RolloutLog:
    """The run folder as the rollout process sees it: it appends whole lines. The job's own process holds the folder's lock.

    A full disk ends no rollout that eight GPUs wait for: it is said in slime's log.
    """

    def __init__(self, folder: Path, config: GrpoConfig) -> None:
        self._folder = folder
        self._config = config
        self._redactor = Redactor(key_variables(dump(config)))
        self._lock = threading.Lock()  # between the event loop's helpers, which append, and the actor's thread, which reads
        self._played: list[SampleMetadata] = []
        self._validated: list[tuple[EpisodeRecord, SampleMetadata]] = []
        self._last_rollout = -1
        self._monitor: Monitor | None = None  # made at the first rollout: by then a resumed run has taken back later lines
        self._costs = CostTracker(folder, config)
        self._trackers = open_trackers(folder, config, process="rollout")  # this process's own
        self._sample = ConversationSample(config)

    def clean(self, text: str) -> str:
        """The text without the values of keys."""
        return self._redactor.text(text)

    def add(self, record: EpisodeRecord, metadata: SampleMetadata, *, validation: bool) -> None:
        """Take note of an episode. One of a validation is written with all others of it, when it is over."""
        with self._lock:
            self._costs.add(record.episode)
            self._sample.add(record)
            if validation:
                self._validated.append((record, metadata))
                return
            self._played.append(metadata)
            if record.episode.status is Status.FAILED:
                self._append("failures.jsonl", record)
            elif self._config.rollout.keep:
                self._append("episodes.jsonl", record)

    def add_aborted(self, metadata: SampleMetadata) -> None:
        """Count an episode that slime ended."""
        with self._lock:
            self._played.append(metadata)

    def end_rollout(self, rollout_id: int, batch: Sequence[Member], seconds: float) -> Numbers:
        """The numbers of a rollout: of every episode that was played in it, and of the batch that is trained on."""
        with self._lock:
            played, self._played, self._last_rollout = self._played, [], rollout_id
            self._costs.end_rollout(seconds)
        numbers = rollout_numbers(played, batch, self._config) | {"seconds/rollout": seconds}
        numbers |= self._watch(rollout_id + 1, numbers)
        self._write_numbers(rollout_id + 1, numbers)
        return numbers

    def end_validation(self, rollout_id: int) -> Numbers:
        """Keep a validation under the number of steps that the model has behind it; its numbers."""
        with self._lock:
            validated, self._validated = self._validated, []
            self._costs.end_validation()
        # Before training slime validates at rollout 0, and again behind it: by then the rollout has been logged.
        step = rollout_id + 1 if rollout_id <= self._last_rollout else rollout_id
        try:
            write_validation(self._folder, step, [record for record, _ in validated], redactor=self._redactor)
        except OSError as error:
            log.error("cannot keep the validation behind step %d: %s", step, error)
        numbers = validation_numbers([metadata for _, metadata in validated])
        self._write_numbers(step, numbers)
        return numbers

    def _watch(self, step: int, numbers: Numbers) -> dict[str, float]:
        """The marks of the monitors; a new alarm is said in slime's log."""
        if self._config.monitors.action == "off":
            return {}
        if self._monitor is None:
            metrics = self._folder / "metrics.jsonl"
            lines = [values for _, values in json_lines(metrics)] if metrics.exists() else []
            history = (line for line in lines if line["step"] < step and "success" in line)  # validations have lines of their own
            self._monitor = Monitor(self._config.monitors, history)
        marks, alarms = self._monitor.check(numbers)
        for name, words in alarms.items():
            log.warning("step %d, alarm `%s`: %s", step, name, words)
        return marks

    def _append(self, name: str, record: EpisodeRecord) -> None:
        line = records.encode(self._redactor.record(record))
        try:
            with (self._folder / name).open("ab") as file:
                file.write(line)
        except OSError as error:
            log.error("cannot keep %s: %s", record.attempt.key, error)

    def _write_numbers(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        with self._lock:
            conversations = self._sample.take()
        self._trackers.write(step, numbers, conversations)
        try:
            sink = JsonlSink(self._folder / "metrics.jsonl")
            sink.write(step, numbers)
            sink.close()
        except OSError as error:
            log.error("cannot keep the numbers of step %d: %s", step, error)


class CostTracker:
    """Sums over the episodes of this process, and what it took while it had rollouts to play. Written down behind each."""

    def __init__(self, folder: Path, config: GrpoConfig) -> None:
        """`folder` is the run's; the session that is going on has the highest number."""
        self._folder = folder
        self._workers = config.rollout.workers
        self._costs = Costs()
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._cpu_before = time.process_time()

    def add(self, episode: Episode) -> None:
        """Count an episode, of validation too."""
        self._costs.add(episode)

    def end_rollout(self, seconds: float) -> None:
        """A rollout has ended that took so long."""
        self._seconds += seconds
        now = time.process_time()
        self._cpu_seconds += now - self._cpu_before
        self._cpu_before = now
        self._write()

    def end_validation(self) -> None:
        """A validation has ended. Nobody says how long it took, so its CPU time is not held against the rollouts."""
        self._cpu_before = time.process_time()
        self._write()

    def _write(self) -> None:
        session = Session(
            seconds=self._seconds,
            cpu_seconds=self._cpu_seconds,
            cores=available_cores(),
            workers=self._workers,
            played=self._costs,
        )
        folders = session_folders(self._folder)
        if not folders:
            return
        try:
            write_json(folders[max(folders)] / FILE, session.to_json())
        except OSError as error:
            log.error("cannot keep what the rollouts took: %s", error)


def rollout_numbers(played: Sequence[SampleMetadata], batch: Sequence[Member], config: GrpoConfig) -> Numbers:
    """The curves of a rollout, by the names that the local backend uses; times are means, counts are counts."""
    ended = [m for m in played if m.status != ABORTED]
    evidence = [m for m in ended if m.status != Status.FAILED.value]
    statuses = Counter(m.status for m in played)
    groups: dict[object, list[bool]] = {}
    for member, trained in zip(batch, batch_advantages(batch, config.algo).trained, strict=True):
        groups.setdefault(member.group, []).append(trained)
    return {
        **_outcomes(evidence),
        **{f"domain/{name}/{key}": value for name, part in _by_domain(evidence) for key, value in _outcomes(part).items()},
        "groups/trained": len(groups),
        "groups/useful": sum(any(trained) for trained in groups.values()),
        "episodes/played": len(ended),
        "episodes/failed": statuses["failed"],
        "episodes/excluded": sum(not m.evidence for m in evidence),
        "episodes/aborted": statuses[ABORTED],
        "episodes/tried_again": sum(m.tries > 1 for m in ended),
        "episodes/truncated": statuses["truncated"] / max(1, len(evidence)),
        "episodes/malformed": statuses["malformed"] / max(1, len(evidence)),
        **{f"fault/{name}": sum(m.fault == name for m in ended) for name in ("agent", "user", "task", "infra")},
        "turns/mean": _mean([float(m.turns) for m in evidence]),
        "tokens/sampled": sum(m.sampled_tokens for m in ended),
        "tokens/thought": sum(m.thought_tokens for m in ended),
        "calls/refused": _mean([float(m.refused) for m in evidence]),
        "score/dominated": dominated((m.task, bool(m.solved), m.score) for m in evidence if m.score is not None),
        **habit_metrics([m.habits for m in evidence]),
        "seconds/episode": _mean([m.seconds for m in evidence]),
        "seconds/policy_turn": _ratio(sum(m.policy_seconds for m in ended), sum(m.turns for m in ended)),
        "seconds/user_message": _ratio(sum(m.user_seconds for m in ended), sum(m.user_messages for m in ended)),
    }


def validation_numbers(played: Sequence[SampleMetadata]) -> Numbers:
    """How a validation went; what FAILED is in no share."""
    evidence = [m for m in played if m.solved is not None]
    shares = {f"val/{name}/pass@1": _solved(part) for name, part in _by_domain(evidence)}
    return {"val/pass@1": _solved(evidence), "val/episodes": len(evidence), "val/failed": len(played) - len(evidence), **shares}


def _outcomes(evidence: Sequence[SampleMetadata]) -> Numbers:
    return {
        "reward/mean": _mean([m.reward for m in evidence if m.reward is not None]),
        "score/mean": _mean([m.score for m in evidence if m.score is not None]),
        "success": _solved(evidence),
    }


def _by_domain(played: Iterable[SampleMetadata]) -> list[tuple[str, list[SampleMetadata]]]:
    found: dict[str, list[SampleMetadata]] = {}
    for m in played:
        found.setdefault(m.domain, []).append(m)
    return sorted(found.items())


def _solved(played: Sequence[SampleMetadata]) -> float | None:
    return _mean([float(bool(m.solved)) for m in played])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None

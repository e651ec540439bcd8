"""What the rollout process writes into the run folder: episodes as they end, one line of numbers a round and one a look."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tau2rl.config import GrpoConfig, dump
from tau2rl.report.cost import Costs, Session
from tau2rl.reward.advantages import advantage_spec
from tau2rl.runs import records
from tau2rl.runs.files import write_json
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.sessions import session_folders
from tau2rl.runs.tracking import JsonlSink
from tau2rl.runs.validation import write_validation
from tau2rl.settings import available_cores
from tau2rl.slime.advantages import Member, score_batch
from tau2rl.slime.metadata import Marks
from tau2rl.types import Episode, EpisodeRecord, Status

log = logging.getLogger(__name__)
FILE = "rollout.json"


class Spending:
    """Sums over the episodes of this process, and what it took while it had rounds to play. Written down behind each."""

    def __init__(self, folder: Path, config: GrpoConfig) -> None:
        """`folder` is the run's; the start that is going on has the highest number."""
        self._folder = folder
        self._workers = config.rollout.workers
        self._costs = Costs()
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._cpu_before = time.process_time()

    def add(self, episode: Episode) -> None:
        """Count an episode, of a look too."""
        self._costs.add(episode)

    def round(self, seconds: float) -> None:
        """A round has ended that took so long."""
        self._seconds += seconds
        now = time.process_time()
        self._cpu_seconds += now - self._cpu_before
        self._cpu_before = now
        self._write()

    def look(self) -> None:
        """A look has ended. Nobody says how long it took, so its CPU time is not held against the rounds."""
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
        except OSError as error:  # a full disk must not end a rollout that eight GPUs wait for
            log.error("cannot keep what the rollouts took: %s", error)


Numbers = dict[str, float | int | None]


class Journal:
    """The run folder as the rollout process sees it: it appends whole lines. The job's own process holds the folder's lock."""

    def __init__(self, folder: Path, config: GrpoConfig) -> None:
        self._folder = folder
        self._config = config
        self._redactor = Redactor(key_variables(dump(config)))
        self._lock = threading.Lock()  # between the event loop's helpers, which append, and the actor's thread, which reads
        self._played: list[Marks] = []
        self._looked: list[tuple[EpisodeRecord, Marks]] = []
        self._last_round = -1
        self._spending = Spending(folder, config)

    def clean(self, text: str) -> str:
        """The text without the values of keys."""
        return self._redactor.text(text)

    def keep(self, record: EpisodeRecord, marks: Marks, *, look: bool) -> None:
        """Take note of an episode. One of a look is written with all others of it, when it is over."""
        with self._lock:
            self._spending.add(record.episode)
            if look:
                self._looked.append((record, marks))
                return
            self._played.append(marks)
            if record.episode.status is Status.FAILED:
                self._append("failures.jsonl", record)
            elif self._config.rollout.keep:
                self._append("episodes.jsonl", record)

    def ended_early(self, marks: Marks) -> None:
        """Count an episode that slime called off."""
        with self._lock:
            self._played.append(marks)

    def round(self, rollout_id: int, batch: Sequence[Member], seconds: float) -> Numbers:
        """The numbers of a round: of every episode that was played in it, and of the batch that is trained on."""
        with self._lock:
            played, self._played, self._last_round = self._played, [], rollout_id
            self._spending.round(seconds)
        numbers = round_numbers(played, batch, self._config) | {"seconds/rollout": seconds}
        self._write_numbers(rollout_id + 1, numbers)
        return numbers

    def look(self, rollout_id: int, samples: Sequence[Marks]) -> tuple[int, Numbers]:
        """Keep a look at the selection tasks; (how many rounds the model has behind it, the numbers)."""
        with self._lock:
            looked, self._looked = self._looked, []
            self._spending.look()
        # Before training slime looks at round 0, and again behind it: by then the round has been logged.
        step = rollout_id + 1 if rollout_id <= self._last_round else rollout_id
        try:
            write_validation(self._folder, step, [record for record, _ in looked], redactor=self._redactor)
        except OSError as error:
            log.error("cannot keep the look behind step %d: %s", step, error)
        numbers = look_numbers([marks for _, marks in looked] or samples)
        self._write_numbers(step, numbers)
        return step, numbers

    def _append(self, name: str, record: EpisodeRecord) -> None:
        line = records.encode(self._redactor.record(record))
        try:
            with (self._folder / name).open("ab") as file:
                file.write(line)
        except OSError as error:  # a full disk must not end a rollout that eight GPUs wait for
            log.error("cannot keep %s: %s", record.attempt.key, error)

    def _write_numbers(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        try:
            sink = JsonlSink(self._folder / "metrics.jsonl")
            sink.write(step, numbers)
            sink.close()
        except OSError as error:
            log.error("cannot keep the numbers of step %d: %s", step, error)


def round_numbers(played: Sequence[Marks], batch: Sequence[Member], config: GrpoConfig) -> Numbers:
    """The curves of a round, by the names that the local backend uses; times are means, counts are counts."""
    ended = [m for m in played if m.status != "aborted"]
    evidence = [m for m in ended if m.status != Status.FAILED.value]
    statuses = Counter(m.status for m in played)
    groups: dict[object, list[bool]] = {}
    for member, teaches in zip(batch, score_batch(batch, advantage_spec(config.algo)).teaches, strict=True):
        groups.setdefault(member.group, []).append(teaches)
    return {
        **_outcomes(evidence),
        **{f"domain/{name}/{key}": value for name, part in _by_domain(evidence) for key, value in _outcomes(part).items()},
        "groups/trained": len(groups),
        "groups/useful": sum(any(teaches) for teaches in groups.values()),
        "episodes/played": len(ended),
        "episodes/failed": statuses["failed"],
        "episodes/aborted": statuses["aborted"],
        "episodes/tried_again": sum(m.tries > 1 for m in ended),
        "episodes/truncated": statuses["truncated"] / max(1, len(evidence)),
        "episodes/malformed": statuses["malformed"] / max(1, len(evidence)),
        **{f"fault/{name}": sum(m.fault == name for m in ended) for name in ("agent", "user", "task", "infra")},
        "turns/mean": _mean([float(m.turns) for m in evidence]),
        "tokens/sampled": sum(m.sampled_tokens for m in ended),
        "calls/refused": _mean([float(m.refused) for m in evidence]),
        "seconds/episode": _mean([m.seconds for m in evidence]),
        "seconds/policy_turn": _ratio(sum(m.policy_seconds for m in ended), sum(m.turns for m in ended)),
        "seconds/user_message": _ratio(sum(m.user_seconds for m in ended), sum(m.user_messages for m in ended)),
    }


def look_numbers(looked: Sequence[Marks]) -> Numbers:
    """How a look went; what FAILED is in no share."""
    evidence = [m for m in looked if m.solved is not None]
    shares = {f"val/{name}/pass@1": _solved(part) for name, part in _by_domain(evidence)}
    return {"val/pass@1": _solved(evidence), "val/episodes": len(evidence), "val/failed": len(looked) - len(evidence), **shares}


def _outcomes(evidence: Sequence[Marks]) -> Numbers:
    return {
        "reward/mean": _mean([m.reward for m in evidence if m.reward is not None]),
        "score/mean": _mean([m.score for m in evidence if m.score is not None]),
        "success": _solved(evidence),
    }


def _by_domain(marks: Iterable[Marks]) -> list[tuple[str, list[Marks]]]:
    found: dict[str, list[Marks]] = {}
    for m in marks:
        found.setdefault(m.domain, []).append(m)
    return sorted(found.items())


def _solved(marks: Sequence[Marks]) -> float | None:
    return _mean([float(bool(m.solved)) for m in marks])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None

"""Which tasks slime plays next: those that the local backend would choose from the same evidence.

slime's own source of prompts makes the groups, of the tasks that `data.task_sampling.TaskSampler` names. Behind each rollout
`observe` tells the sampler how every group ended and writes `rollout/tasks_N.json`, where it is now, beside the checkpoints.
A resumed job reads that file and goes on with the same next task.

    --data-source-path tau2rl.slime.data_source.TaskDataSource
    --rollout-all-samples-process-path tau2rl.slime.data_source.observe
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slime.rollout.data_source import RolloutDataSource

from tau2rl.data.task_sampling import TaskSampler
from tau2rl.runs.files import write_json
from tau2rl.slime.checkpoints import PLACE, PLACES, read_place
from tau2rl.slime.run_context import run_context
from tau2rl.slime.samples import flat_samples, metadata_of, task_of


def observe(args: Any, groups: Sequence[Sequence[Any]], get_samples: Callable[[int], Any]) -> None:
    """slime's hook for all samples of a rollout, called once behind it; `get_samples` is the source's own method."""
    source: TaskDataSource = get_samples.__self__  # pyright: ignore[reportFunctionMemberAccess]
    source.ended(groups)


class TaskDataSource(RolloutDataSource):
    """slime's prompts in the order that our task sampler says."""

    def __init__(self, args: Any) -> None:
        # tau2 takes seconds to import: here, before anything plays, and not on the event loop of all episodes.
        self._rollout_of = importlib.import_module("tau2rl.slime.rollout").rollout_of
        super().__init__(args)
        config = run_context(args).grpo
        self._rows = {task_of(row).key: row for row in self.dataset.origin_samples}
        self._sampler = TaskSampler(
            list(self._rows), config.algo.curriculum, group_size=config.rollout.num_samples, seed=config.seed
        )
        self._rollout = -1  # the last one that ended

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """So many new groups. Raises what has ended the run, should slime have gone on without a word."""
        self._rollout_of(self.args).raise_fatal()
        self.dataset.samples = [self._rows[key] for key in self._sampler.sample(num_samples)]
        self.sample_offset = 0
        return super().get_samples(num_samples)

    def ended(self, groups: Sequence[Sequence[Any]]) -> None:
        """Take note of a rollout, and write where its checkpoint goes on: train_async.py draws the next batch before it saves."""
        outcomes: dict[str, list[bool | None]] = {}
        for attempt in (attempt for group in groups for attempt in group):
            metadata = metadata_of(flat_samples([attempt])[0])  # an episode in several parts ended once
            outcomes.setdefault(metadata.task, []).append(metadata.solved)
        self._sampler.observe(outcomes)
        self._rollout += 1
        self._write(self._rollout)

    def save(self, rollout_id: int) -> None:
        """slime's call behind a checkpoint. `ended` has written the place already, unless slime never called `observe`."""
        if self._rollout < rollout_id:
            self._write(rollout_id)

    def load(self, rollout_id: int | None = None) -> None:
        """Go on behind a rollout; -1 is the beginning. Raises UserError for a place that was not saved, or not by us."""
        if rollout_id is None or rollout_id < 0:
            return
        place = read_place(Path(self.args.load), rollout_id)
        self._sampler.restore(place.pop("tasks"))
        for name in PLACE[:-1]:
            setattr(self, name, place[name])
        self._rollout = rollout_id

    def __len__(self) -> int:
        return len(self._rows)

    def _write(self, rollout_id: int) -> None:
        path = Path(self.args.save) / PLACES[True].format(rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**{name: getattr(self, name) for name in PLACE[:-1]}, "tasks": self._sampler.state()})

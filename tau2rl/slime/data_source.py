"""Which tasks slime plays next: what the local backend would choose from the same evidence (`data/task_sampling.py`).

slime makes one source of prompts, in the process that plays, and saves it with every checkpoint. `learn` tells it how a rollout
ended: it is called behind each, with every group that was played, those that teach nothing too.

    --data-source-path tau2rl.slime.data_source.CurriculumDataSource
    --rollout-all-samples-process-path tau2rl.slime.data_source.learn
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slime.rollout.data_source import RolloutDataSource, RolloutDataSourceWithBuffer

from tau2rl.data.task_sampling import CurriculumState, curriculum_spec, draw, observe
from tau2rl.errors import UserError
from tau2rl.runs.files import read_json, write_json
from tau2rl.slime.job import received
from tau2rl.slime.metadata import KEY
from tau2rl.types import TaskRef

PLACE = ("sample_offset", "epoch_id", "sample_group_index", "sample_index")  # slime's own names for where it is
KEPT = 2  # ends of rollouts that are remembered: train_async.py plays one ahead of what it saves


def learn(args: Any, groups: Sequence[Sequence[Any]], get_samples: Callable[[int], Any]) -> None:
    """slime's hook for all samples of a rollout, called once behind it; `get_samples` is the source's own method."""
    source: CurriculumDataSource = get_samples.__self__  # pyright: ignore[reportFunctionMemberAccess]
    source.ended(groups)


class _Chosen(RolloutDataSource):
    """slime's prompts, in the order that the curriculum says; without one, slime's shuffled epochs."""

    def __init__(self, args: Any) -> None:
        # tau2 and litellm take seconds to import: here, before anything plays, and not on the event loop of all episodes.
        importlib.import_module("tau2rl.slime.rollout")
        super().__init__(args)
        self._config = received(args).grpo
        self._rows = {_key(row): row for row in self.dataset.origin_samples}
        self._spec = curriculum_spec(self._config.algo.curriculum, group_size=self._config.rollout.num_samples)
        self._known = CurriculumState()
        self._drawn = 0  # draws so far, those of dropped groups too
        self._rollout = -1  # the last one that ended
        self._ends: dict[int, dict[str, Any]] = {}

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """So many new groups."""
        if self._config.algo.curriculum.enabled:
            self._drawn += 1
            keys = draw(self._known, list(self._rows), num_samples, self._spec, seed=self._config.seed, number=self._drawn)
            self.dataset.samples, self.sample_offset = [self._rows[key] for key in keys], 0
        return super().get_samples(num_samples)

    def ended(self, groups: Sequence[Sequence[Any]]) -> None:
        """Take note of a rollout: what became of each task, and the place that its checkpoint has to come back to."""
        outcomes: dict[str, list[bool | None]] = {}
        for attempt in (attempt for group in groups for attempt in group):
            sample = attempt[0] if isinstance(attempt, list) else attempt  # an episode in several parts ended once
            outcomes.setdefault(_key(sample), []).append(sample.metadata.get(KEY, {}).get("solved"))
        if self._config.algo.curriculum.enabled:
            self._known = observe(self._known, outcomes, self._spec)
        self._rollout += 1
        self._ends[self._rollout] = self._state()
        self._ends.pop(self._rollout - KEPT, None)

    def save(self, rollout_id: int) -> None:
        """Write the place behind a rollout, beside its checkpoint."""
        path = _state_file(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self._ends[rollout_id])

    def load(self, rollout_id: int | None = None) -> None:
        """Go on behind a rollout; -1 is the beginning. Raises UserError when its place was not saved."""
        if rollout_id is None or rollout_id < 0:
            return
        path = _state_file(self.args.load, rollout_id)
        if not path.exists():
            raise UserError(
                f"`{path}` is missing: nobody knows which tasks come behind rollout {rollout_id}",
                hint=f"name an earlier checkpoint in `{path.parents[1] / 'latest_checkpointed_iteration.txt'}`",
            )
        state = read_json(path)
        for name in PLACE:
            setattr(self, name, state[name])
        self._drawn, self._known = state["drawn"], CurriculumState.from_json(state["curriculum"])
        self._rollout, self._ends = rollout_id, {rollout_id: state}
        if self.args.rollout_shuffle and not self._config.algo.curriculum.enabled:
            self.dataset.shuffle(self.epoch_id)

    def __len__(self) -> int:
        return len(self._rows)

    def _state(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in PLACE}, "drawn": self._drawn, "curriculum": self._known.to_json()}


class CurriculumDataSource(RolloutDataSourceWithBuffer, _Chosen):
    """slime's source with its buffer; what is not in the buffer is new, and chosen here."""


def _key(sample: Any) -> str:
    return TaskRef(**sample.metadata["task"]).key


def _state_file(folder: str, rollout_id: int) -> Path:
    return Path(folder) / "rollout" / f"tasks_{rollout_id}.json"

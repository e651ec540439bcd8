"""What slime's trainers call. Pinned here:

- attempts are counted over all ranks and by optimizer step; one in several samples, on several ranks, is one
- a step with nothing to learn from takes neither optimizer nor schedule a step further, and the next one does again
- the schedule counts a step as a whole one, whatever was removed from it
- Dr. GRPO's divisor is that of the run's settings, which Megatron's own `args` hold
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tau2rl.config import GrpoConfig, build
from tau2rl.slime import hooks
from tau2rl.slime.run_context import SlimeRun, custom_config
from tests.stubs.slime_stubs import module

RANK = """
import sys
from types import ModuleType, SimpleNamespace
import torch
rank, file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
for name in ("megatron", "megatron.core"):
    sys.modules[name] = ModuleType(name)
sys.modules["megatron.core"].mpu = SimpleNamespace(get_data_parallel_group=lambda with_context_parallel: None)
from tau2rl.slime.hooks import count_trained
# Two steps of four attempts. Step 1: rank 0 has a whole attempt and a removed one, each rank has half of a third; rank 1 has a
# fourth. Step 2: rank 0 has a removed attempt, rank 1 another one.
masks = {0: [[1, 1], [0, 0], [1, 0], [0]], 1: [[0, 1], [1], [0], [0, 0]]}[rank]
sums = {0: [2, 0, 2, 0], 1: [2, 1, 0, 0]}[rank]
args = SimpleNamespace(calculate_per_token_loss=False)
data = {
    "loss_masks": [torch.tensor(mask) for mask in masks], "rollout_mask_sums": torch.tensor(sums, dtype=torch.float32),
    "micro_batch_indices": [[0, 1], [2], [3]] if rank == 0 else [[0], [1, 2], [3]], "num_microbatches": [2, 1],
    "global_batch_sizes": [4, 4],
}
sizes = data["global_batch_sizes"]
count_trained(args, 0, data)
assert args.tau2rl_trained == [3, 0], args.tau2rl_trained
assert sizes == [3, 1], sizes  # slime has taken the list already; nothing is divided by 0
args.calculate_per_token_loss, sizes[:] = True, [4, 4]
count_trained(args, 0, data)
assert sizes == [4, 4]  # a mean over tokens is not divided by attempts
"""


def test_attempts_are_counted_over_ranks(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], cwd=root, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [rank.communicate()[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said


class Schedule:
    """Counts as Megatron's does."""

    counted = 0

    def step(self, increment: int) -> None:
        self.counted += increment


class Optimizer:
    """Counts its steps."""

    steps = 0

    def step(self) -> tuple[bool, float, int | None]:
        self.steps += 1
        return True, 0.5, None


def test_a_step_with_nothing_to_learn_from_moves_nothing() -> None:
    optimizer, schedule = Optimizer(), Schedule()
    args = SimpleNamespace(tau2rl_trained=[3, 0, 4], global_batch_size=4)
    norms: list[float] = []
    for step in range(3):
        hooks.before_train_step(args, 7, step, None, optimizer, schedule)
        succeeded, norm, _ = optimizer.step()  # as slime's `train_one_step` does it
        schedule.step(increment=max(1, args.tau2rl_trained[step]))
        assert succeeded
        norms.append(norm)
    assert (optimizer.steps, norms) == (2, [0.5, 0.0, 0.5])
    assert schedule.counted == 8  # two whole steps


def test_the_sum_is_divided_by_the_runs_scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    algo = {"loss_aggregation": "constant", "loss_scale": 4}
    config = build(GrpoConfig, {"model": {"init": "a/checkpoint"}, "backend": "slime", "algo": algo})
    args = SimpleNamespace(**custom_config(config, SlimeRun(folder=tmp_path, shape=None)))
    for name in ("megatron", "megatron.training", "megatron.training.global_vars"):
        monkeypatch.setitem(sys.modules, name, module(name, get_args=lambda: args))
    reduce = hooks.scaled_sum([5, 3], [2, 3], [torch.tensor([1.0, 0.0]), torch.ones(3)], False)
    found = reduce(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert float(found) == pytest.approx(0.25 + 3.0)  # a fourth of 1, a fourth of 3 + 4 + 5

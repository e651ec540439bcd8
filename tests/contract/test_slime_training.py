"""From our samples to slime's gradient, through its own conversion, split, advantages and loss; needs a checkout. Pinned here:

- the gradient is on the tokens that were sampled and on no other, and pushes each up or down as its advantage says
- an estimator of turns gives a sample of three turns three advantages, with the batch split over two ranks
- what failed and what has no signal is in the batch, in no sum and in no divisor; nothing becomes a NaN, not even when all failed
- a step with nothing to learn from moves no weight, by slime's own order of calls
- Megatron has slime's own `args`, where a sum's divisor is read
- the trainer's advantages are ours, in float32
- a batch that carries nothing is refused and not trained on
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tau2rl.slime.samples import metadata_of
from tests.contract.slime_episodes import DONE, RIGHT, agent, codec_of
from tests.contract.slime_job import RouterStub, SlimeJob, write_checkpoint
from tests.stubs.slime_stubs import checkout

VOCABULARY = 640


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout()
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """slime's formulas reduce over a group of processes; here it has one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, one_process: None) -> Iterator[Callable[..., SlimeJob]]:
    jobs: list[SlimeJob] = []

    def start(server: RouterStub, **values: Any) -> SlimeJob:
        jobs.append(SlimeJob(tmp_path / "run", monkeypatch, server, checkpoint=model, **{"seed": 303, **values}))
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()


def ranks(job: SlimeJob, boxes: list[Any]) -> list[dict[str, Any]]:
    """What each of two data-parallel ranks has after `compute_advantages_and_returns`."""
    data = importlib.import_module("slime.utils.data")
    loss = importlib.import_module("slime.backends.megatron_utils.loss")
    found = [data.process_rollout_data(job.args, boxes, rank, len(boxes)) for rank in range(len(boxes))]
    for rank in found:  # slime/backends/megatron_utils/actor.py does this on its way to the GPU
        for key in ("rollout_log_probs", "teacher_log_probs"):
            if key in rank:
                lengths = zip(rank[key], rank["total_lengths"], rank["response_lengths"], strict=True)
                rank[key] = [loss.slice_log_prob_with_cp(values, total, response) for values, total, response in lengths]
        loss.compute_advantages_and_returns(job.args, rank)
    return found


def gradients(job: SlimeJob, rank: dict[str, Any], args_of: Callable[[Any], None]) -> Iterator[tuple[int, Any, Any]]:
    """(sample, its logits' gradient [tokens, vocabulary], the loss), for every sample of a rank."""
    import torch

    loss = importlib.import_module("slime.backends.megatron_utils.loss")
    args_of(job.args)
    keys = ("total_lengths", "response_lengths", "loss_masks", "advantages", "returns", "rollout_log_probs")
    for indices in rank["micro_batch_indices"]:
        batch = {key: [rank[key][i] for i in indices] for key in keys}
        batch |= {
            "unconcat_tokens": [rank["tokens"][i] for i in indices],
            "rollout_mask_sums": rank["rollout_mask_sums"][indices],
        }
        logits = torch.randn(1, sum(batch["total_lengths"]), VOCABULARY, generator=torch.Generator().manual_seed(0))
        logits.requires_grad_()
        value, _, _ = loss.loss_function(job.args, batch, len(rank["micro_batch_indices"]), rank["global_batch_sizes"][0], logits)
        value.backward()
        assert logits.grad is not None
        pieces = logits.grad[0].split(batch["total_lengths"])
        yield from ((i, piece, value.detach()) for i, piece in zip(indices, pieces, strict=True))


@pytest.fixture
def args_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Sets Megatron's global arguments, as slime's `init` does."""

    def set_args(args: Any) -> None:
        place = importlib.import_module("megatron.training.global_vars")  # which a job puts there
        monkeypatch.setattr(place, "get_args", lambda: args, raising=False)

    return set_args


def played(begin: Callable[..., SlimeJob], model: Path, **values: Any) -> tuple[SlimeJob, list[Any], list[dict[str, Any]]]:
    with RouterStub(answer=agent(codec_of(model))) as server:
        job = begin(server, **values)
        samples = job.played()
        data = job.manager._convert_samples_to_train_data(samples)
        boxes = job.manager._split_train_data_by_dp(data)
    return job, samples, ranks(job, boxes)


@pytest.mark.parametrize("estimator", ["grpo", "mt_gtpo"])
def test_the_gradient_is_on_what_was_sampled_and_goes_the_way_of_its_advantage(
    begin: Callable[..., SlimeJob], model: Path, args_of: Callable[[Any], None], estimator: str
) -> None:
    algo = {"estimator": estimator} if estimator == "grpo" else {"estimator": estimator, "turn_rewards": "dense"}
    job, _, found = played(begin, model, algo=algo)
    assert [len(rank["tokens"]) for rank in found] == [2, 2]
    for rank in found:
        for i, gradient, value in gradients(job, rank, args_of):
            response, mask, advantages = rank["response_lengths"][i], rank["loss_masks"][i], rank["advantages"][i]
            first = rank["total_lengths"][i] - response - 1  # what predicts the first token of the response
            touched = gradient.abs().sum(-1) > 0
            assert value.isfinite() and not touched[:first].any() and not touched[first + response :].any()
            assert touched[first : first + response].tolist() == [bool(m and a) for m, a in zip(mask, advantages, strict=True)]
            own = gradient[first : first + response].gather(1, rank["tokens"][i][-response:, None])[:, 0]
            assert (own.sign() == -(advantages * mask).sign()).all()


def test_a_sample_of_three_turns_has_three_advantages(begin: Callable[..., SlimeJob], model: Path) -> None:
    _, samples, found = played(begin, model, algo={"estimator": "mt_gtpo", "turn_rewards": "dense"})
    by_length = {sample.response_length: sample for sample in samples}
    most = 0
    for rank in found:
        for length, advantages in zip(rank["response_lengths"], rank["advantages"], strict=True):
            found = metadata_of(by_length[length])
            turns = [set(advantages[start:end].tolist()) for _, start, end in found.spans]
            assert all(len(values) == 1 for values in turns)
            most = max(most, len(set.union(*turns)))
            assert advantages.tolist() == pytest.approx(by_length[length].teacher_log_probs, abs=1e-6)
        assert "teacher_log_probs" not in rank
    assert most >= 3


def test_the_trainers_advantages_are_ours(begin: Callable[..., SlimeJob], model: Path) -> None:
    import torch

    job, samples, found = played(begin, model, algo={"estimator": "rloo"})
    _, rewards = importlib.import_module("tau2rl.slime.hooks").post_process_rewards(job.args, samples)
    assert sorted(round(reward, 6) for reward in rewards) == [-0.666667, -0.666667, 0.666667, 0.666667]
    order = [position for rank in found for position in rank["partition"]]
    theirs = [advantages for rank in found for advantages in rank["advantages"]]
    for position, advantages in zip(order, theirs, strict=True):
        assert set(advantages.tolist()) == {torch.tensor(rewards[position]).item()}


@pytest.mark.parametrize("estimator", ["grpo", "mt_grpo"])
def test_what_failed_is_in_the_batch_and_in_no_sum(
    begin: Callable[..., SlimeJob], model: Path, args_of: Callable[[Any], None], estimator: str
) -> None:
    with RouterStub(answer=agent(codec_of(model)), mode=["500", "ok"]) as server:
        job = begin(server, algo={"estimator": estimator}, rollout={"concurrency": 1, "give_up_after": 50})
        boxes = job.manager.generate(0)
    found = ranks(job, boxes)
    sums = [float(total) for rank in found for total in rank["rollout_mask_sums"]]
    assert sums.count(0.0) == 1 and len(sums) == 4
    for rank in found:
        for i, gradient, value in gradients(job, rank, args_of):
            assert value.isfinite() and gradient.isfinite().all()
            if not rank["loss_masks"][i].any():
                assert not gradient.any()


@pytest.mark.parametrize("aggregation", ["seq-mean", "constant"])
def test_what_failed_is_not_divided_by(
    begin: Callable[..., SlimeJob], model: Path, args_of: Callable[[Any], None], aggregation: str
) -> None:
    import torch

    with RouterStub(answer=agent(codec_of(model)), mode=["500", "ok"]) as server:
        job = begin(server, algo={"loss_aggregation": aggregation}, rollout={"concurrency": 1, "give_up_after": 50})
        one_rank = {"dp_size": 1, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
        job.manager.set_train_parallel_config(one_rank)
        boxes = job.manager.generate(0)
    (rank,) = ranks(job, boxes)
    divided_by = {4: [gradient for _, gradient, _ in gradients(job, rank, args_of)]}
    importlib.import_module("tau2rl.slime.hooks").count_trained(job.args, 0, rank)
    assert (rank["global_batch_sizes"], job.args.tau2rl_trained) == ([3], [3])  # of four attempts
    divided_by[3] = [gradient for _, gradient, _ in gradients(job, rank, args_of)]
    for of_four, of_three in zip(divided_by[4], divided_by[3], strict=True):
        torch.testing.assert_close(of_three, of_four * 4 / 3)


@pytest.mark.parametrize("mode", ["500", "ok"])
def test_a_step_with_nothing_to_learn_from_is_counted_as_such(begin: Callable[..., SlimeJob], model: Path, mode: str) -> None:
    hooks = importlib.import_module("tau2rl.slime.hooks")
    with RouterStub(answer=agent(codec_of(model), [(RIGHT, DONE)]), mode=mode) as server:  # all failed, or all the same
        job = begin(server, rollout={"give_up_after": 50})
        boxes = job.manager.generate(0)
    for rank in ranks(job, boxes):
        hooks.count_trained(job.args, 0, rank)
        assert job.args.tau2rl_trained == [0]


def test_slime_gives_megatron_the_args_that_the_hook_reads() -> None:
    source = (checkout() / "slime" / "backends" / "megatron_utils" / "initialize.py").read_text()
    assert "from megatron.training.global_vars import _build_tokenizer, set_args" in source
    assert "def init(args):\n    set_args(args)\n" in source


def test_slime_calls_the_optimizer_as_the_hook_expects() -> None:
    source = (checkout() / "slime" / "backends" / "megatron_utils" / "model.py").read_text()
    one_step = source[source.index("def train_one_step(") : source.index("def should_disable_forward_pre_hook(")]
    calls = [
        "custom_before_train_step_hook(args, rollout_id, step_id, model, optimizer, opt_param_scheduler)",
        "forward_backward_func(",
        "update_successful, grad_norm, num_zeros_in_grad = optimizer.step()",
        "opt_param_scheduler.step(increment=step_global_batch_size)",
    ]
    places = [one_step.index(call) for call in calls]
    assert places == sorted(places)


@pytest.mark.parametrize("mode", ["500", "ok"])
def test_a_rollout_without_a_signal_has_no_gradient(
    begin: Callable[..., SlimeJob], model: Path, args_of: Callable[[Any], None], mode: str
) -> None:
    with RouterStub(answer=agent(codec_of(model), [(RIGHT, DONE)]), mode=mode) as server:  # all failed, or all the same
        job = begin(server, rollout={"give_up_after": 50}, algo={"estimator": "gtpo"})
        boxes = job.manager.generate(0)
    for rank in ranks(job, boxes):
        assert not rank["rollout_mask_sums"].any()
        for _, gradient, value in gradients(job, rank, args_of):
            assert float(value) == 0.0 and not gradient.any()


def test_a_batch_that_carries_nothing_is_refused(begin: Callable[..., SlimeJob], model: Path) -> None:
    hooks = importlib.import_module("tau2rl.slime.hooks")
    with pytest.raises(RuntimeError, match="post_process_rewards"):
        hooks.turn_advantages(None, {"rewards": [0.0]})

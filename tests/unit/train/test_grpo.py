"""Pins the GRPO update:

- a bandit reaches its known optimum, and moves away from it when the advantage's sign is flipped
- the sampler's log-probabilities agree with the trainer's, and the first gradient is the policy gradient
- an interrupted run, resumed, ends with the same weights as an unbroken one; it may go on with other micro-batches and for longer
- an update says how much of it was padding and how much was shared
- minibatches: as many optimizer steps over one batch, each over its share of it, as slime counts them
- advantages by turn, KL to a reference, what moves nothing, and what is refused
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tau2rl.config import AlgoConfig, GrpoConfig, build
from tau2rl.slime.argv import build_argv
from tau2rl.slime.run_context import SlimeRun
from tau2rl.train.engine.forward import collate, score_tokens
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.optim import learning_rate
from tau2rl.train.trainer import ScoredTrajectory, equal_shares
from tau2rl.types import TrainingSample
from tests.slime_configs import SHAPE as SLIME_SHAPE
from tests.unit.train.tiny import SAMPLING, VOCAB, gradient, grpo_trainer as trainer, sample, tiny_model, weights

SHARED = tuple(range(2, 26))
ROWS = [sample(6 + i, seed=i, shared=SHARED, with_logprobs=True) for i in range(12)]


ARMS = {4: 0.0, 9: 0.3, 17: 1.0}  # token -> chance of a reward; every other token pays nothing


def play(model: nn.Module, round_: int, *, sign: float = 1.0, pulls: int = 64) -> list[ScoredTrajectory]:
    """One batch of a bandit: the first token is the arm, the advantage is the reward less the mean."""
    asks = [
        SampleRequest(session=f"{i}", prompt=[2, 3], sampling=SAMPLING, seed=1000 * round_ + i, max_tokens=1)
        for i in range(pulls)
    ]
    done = TokenGenerator(model, slots=pulls).run(asks)
    coin = torch.rand(pulls, generator=torch.Generator().manual_seed(round_)).tolist()
    paid = [float(u < ARMS.get(c.token_ids[0], 0.0)) for c, u in zip(done, coin, strict=True)]
    mean = sum(paid) / pulls
    return [
        ScoredTrajectory(
            samples=(
                TrainingSample(
                    token_ids=(2, 3, *c.token_ids),
                    loss_mask=(0, 0, 1),
                    logprobs=(0.0, 0.0, *(c.logprobs or ())),
                    turn_spans=((2, 3),),
                ),
            ),
            advantages=(sign * (r - mean),),
        )
        for c, r in zip(done, paid, strict=True)
    ]


@torch.no_grad()
def chance(model: nn.Module, token: int) -> float:
    return float(model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].softmax(-1)[token])


def test_a_bandit_reaches_its_best_arm() -> None:
    model = tiny_model()
    grpo = trainer(model)
    for round_ in range(30):
        grpo.update(play(model, round_))
    assert chance(model, 17) > 0.9


def test_with_the_sign_flipped_the_best_arm_is_lost() -> None:
    model = tiny_model()
    grpo, before = trainer(model), chance(model, 17)
    for round_ in range(30):
        grpo.update(play(model, round_, sign=-1.0))
    assert chance(model, 17) < 0.5 * before


def test_the_samplers_logprobs_are_the_trainers() -> None:
    model = tiny_model()
    update = trainer(model).update(play(model, 0, pulls=256))
    assert update is not None
    assert update.mismatch.max_abs < 1e-4
    assert update.clipped_share == 0.0


def test_the_first_gradient_is_the_policy_gradient() -> None:
    model = tiny_model()
    batch = play(model, 0)
    reference = tiny_model()
    logp = score_tokens(reference, collate([t.samples[0] for t in batch])).logp.sum(-1)
    advantages = torch.tensor([t.advantages[0] for t in batch])
    (-(logp * advantages).sum() / len(batch)).backward()
    update = trainer(model).update(batch)
    assert update is not None
    assert update.gradient_norm == pytest.approx(float(gradient(reference).norm()), rel=1e-4)


def scored_rows() -> list[ScoredTrajectory]:
    return [ScoredTrajectory(samples=(r,), advantages=((-1.0) ** i,)) for i, r in enumerate(ROWS)]


def test_an_update_reports_its_padding_and_what_was_shared() -> None:
    rows = [sample(6 + i, seed=i, shared=(*SHARED, 2 + i)) for i in range(12)]
    update = trainer(tiny_model()).update(
        [ScoredTrajectory(samples=(row,), advantages=((-1.0) ** i,)) for i, row in enumerate(rows)]
    )
    assert update is not None
    # 12 rows with 24 tokens in common and 7 to 18 of their own, in attention as long as the longest, 42
    assert update.tokens == 12 * 24 + 150
    assert update.shared_share == pytest.approx(11 * 24 / 438)
    assert update.padding_share == pytest.approx((12 * 42 - 438) / (12 * 42))


def test_an_interrupted_grpo_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, half, resumed = tiny_model(), tiny_model(), tiny_model(seed=3)
    one = trainer(whole)
    for _ in range(4):
        one.update(scored_rows())
    two = trainer(half)
    for _ in range(2):
        two.update(scored_rows())
    two.save(tmp_path, curriculum={"task": 0.25})
    three = trainer(resumed)
    assert three.restore(tmp_path) == {"curriculum": {"task": 0.25}}
    for _ in range(2):
        three.update(scored_rows())
    assert torch.equal(weights(resumed), weights(whole))


def test_a_training_goes_on_with_other_micro_batches_and_for_longer(tmp_path: Path) -> None:
    whole, half, resumed = tiny_model(), tiny_model(), tiny_model(seed=3)
    one, two = trainer(whole), trainer(half)
    for _ in range(4):
        one.update(scored_rows())
    for _ in range(2):
        two.update(scored_rows())
    two.save(tmp_path)
    three = trainer(resumed, max_tokens_per_microbatch=60)
    three.restore(tmp_path)
    for _ in range(2):
        three.update(scored_rows())
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-2, atol=1e-3)
    extended = trainer(tiny_model(), schedule="cosine", steps=60)
    extended.restore(tmp_path)
    assert (extended.optimizer.steps, extended.optimizer.total_steps) == (2, 60)
    assert extended.optimizer.learning_rate == learning_rate(extended.optimizer.train, 2, total_steps=60)


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    assert trainer(tiny_model()).restore(tmp_path) is None


def test_without_an_advantage_nothing_moves() -> None:
    model = tiny_model()
    before = weights(model)
    assert trainer(model).update([ScoredTrajectory(samples=(r,), advantages=(0.0,)) for r in ROWS]) is None
    assert torch.equal(weights(model), before)


def test_each_turn_gets_its_own_advantage() -> None:
    ids, mask = (2, 3, 4, 5, 6), (0, 1, 0, 1, 1)
    two_turns = TrainingSample(token_ids=ids, loss_mask=mask, logprobs=None, turn_spans=((1, 2), (3, 5)))
    model, reference = tiny_model(), tiny_model()
    update = trainer(model).update([ScoredTrajectory(samples=(two_turns,), advantages=(0.5, -2.0))])
    logp = score_tokens(reference, collate([two_turns])).logp
    (-(0.5 * logp[0, 1] - 2.0 * logp[0, 3:].sum()) / 3).backward()
    assert update is not None
    assert update.gradient_norm == pytest.approx(float(gradient(reference).norm()), rel=1e-4)


def test_later_minibatches_are_clipped_against_the_policy_before_the_first() -> None:
    model = tiny_model()
    update = trainer(model, lr=5e-2, num_minibatches=4).update(scored_rows())
    assert update is not None
    assert update.clipped_share > 0


def test_kl_to_itself_is_zero_and_holds_the_policy_back() -> None:
    moved = []
    for coefficient in (0.0, 5.0):
        model = tiny_model()
        grpo = trainer(model, AlgoConfig(kl_coef=coefficient or 1e-9), reference=tiny_model(), lr=3e-3, steps=10)
        first = grpo.update(scored_rows())
        assert first is not None
        assert first.kl == pytest.approx(0.0, abs=1e-9)
        for _ in range(9):
            last = grpo.update(scored_rows())
        assert last is not None
        moved.append(last.kl)
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize(("count", "sizes"), [(1, [12]), (3, [4, 4, 4]), (5, [2, 2, 3, 2, 3]), (20, [1] * 12)])
def test_minibatches_are_equal_runs_of_the_batch(count: int, sizes: list[int]) -> None:
    batch = scored_rows()
    found = equal_shares(batch, count)
    assert [len(share) for share in found] == sizes
    assert [t for share in found for t in share] == batch


def test_every_minibatch_is_an_optimizer_step_over_its_share_alone() -> None:
    one, batch = trainer(tiny_model(), lr=1e-7, num_minibatches=2), scored_rows()  # steps too small to change a gradient
    update = one.update(batch)
    halves = [trainer(tiny_model(), lr=1e-7).update(half) for half in (batch[:6], batch[6:])]
    whole = trainer(tiny_model(), lr=1e-7).update(batch)
    assert update is not None and whole is not None and halves[0] is not None and halves[1] is not None
    assert one.optimizer.steps == 2
    for name in ("loss", "gradient_norm"):
        shares_mean = (getattr(halves[0], name) + getattr(halves[1], name)) / 2
        assert getattr(update, name) == pytest.approx(shares_mean, rel=1e-4)
        assert getattr(update, name) != pytest.approx(getattr(whole, name), rel=1e-2)


def test_both_backends_take_the_same_steps_over_the_same_share() -> None:
    """slime's `--global-batch-size` is the share of one optimizer step; ours are as many, of as many episodes."""
    config = build(
        GrpoConfig,
        {
            "backend": "slime",
            "model": {"init": "/start"},
            "train": {"tasks_per_step": 8, "num_minibatches": 4},
            "rollout": {"num_samples": 4},
            "slime": {"max_tokens_per_gpu": 32768, "train_gpus": 4},
        },
    )
    argv = build_argv(config, SlimeRun(folder=Path("/run"), shape=SLIME_SHAPE))
    batch = [ScoredTrajectory(samples=(sample(4, seed=i),), advantages=((-1.0) ** i,)) for i in range(8 * 4)]
    found = equal_shares(batch, config.train.num_minibatches)
    assert [len(share) for share in found] == [int(argv[argv.index("--global-batch-size") + 1])] * 4
    ours = trainer(tiny_model(), **config.train.model_dump())
    ours.update(batch)
    assert (ours.optimizer.steps, ours.optimizer.total_steps) == (4, 4 * config.train.steps)


@pytest.mark.parametrize(
    ("algo", "words"), [({"kl_coef": 0.1, "kl": "k1"}, "no gradient"), ({"veto": 0.1}, "no effect without a correction")]
)
def test_an_option_without_an_effect_is_refused(algo: dict[str, Any], words: str) -> None:
    given = AlgoConfig().model_copy(update=algo)  # past the config, which refuses it first
    with pytest.raises(ValueError, match=words):
        trainer(tiny_model(), given, reference=tiny_model())


def test_kl_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        trainer(tiny_model(), AlgoConfig(kl_coef=0.1))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    model = tiny_model()
    before = weights(model)
    update = trainer(model).update([ScoredTrajectory(samples=(ROWS[0],), advantages=(math.inf,))])
    assert update is not None
    assert not math.isfinite(update.gradient_norm)
    assert torch.equal(weights(model), before)


def test_entropy_of_an_even_start_is_close_to_that_of_a_die() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-3)  # type: ignore[operator, union-attr]
    update = trainer(model).update(scored_rows())
    assert update is not None
    assert update.entropy == pytest.approx(math.log(VOCAB), rel=1e-2)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean", "constant"])
def test_an_attempt_in_pieces_weighs_what_it_weighs_in_one(aggregation: Any) -> None:
    whole = TrainingSample(
        token_ids=(2, 3, 4, 5, 6, 7, 8, 9),
        loss_mask=(0, 0, 1, 1, 0, 1, 1, 1),
        logprobs=(0.0, 0.0, -1.0, -2.0, 0.0, -1.5, -0.5, -3.0),
        turn_spans=((2, 4), (5, 8)),
    )
    first = replace(whole, token_ids=whole.token_ids[:4], loss_mask=(0, 0, 1, 1), logprobs=(whole.logprobs or ())[:4])
    pieces = (replace(first, turn_spans=((2, 4),)), replace(whole, loss_mask=(0, 0, 0, 0, 0, 1, 1, 1), turn_spans=((5, 8),)))
    other = ScoredTrajectory(samples=(sample(9, seed=5, with_logprobs=True),), advantages=(-0.7,))
    found: list[Any] = []
    for samples in ((whole,), pieces):
        model = tiny_model()
        update = trainer(model, AlgoConfig(loss_aggregation=aggregation)).update(
            [ScoredTrajectory(samples=samples, advantages=(0.5, -1.25)), other]
        )
        assert update is not None
        found.append((update.loss, update.gradient_norm, gradient(model)))
    (loss, norm, slope), (split_loss, split_norm, split_slope) = found
    assert split_loss == pytest.approx(loss, rel=1e-5) and split_norm == pytest.approx(norm, rel=1e-5)
    assert float(slope.norm()) > 0.01 and torch.allclose(slope, split_slope, atol=1e-6)


def test_advantages_that_fit_no_turns_are_refused() -> None:
    one = TrainingSample(token_ids=(2, 3, 4), loss_mask=(0, 1, 1), logprobs=None, turn_spans=((1, 2), (2, 3)))
    batch = [ScoredTrajectory(samples=(one, one), advantages=(0.5, 1.0, 2.0))]
    with pytest.raises(ValueError, match="3 advantages for 4 turns"):
        trainer(tiny_model()).update(batch)

"""Pins the GRPO update:

- a bandit reaches its known optimum, and moves away from it when the advantage's sign is flipped
- the sampler's log-probabilities agree with the trainer's, and the first gradient is the policy gradient
- an interrupted run, resumed, ends with the same weights as an unbroken one
- an update says how much of it was padding and how much was shared
- advantages by turn, several passes, KL to a reference, and what moves nothing
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tau2rl.train.batching import collate
from tau2rl.train.forward import score_tokens
from tau2rl.train.generate import Generator, Request, Sampling
from tau2rl.train.losses import LossSpec
from tau2rl.train.optim import OptimSpec
from tau2rl.train.trainer import GRPOSpec, GRPOTrainer, Judged
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import VOCAB, gradient, sample, tiny_model, weights

SHARED = tuple(range(2, 26))
ROWS = [sample(6 + i, seed=i, shared=SHARED, with_logprobs=True) for i in range(12)]


def trainer(
    model: nn.Module, *, lr: float = 1e-2, steps: int = 30, loss: LossSpec | None = None, updates: int = 1
) -> GRPOTrainer:
    optim = OptimSpec(lr=lr, total_steps=steps, warmup_steps=1, schedule="constant", weight_decay=0.0)
    return GRPOTrainer(model, GRPOSpec(optim=optim, loss=loss or LossSpec(), updates=updates))


ARMS = {4: 0.0, 9: 0.3, 17: 1.0}  # token -> chance of a reward; every other token pays nothing


def play(model: nn.Module, round_: int, *, sign: float = 1.0, pulls: int = 64) -> list[Judged]:
    """One batch of a bandit: the first token is the arm, the advantage is the reward less the mean."""
    asks = [
        Request(session=f"{i}", prompt=[2, 3], sampling=Sampling(), seed=1000 * round_ + i, max_tokens=1) for i in range(pulls)
    ]
    done = Generator(model, slots=pulls).run(asks)
    coin = torch.rand(pulls, generator=torch.Generator().manual_seed(round_)).tolist()
    paid = [float(u < ARMS.get(c.token_ids[0], 0.0)) for c, u in zip(done, coin, strict=True)]
    mean = sum(paid) / pulls
    return [
        Judged(
            sample=TrainingSample(
                token_ids=(2, 3, *c.token_ids),
                loss_mask=(0, 0, 1),
                logprobs=(0.0, 0.0, *(c.logprobs or ())),
                turn_spans=((2, 3),),
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
    judged = play(model, 0)
    reference = tiny_model()
    batch = collate([j.sample for j in judged])
    advantages = torch.tensor([j.advantages[0] for j in judged])
    (-(score_tokens(reference, batch).logp.sum(-1) * advantages).sum() / len(judged)).backward()
    update = trainer(model, loss=LossSpec()).update(judged)
    assert update is not None
    assert update.gradient_norm == pytest.approx(float(gradient(reference).norm()), rel=1e-4)


def judged_rows() -> list[Judged]:
    return [Judged(sample=r, advantages=((-1.0) ** i,)) for i, r in enumerate(ROWS)]


def test_an_update_reports_its_padding_and_what_was_shared() -> None:
    rows = [sample(6 + i, seed=i, shared=(*SHARED, 2 + i)) for i in range(12)]
    update = trainer(tiny_model()).update([Judged(sample=row, advantages=((-1.0) ** i,)) for i, row in enumerate(rows)])
    assert update is not None
    # 12 rows with 24 tokens in common and 7 to 18 of their own, in attention as long as the longest, 42
    assert update.tokens == 12 * 24 + 150
    assert update.shared_share == pytest.approx(11 * 24 / 438)
    assert update.padding_share == pytest.approx((12 * 42 - 438) / (12 * 42))


def test_an_interrupted_grpo_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, half, resumed = tiny_model(), tiny_model(), tiny_model(seed=3)
    one = trainer(whole)
    for _ in range(4):
        one.update(judged_rows())
    two = trainer(half)
    for _ in range(2):
        two.update(judged_rows())
    two.save(tmp_path, curriculum={"task": 0.25})
    three = trainer(resumed)
    assert three.restore(tmp_path) == {"curriculum": {"task": 0.25}}
    for _ in range(2):
        three.update(judged_rows())
    assert torch.equal(weights(resumed), weights(whole))


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    assert trainer(tiny_model()).restore(tmp_path) is None


def test_without_an_advantage_nothing_moves() -> None:
    model = tiny_model()
    before = weights(model)
    assert trainer(model).update([Judged(sample=r, advantages=(0.0,)) for r in ROWS]) is None
    assert torch.equal(weights(model), before)


def test_each_turn_gets_its_own_advantage() -> None:
    ids, mask = (2, 3, 4, 5, 6), (0, 1, 0, 1, 1)
    two_turns = TrainingSample(token_ids=ids, loss_mask=mask, logprobs=None, turn_spans=((1, 2), (3, 5)))
    model, reference = tiny_model(), tiny_model()
    update = trainer(model).update([Judged(sample=two_turns, advantages=(0.5, -2.0))])
    logp = score_tokens(reference, collate([two_turns])).logp
    (-(0.5 * logp[0, 1] - 2.0 * logp[0, 3:].sum()) / 3).backward()
    assert update is not None
    assert update.gradient_norm == pytest.approx(float(gradient(reference).norm()), rel=1e-4)


def test_a_second_pass_over_the_batch_is_clipped_against_the_first() -> None:
    model = tiny_model()
    update = trainer(model, lr=5e-2, updates=4).update(judged_rows())
    assert update is not None
    assert update.clipped_share > 0


def test_kl_to_itself_is_zero_and_holds_the_policy_back() -> None:
    moved = []
    for coefficient in (0.0, 5.0):
        model = tiny_model()
        spec = GRPOSpec(
            optim=OptimSpec(lr=3e-3, total_steps=10, warmup_steps=1, schedule="constant", weight_decay=0.0),
            loss=LossSpec(kl_coef=coefficient or 1e-9),
        )
        grpo = GRPOTrainer(model, spec, reference=tiny_model())
        first = grpo.update(judged_rows())
        assert first is not None
        assert first.kl == pytest.approx(0.0, abs=1e-9)
        for _ in range(9):
            last = grpo.update(judged_rows())
        assert last is not None
        moved.append(last.kl)
    assert moved[1] < 0.5 * moved[0]


def test_kl_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        trainer(tiny_model(), loss=LossSpec(kl_coef=0.1))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    model = tiny_model()
    before = weights(model)
    update = trainer(model).update([Judged(sample=ROWS[0], advantages=(math.inf,))])
    assert update is not None
    assert not math.isfinite(update.gradient_norm)
    assert torch.equal(weights(model), before)


def test_entropy_of_an_even_start_is_close_to_that_of_a_die() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-3)  # type: ignore[operator, union-attr]
    update = trainer(model).update(judged_rows())
    assert update is not None
    assert update.entropy == pytest.approx(math.log(VOCAB), rel=1e-2)

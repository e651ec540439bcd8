"""Pins the training loops:

- one forward pass: masked tokens are exactly 0, sharing a beginning changes nothing, gradients included
- sft: the loss is the mean over assistant tokens however the step is cut; other tokens teach nothing
- an interrupted training, resumed, ends with the same weights as an unbroken one; so does grpo
- early stop, foreign states, nothing to train on
- grpo: a bandit reaches its known optimum, and moves away from it when the advantage's sign is flipped
- the sampler's log-probabilities agree with the trainer's
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from tau2rl.backends.local.data import collate, epochs, micro_batches
from tau2rl.backends.local.forward import score_tokens
from tau2rl.backends.local.generate import Generator, Request, Sampling
from tau2rl.backends.local.grpo import GRPOSpec, GRPOTrainer, Judged
from tau2rl.backends.local.losses import LossSpec
from tau2rl.backends.local.model import save_memory
from tau2rl.backends.local.optim import OptimSpec
from tau2rl.backends.local.sft import SFTSpec, SFTStep, mean_loss, train
from tau2rl.errors import UserError
from tau2rl.types import TrainingSample
from tests.unit.local.tiny import VOCAB, sample, tiny_model

SHARED = tuple(range(2, 26))
ROWS = [sample(6 + i, seed=i, shared=SHARED, with_logprobs=True) for i in range(12)]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def sft_spec(steps: int = 8, *, micro_tokens: int = 8192, lr: float = 1e-3, patience: int = 0, save_every: int = 50) -> SFTSpec:
    optim = OptimSpec(lr=lr, total_steps=steps, warmup_steps=2)
    return SFTSpec(optim=optim, batch_size=5, micro_tokens=micro_tokens, eval_every=2, patience=patience, save_every=save_every)


def test_scores_are_the_models_own_and_zero_where_nothing_counts() -> None:
    model, batch = tiny_model(), collate(ROWS[:4])
    scores = score_tokens(model, batch, entropy=True)
    with torch.no_grad():
        logp = model(input_ids=batch.ids).logits.log_softmax(-1)
    want = torch.zeros_like(batch.mask)
    want[:, 1:] = logp[:, :-1].gather(2, batch.ids[:, 1:, None])[:, :, 0]
    torch.testing.assert_close(scores.logp.detach(), want * batch.mask, rtol=1e-5, atol=1e-5)
    assert scores.entropy is not None
    assert (scores.logp[batch.mask == 0] == 0).all()
    assert (scores.entropy[batch.mask == 0] == 0).all()


def test_running_the_shared_beginning_once_changes_neither_scores_nor_gradients() -> None:
    batch, found = collate(ROWS), []
    for share in (True, False):
        model = tiny_model()
        scores = score_tokens(model, batch, share=share)
        scores.logp.sum().backward()
        found.append((scores.logp.detach(), gradient(model)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_recomputed_activations_give_the_same_gradients() -> None:
    batch, found = collate(ROWS), []
    for recompute in (True, False):
        model = tiny_model()
        if recompute:
            save_memory(model)
        model.train()
        score_tokens(model, batch).logp.sum().backward()
        found.append(gradient(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_padding_does_not_change_a_row() -> None:
    alone = score_tokens(tiny_model(), collate(ROWS[:1])).logp.detach()
    together = score_tokens(tiny_model(), collate(ROWS)).logp.detach()
    torch.testing.assert_close(together[0, : alone.shape[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_a_step_is_the_same_however_it_is_cut() -> None:
    ends = []
    for micro_tokens in (8192, 80, 1):
        model = tiny_model()
        train(model, ROWS, sft_spec(3, micro_tokens=micro_tokens))
        ends.append(weights(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-4, atol=1e-5)


def test_the_loss_falls_and_is_the_mean_over_assistant_tokens() -> None:
    model, steps = tiny_model(), list[SFTStep]()
    before = mean_loss(model, ROWS)
    logp = [float(score_tokens(model, collate([r])).logp.detach().sum()) for r in ROWS]
    assert before == pytest.approx(-sum(logp) / sum(sum(r.loss_mask) for r in ROWS), rel=1e-5)
    train(model, ROWS, sft_spec(60, lr=1e-2), on_step=steps.append)
    assert mean_loss(model, ROWS) < 0.5 * before
    assert [s.step for s in steps] == list(range(1, 61))


def test_tokens_outside_the_mask_teach_nothing() -> None:
    last = TrainingSample(token_ids=(5, 6, 7, 8), loss_mask=(0, 0, 0, 1), logprobs=None, turn_spans=())
    model = tiny_model()
    score_tokens(model, collate([last])).logp.sum().backward()
    with_last = gradient(model)
    model.zero_grad()
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    logits.log_softmax(-1)[8].backward()
    torch.testing.assert_close(with_last, gradient(model), rtol=1e-4, atol=1e-6)


class Killed(Exception):
    """Stands for the power cut."""


def killer(at: int) -> Callable[[SFTStep], None]:
    def on_step(step: SFTStep) -> None:
        if step.step == at:
            raise Killed

    return on_step


@pytest.mark.parametrize("killed_at", [3, 4, 7])
def test_an_interrupted_sft_ends_with_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    whole, broken, resumed = tiny_model(), tiny_model(), tiny_model(seed=5)
    losses: list[float] = []
    train(whole, ROWS, sft_spec(9), held_out=ROWS[:3], on_step=lambda s: losses.append(s.loss))
    with pytest.raises(Killed):
        train(broken, ROWS, sft_spec(9, save_every=2), held_out=ROWS[:3], folder=tmp_path, on_step=killer(killed_at))
    again: list[SFTStep] = []
    train(resumed, ROWS, sft_spec(9, save_every=2), held_out=ROWS[:3], folder=tmp_path, on_step=again.append)
    assert torch.equal(weights(resumed), weights(whole))
    assert [s.loss for s in again] == losses[again[0].step - 1 :]
    assert again[0].step == killed_at // 2 * 2 + 1


def test_a_finished_training_is_not_trained_further(tmp_path: Path) -> None:
    model = tiny_model()
    train(model, ROWS, sft_spec(4), folder=tmp_path)
    before = weights(model)
    assert train(model, ROWS, sft_spec(4), folder=tmp_path).steps == 4
    assert torch.equal(weights(model), before)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tiny_model(), ROWS, sft_spec(1), folder=tmp_path)
    other = nn.Linear(2, 2)
    with pytest.raises(UserError, match="another model"):
        train(other, ROWS, sft_spec(1), folder=tmp_path)


def test_it_stops_when_the_held_out_loss_stops_falling() -> None:
    unlearnable = [sample(8, seed=100 + i) for i in range(4)]
    result = train(tiny_model(), ROWS, sft_spec(200, lr=3e-2, patience=2), held_out=unlearnable)
    assert result.stopped_early
    assert result.steps < 100


def test_nothing_to_train_on_is_said() -> None:
    empty = TrainingSample(token_ids=(3, 4), loss_mask=(0, 0), logprobs=None, turn_spans=())
    with pytest.raises(UserError, match="no assistant token"):
        train(tiny_model(), [empty], sft_spec(1))


def test_every_conversation_is_seen_once_an_epoch_and_order_can_be_continued() -> None:
    order = epochs(10, batch_size=4, seed=1)
    first = [next(order) for _ in range(6)]
    assert sorted(chain(*first[:3])) == sorted(chain(*first[3:])) == list(range(10))
    later = epochs(10, batch_size=4, seed=1, start=4)
    assert [next(later), next(later)] == first[4:]


def test_micro_batches_hold_every_index_and_no_more_padding_than_allowed() -> None:
    lengths = [3, 50, 4, 49, 200, 5]
    groups = micro_batches(lengths, max_tokens=100)
    assert sorted(chain(*groups)) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 100 for g in groups)


# --- grpo ---


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

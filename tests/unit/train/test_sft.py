"""Pins the shared forward pass and supervised training:

- one forward pass: masked tokens are exactly 0
- sft: the loss is the mean over assistant tokens however the step is cut; other tokens teach nothing
- an interrupted training, resumed, ends with the same weights as an unbroken one
- a step says how much of it was padding and how much was shared
- early stop, foreign states, nothing to train on
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from tau2rl.errors import UserError
from tau2rl.train.batching import collate, epochs
from tau2rl.train.forward import score_tokens
from tau2rl.train.model import save_memory
from tau2rl.train.optim import OptimSpec
from tau2rl.train.sft import SFTSpec, SFTStep, mean_loss, train
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import Killed, gradient, killer, sample, tiny_model, weights

SHARED = tuple(range(2, 26))
ROWS = [sample(6 + i, seed=i, shared=SHARED, with_logprobs=True) for i in range(12)]


def sft_spec(
    steps: int = 8, *, max_tokens_per_microbatch: int = 8192, lr: float = 1e-3, patience: int = 0, save_every: int = 50
) -> SFTSpec:
    optim = OptimSpec(lr=lr, total_steps=steps, warmup_steps=2)
    return SFTSpec(
        optim=optim,
        batch_size=5,
        max_tokens_per_microbatch=max_tokens_per_microbatch,
        val_every=2,
        patience=patience,
        save_every=save_every,
    )


def test_scores_are_the_models_own_and_zero_where_nothing_counts() -> None:
    model, batch = tiny_model(), collate(ROWS[:4])
    scores = score_tokens(model, batch, entropy="value")
    with torch.no_grad():
        logp = model(input_ids=batch.ids).logits.log_softmax(-1)
    want = torch.zeros_like(batch.mask)
    want[:, 1:] = logp[:, :-1].gather(2, batch.ids[:, 1:, None])[:, :, 0]
    torch.testing.assert_close(scores.logp.detach(), want * batch.mask, rtol=1e-5, atol=1e-5)
    assert scores.entropy is not None
    assert (scores.logp[batch.mask == 0] == 0).all()
    assert (scores.entropy[batch.mask == 0] == 0).all()


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
    for max_tokens_per_microbatch in (8192, 80, 1):
        model = tiny_model()
        train(model, ROWS, sft_spec(3, max_tokens_per_microbatch=max_tokens_per_microbatch))
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


def test_a_step_reports_its_padding_and_what_was_shared() -> None:
    steps: list[SFTStep] = []
    rows = [sample(6 + i, seed=i, shared=(*SHARED, 2 + i)) for i in range(12)]
    train(tiny_model(), rows, SFTSpec(optim=OptimSpec(lr=1e-3, total_steps=1), batch_size=12), on_step=steps.append)
    # 12 rows with 24 tokens in common and 7 to 18 of their own, in attention as long as the longest, 42
    assert steps[0].tokens == 12 * 24 + 150
    assert steps[0].shared_share == pytest.approx(11 * 24 / 438)
    assert steps[0].padding_share == pytest.approx((12 * 42 - 438) / (12 * 42))

"""Pins the shared forward pass and supervised training:

- one forward pass: masked tokens are exactly 0
- sft: the loss is the mean over assistant tokens however the step is cut; other tokens have no gradient
- every step has the same number of conversations, and every conversation comes once an epoch
- an interrupted training, resumed, ends with the same weights as an unbroken one, early stopping included
- early stopping hands on the weights of the best validation, not the last ones, and says of which step they are
- a training may go on with other micro-batches, and for longer: the schedule is then that of the new length
- a step says how much of it was padding and how much was shared
- foreign and damaged states, nothing to train on
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tau2rl.config import LocalTrainConfig, SftTrainConfig
from tau2rl.errors import UserError
from tau2rl.train.engine.forward import collate, score_tokens
from tau2rl.train.model import save_memory
from tau2rl.train.optim import learning_rate
from tau2rl.train.sft import SFTResult, SFTStep, mean_loss, train
from tau2rl.train.state import STATE_FILE
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import Killed, gradient, killer, sample, tiny_model, weights

SHARED = tuple(range(2, 26))
ROWS = [sample(6 + i, seed=i, shared=SHARED, with_logprobs=True) for i in range(12)]


def sft(
    model: nn.Module,
    steps: int = 8,
    *,
    rows: Sequence[TrainingSample] = ROWS,
    max_tokens_per_microbatch: int = 8192,
    val: Sequence[TrainingSample] = (),
    folder: Path | None = None,
    on_step: Callable[[SFTStep], None] = lambda _: None,
    **settings: Any,
) -> SFTResult:
    given: dict[str, Any] = {"lr": 1e-3, "warmup_steps": 2, "batch_size": 5, "val_every": 2, **settings}
    local = LocalTrainConfig(max_tokens_per_microbatch=max_tokens_per_microbatch)
    conversations, held_out = [(row,) for row in rows], [(row,) for row in val]
    config = SftTrainConfig(steps=steps, **given)
    return train(model, conversations, config, local, val=held_out, folder=folder, on_step=on_step)


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
        sft(model, 3, max_tokens_per_microbatch=max_tokens_per_microbatch)
        ends.append(weights(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-4, atol=1e-5)


def test_the_loss_falls_and_is_the_mean_over_assistant_tokens() -> None:
    model, steps = tiny_model(), list[SFTStep]()
    before = mean_loss(model, ROWS)
    logp = [float(score_tokens(model, collate([r])).logp.detach().sum()) for r in ROWS]
    assert before == pytest.approx(-sum(logp) / sum(sum(r.loss_mask) for r in ROWS), rel=1e-5)
    sft(model, 60, lr=1e-2, on_step=steps.append)
    assert mean_loss(model, ROWS) < 0.5 * before
    assert [s.step for s in steps] == list(range(1, 61))


def test_tokens_outside_the_mask_have_no_gradient() -> None:
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
    sft(whole, 9, val=ROWS[:3], on_step=lambda s: losses.append(s.loss))
    with pytest.raises(Killed):
        sft(broken, 9, save_every=2, val=ROWS[:3], folder=tmp_path, on_step=killer(killed_at))
    again: list[SFTStep] = []
    sft(resumed, 9, save_every=2, val=ROWS[:3], folder=tmp_path, on_step=again.append)
    assert torch.equal(weights(resumed), weights(whole))
    assert [s.loss for s in again] == losses[again[0].step - 1 :]
    assert again[0].step == killed_at // 2 * 2 + 1


def test_a_finished_training_is_not_trained_further(tmp_path: Path) -> None:
    model = tiny_model()
    sft(model, 4, folder=tmp_path)
    before = weights(model)
    assert sft(model, 4, folder=tmp_path).steps == 4
    assert torch.equal(weights(model), before)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    sft(tiny_model(), 1, folder=tmp_path)
    other = nn.Linear(2, 2)
    with pytest.raises(UserError, match="another model"):
        sft(other, 1, folder=tmp_path)


def test_a_damaged_state_and_one_of_another_version_are_refused(tmp_path: Path) -> None:
    sft(tiny_model(), 1, folder=tmp_path)
    file = tmp_path / STATE_FILE
    torch.save({"weights": {}, "parts": {}}, file)
    with pytest.raises(UserError, match="another version"):
        sft(tiny_model(), 1, folder=tmp_path)
    for broken in (b"", b"not a state", b"PK\x03\x04" + bytes(100)):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="cannot read the training state"):
            sft(tiny_model(), 1, folder=tmp_path)


UNLEARNABLE = [sample(8, seed=100 + i) for i in range(4)]
STOPS: dict[str, Any] = {"lr": 3e-2, "early_stopping_patience": 2, "val": UNLEARNABLE}  # its loss falls at first, and soon rises


def test_early_stopping_hands_on_the_best_weights_and_not_the_last() -> None:
    model, steps, kept = tiny_model(), list[SFTStep](), dict[int, torch.Tensor]()

    def on_step(step: SFTStep) -> None:
        steps.append(step)
        kept[step.step] = weights(model)

    result = sft(model, 200, on_step=on_step, **STOPS)
    seen = {s.step: s.val_loss for s in steps if s.val_loss is not None}
    best = min(seen, key=seen.__getitem__)
    assert result.stopped_early and result.steps < 100
    assert (result.final_step, result.steps - result.final_step) == (best, 4)  # two validations later
    assert mean_loss(model, UNLEARNABLE) == pytest.approx(seen[best]) == pytest.approx(result.best_val_loss)
    assert torch.equal(weights(model), kept[best])
    assert seen[result.steps] > seen[best]


def test_a_training_without_patience_hands_on_its_last_weights() -> None:
    model, kept = tiny_model(), list[torch.Tensor]()
    result = sft(model, 40, on_step=lambda _: kept.append(weights(model)), **{**STOPS, "early_stopping_patience": 0})
    assert (result.stopped_early, result.final_step) == (False, 40)
    assert torch.equal(weights(model), kept[-1])


def test_the_best_weights_outlive_an_interruption(tmp_path: Path) -> None:
    whole, broken, resumed, again = (tiny_model() for _ in range(4))
    result = sft(whole, 200, **STOPS)
    with pytest.raises(Killed):
        sft(broken, 200, save_every=1, folder=tmp_path, on_step=killer(result.final_step + 1), **STOPS)
    assert sft(resumed, 200, save_every=1, folder=tmp_path, **STOPS) == result
    assert torch.equal(weights(resumed), weights(whole))
    finished = sft(again, 200, save_every=1, folder=tmp_path, **STOPS)  # nothing is left to do
    assert (finished.final_step, finished.steps) == (result.final_step, result.steps)
    assert torch.equal(weights(again), weights(whole))


def test_a_training_goes_on_with_other_micro_batches(tmp_path: Path) -> None:
    whole, resumed = tiny_model(), tiny_model(seed=5)
    sft(whole, 8)
    with pytest.raises(Killed):
        sft(tiny_model(), 8, save_every=2, folder=tmp_path, on_step=killer(4))
    sft(resumed, 8, save_every=2, folder=tmp_path, max_tokens_per_microbatch=40)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-3, atol=1e-4)


def test_a_finished_training_can_be_extended(tmp_path: Path) -> None:
    model, steps = tiny_model(), list[SFTStep]()
    sft(model, 4, folder=tmp_path)
    assert sft(tiny_model(), 8, folder=tmp_path, on_step=steps.append).steps == 8
    train = SftTrainConfig(lr=1e-3, warmup_steps=2)
    assert [s.step for s in steps] == [5, 6, 7, 8]
    assert [s.learning_rate for s in steps] == [learning_rate(train, step, total_steps=8) for step in (4, 5, 6, 7)]


def test_every_step_has_the_same_number_of_conversations() -> None:
    rows = [sample(9, seed=i) for i in range(12)]  # 12 rows, 5 a step: the third step goes over the border of the epoch
    steps: list[SFTStep] = []
    sft(tiny_model(), 12, rows=rows, on_step=steps.append)
    assert [s.tokens for s in steps] == [5 * 9] * 12
    few: list[SFTStep] = []
    sft(tiny_model(), 2, rows=rows[:3], on_step=few.append)
    assert [s.tokens for s in few] == [3 * 9] * 2  # no row twice in a step


def test_nothing_to_train_on_is_said() -> None:
    empty = TrainingSample(token_ids=(3, 4), loss_mask=(0, 0), logprobs=None, turn_spans=())
    with pytest.raises(UserError, match="no assistant token"):
        sft(tiny_model(), 1, rows=[empty])


def test_a_step_reports_its_padding_and_what_was_shared() -> None:
    steps: list[SFTStep] = []
    rows = [sample(6 + i, seed=i, shared=(*SHARED, 2 + i)) for i in range(12)]
    sft(tiny_model(), 1, rows=rows, batch_size=12, on_step=steps.append)
    # 12 rows with 24 tokens in common and 7 to 18 of their own, in attention as long as the longest, 42
    assert steps[0].tokens == 12 * 24 + 150
    assert steps[0].shared_share == pytest.approx(11 * 24 / 438)
    assert steps[0].padding_share == pytest.approx((12 * 42 - 438) / (12 * 42))


def test_a_conversation_in_pieces_weighs_what_it_weighs_in_one() -> None:
    whole = TrainingSample(
        token_ids=tuple(range(2, 12)), loss_mask=(0, 0, 1, 1, 0, 0, 1, 1, 1, 1), logprobs=None, turn_spans=((2, 4), (6, 10))
    )
    first = TrainingSample(token_ids=whole.token_ids[:4], loss_mask=(0, 0, 1, 1), logprobs=None, turn_spans=((2, 4),))
    second = TrainingSample(token_ids=whole.token_ids, loss_mask=(0,) * 6 + (1,) * 4, logprobs=None, turn_spans=((6, 10),))
    other = [(sample(7, seed=i),) for i in range(5)]
    config = SftTrainConfig(steps=4, lr=1e-3, warmup_steps=1, batch_size=3)
    found: list[tuple[SFTResult, torch.Tensor]] = []
    for conversation in ((whole,), (first, second)):
        model = tiny_model()
        found.append((train(model, [conversation, *other], config, LocalTrainConfig()), weights(model)))
    (result, moved), (split, split_moved) = found
    assert split.loss == pytest.approx(result.loss, rel=1e-5) and torch.allclose(moved, split_moved, atol=1e-6)

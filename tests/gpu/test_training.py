"""Pins the local backend on a CUDA device; skipped without one, run with `pytest -m gpu`:

- an SFT step and a GRPO step have the loss and the gradient norm that they have on a CPU, to the precision of the device
- the sampler's log-probabilities are the trainer's, in float32 closely and in bfloat16 up to its rounding
- a training that was interrupted goes on to the same weights, with dropout too, whose random numbers the device draws
- weights that are trained in bfloat16 move by less than their last digit
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tau2rl.config import LocalTrainConfig, SftTrainConfig
from tau2rl.config.training import LoraConfig
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.model import DType, save_memory, with_lora
from tau2rl.train.sft import SFTResult, mean_loss, train
from tau2rl.train.trainer import ScoredTrajectory, Update
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import SAMPLING, Killed, grpo_trainer, killer, sample, tiny_model, weights

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]
SHARED = tuple(range(2, 26))
ROWS = [sample(6 + i, seed=i, shared=SHARED, with_logprobs=True) for i in range(12)]
PRECISIONS: tuple[DType, ...] = ("float32", "bfloat16")
CLOSE: dict[DType, dict[str, float]] = {"float32": {"rel": 1e-3, "abs": 1e-4}, "bfloat16": {"rel": 0.05, "abs": 0.05}}


def model_on(device: str, dtype: DType = "float32", *, lora: bool = False) -> nn.Module:
    model: nn.Module = tiny_model().to(device, getattr(torch, dtype))
    if lora:
        torch.manual_seed(0)
        model = with_lora(model, LoraConfig(rank=2, alpha=4, dropout=0.1))  # type: ignore[arg-type]
        save_memory(model)
    return model


def sft(model: nn.Module, steps: int, **more: Any) -> SFTResult:
    config = SftTrainConfig(lr=1e-2, steps=steps, warmup_steps=0, batch_size=4, save_every=2, weight_decay=0.0)
    return train(model, [(row,) for row in ROWS], config, LocalTrainConfig(max_tokens_per_microbatch=80), **more)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_an_sft_step_is_that_of_a_cpu(dtype: DType) -> None:
    losses = [[], []]  # type: list[list[tuple[float, float]]]
    for device, found in zip((DEVICE, "cpu"), losses, strict=True):
        sft(model_on(device, dtype), 3, on_step=lambda s, found=found: found.append((s.loss, s.gradient_norm)))
    for ours, theirs in zip(*losses, strict=True):
        assert ours == pytest.approx(theirs, **CLOSE[dtype])


def sampled(model: nn.Module, count: int = 32) -> list[ScoredTrajectory]:
    """What the model itself says behind one prompt, with advantages in turns good and bad."""
    prompt = [2, 3, 4, 5]
    asks = [
        SampleRequest(session=str(i), prompt=[*prompt, 6 + i % 8], sampling=SAMPLING, seed=i, max_tokens=12) for i in range(count)
    ]
    found: list[ScoredTrajectory] = []
    for i, (ask, done) in enumerate(zip(asks, TokenGenerator(model, slots=16).run(asks), strict=True)):
        size, new = len(ask.prompt), len(done.token_ids)
        row = TrainingSample(
            token_ids=(*ask.prompt, *done.token_ids),
            loss_mask=(*[0] * size, *[1] * new),
            logprobs=(*[0.0] * size, *(done.logprobs or ())),
            turn_spans=((size, size + new),),
        )
        found.append(ScoredTrajectory(samples=(row,), advantages=((-1.0) ** i,)))
    return found


def update(model: nn.Module, batch: list[ScoredTrajectory]) -> Update:
    done = grpo_trainer(model, num_minibatches=2, max_tokens_per_microbatch=80).update(batch)
    assert done is not None
    return done


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_samplers_logprobs_are_the_trainers(dtype: DType) -> None:
    model = model_on(DEVICE, dtype)
    apart = update(model, sampled(model)).mismatch
    assert apart.mean_abs < (1e-4 if dtype == "float32" else 0.02)
    assert apart.effective_share > 0.99


def test_a_grpo_step_is_that_of_a_cpu() -> None:
    batch = sampled(model_on("cpu"))
    ours, theirs = (update(model_on(device), batch) for device in (DEVICE, "cpu"))
    for name in ("loss", "entropy", "gradient_norm", "kl"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), **CLOSE["float32"])
    assert ours.shared_share == theirs.shared_share


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA with dropout"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_an_interrupted_training_goes_on_to_the_same_weights(dtype: DType, lora: bool, tmp_path: Path) -> None:
    whole, broken, resumed = (model_on(DEVICE, dtype, lora=lora) for _ in range(3))
    torch.manual_seed(0)
    sft(whole, 12)
    torch.manual_seed(0)
    with pytest.raises(Killed):
        sft(broken, 12, folder=tmp_path, on_step=killer(7))
    torch.manual_seed(99)  # what a fresh process would have
    sft(resumed, 12, folder=tmp_path)
    # A GPU adds up the gradients of rows that share tokens in an order of its own: alike, and not to the last bit.
    moved = (weights(whole) - weights(model_on(DEVICE, dtype, lora=lora))).float().norm()
    assert float((weights(resumed) - weights(whole)).float().norm() / moved) < {"float32": 0.02, "bfloat16": 0.1}[dtype]
    assert mean_loss(resumed, ROWS) == pytest.approx(mean_loss(whole, ROWS), rel={"float32": 1e-3, "bfloat16": 0.02}[dtype])


def test_steps_below_the_last_digit_of_bfloat16_add_up() -> None:
    model = model_on(DEVICE, "bfloat16")
    before = mean_loss(model, ROWS)
    config = SftTrainConfig(lr=2e-5, steps=300, warmup_steps=0, schedule="constant", batch_size=12, weight_decay=0.0)
    train(model, [(row,) for row in ROWS], config, LocalTrainConfig())
    assert mean_loss(model, ROWS) < before - 0.01

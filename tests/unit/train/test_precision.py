"""Pins what is not plain 32-bit training of all weights; on a CPU, where a GPU's kernels cannot be tried:

- bfloat16: steps that are smaller than the last digit of a weight add up; what is saved and resumed is the same to the bit
- bfloat16 scores are those of 32 bits up to the rounding of the weights, and are sums in 32 bits
- LoRA, with recomputed activations, in either precision: sft and grpo train it, KL is to the bare weights, a state resumes
  exactly, and what is saved is a whole model that `AutoModelForCausalLM` reads, in the precision of the base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tau2rl.config import AlgoConfig, LocalTrainConfig, SftTrainConfig, TrainConfig
from tau2rl.config.training import LoraConfig
from tau2rl.train.engine.forward import collate, score_tokens
from tau2rl.train.model import DType, load_model, save, save_memory, with_lora
from tau2rl.train.optim import Optimizer
from tau2rl.train.sft import SFTResult, mean_loss, train
from tau2rl.train.trainer import GRPOTrainer, ScoredTrajectory
from tests.unit.train.tiny import Killed, grpo_trainer, killer, sample, tiny_model, weights

ROWS = [sample(6 + i, seed=i, with_logprobs=True) for i in range(12)]
TRAJECTORIES = [ScoredTrajectory(samples=(row,), advantages=((-1.0) ** i,)) for i, row in enumerate(ROWS)]
PRECISIONS: tuple[DType, ...] = ("float32", "bfloat16")


def model_in(dtype: DType, *, lora: bool = False, seed: int = 0) -> nn.Module:
    model: nn.Module = tiny_model(seed).to(getattr(torch, dtype))
    if lora:
        torch.manual_seed(seed)
        model = with_lora(model, LoraConfig(rank=2, alpha=4, dropout=0.1))  # type: ignore[arg-type]
        save_memory(model)
    return model


def sft(model: nn.Module, steps: int, **more: Any) -> SFTResult:
    config = SftTrainConfig(
        lr=1e-2, steps=steps, warmup_steps=0, schedule="constant", weight_decay=0.0, batch_size=4, save_every=2
    )
    return train(model, [(row,) for row in ROWS], config, LocalTrainConfig(max_tokens_per_microbatch=40), **more)


def pushed(dtype: DType, steps: int, *, lr: float = 1e-5) -> torch.Tensor:
    """How far the same push, repeated, moves weights of about 1, [100]."""
    weight = nn.ParameterList([nn.Parameter(torch.linspace(0.5, 1.5, 100).to(getattr(torch, dtype)))])
    before, optimizer = (
        weight[0].detach().clone(),
        Optimizer(weight, TrainConfig(lr=lr, warmup_steps=0, schedule="constant", weight_decay=0.0), total_steps=steps),
    )
    for _ in range(steps):
        optimizer.zero()
        weight[0].float().sum().backward()
        optimizer.step()
    return before.float() - weight[0].detach().float()


def test_steps_that_bfloat16_cannot_hold_add_up() -> None:
    # 1 - 1e-5 rounds to 1 in bfloat16, whose next number below 1 is 1 - 2^-8. After 2000 steps the sum is .02.
    assert torch.tensor(1.0 - 1e-5).to(torch.bfloat16) == 1.0
    torch.testing.assert_close(pushed("float32", 2000), torch.full((100,), 0.02), rtol=1e-2, atol=0)
    torch.testing.assert_close(pushed("bfloat16", 2000), torch.full((100,), 0.02), rtol=0, atol=2**-7)


def test_gradients_of_micro_batches_are_added_in_32_bits() -> None:
    weight = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=torch.bfloat16))])
    optimizer = Optimizer(weight, TrainConfig(lr=1.0, warmup_steps=0, max_grad_norm=0.0), total_steps=1)
    optimizer.zero()
    for share in [1.0] + [2.0**-9] * 256:  # each of the small ones is lost on a sum in bfloat16
        (weight[0] * share).sum().backward()
    assert optimizer.step() == 1.5


def test_scores_in_bfloat16_are_those_of_the_rounded_weights() -> None:
    batch, short = collate(ROWS), model_in("bfloat16")
    rounded = tiny_model()
    rounded.load_state_dict({k: v.float() for k, v in short.state_dict().items()})
    with torch.no_grad():
        found, want = score_tokens(short, batch).logp, score_tokens(rounded, batch).logp
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, want, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_sft_learns_saves_and_resumes_exactly(dtype: DType, lora: bool, tmp_path: Path) -> None:
    whole, broken, resumed = (model_in(dtype, lora=lora, seed=0) for _ in range(3))
    before = mean_loss(whole, ROWS)
    torch.manual_seed(0)
    sft(whole, 40)
    assert mean_loss(whole, ROWS) < before - 0.3
    torch.manual_seed(0)
    with pytest.raises(Killed):
        sft(broken, 40, folder=tmp_path / "state", on_step=killer(25))
    torch.manual_seed(99)  # what a fresh process would have
    sft(resumed, 40, folder=tmp_path / "state")
    assert torch.equal(weights(resumed), weights(whole))
    reads_back(whole, dtype, tmp_path / "checkpoint")


def reads_back(model: nn.Module, dtype: DType, folder: Path) -> None:
    """The checkpoint is a whole model of the base's precision, and says what the trained one says."""
    save(model, folder)
    read = AutoModelForCausalLM.from_pretrained(folder)
    assert read.dtype == getattr(torch, dtype)
    assert not hasattr(read, "peft_config")
    model.eval()
    batch = collate(ROWS)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.05, "atol": 0.2}
    with torch.no_grad():
        want = score_tokens(model, batch).logp
        for again in (read, load_model(folder, dtype=dtype)):
            torch.testing.assert_close(score_tokens(again, batch).logp, want, **close)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_grpo_learns_saves_and_resumes_exactly(dtype: DType, lora: bool, tmp_path: Path) -> None:
    def trainer() -> GRPOTrainer:
        frozen = None if lora else model_in(dtype)
        return grpo_trainer(
            model_in(dtype, lora=lora),
            AlgoConfig(kl_coef=0.01),
            reference=frozen,
            max_tokens_per_microbatch=60,
            steps=6,
            warmup_steps=0,
            num_minibatches=2,
        )

    def good(model: nn.Module) -> float:
        """Of the conversations with advantage 1, less those with -1."""
        model.eval()
        with torch.no_grad():
            return float(score_tokens(model, collate(ROWS)).logp.sum(-1) @ torch.tensor([t.advantages[0] for t in TRAJECTORIES]))

    whole, broken, resumed = trainer(), trainer(), trainer()
    before, kl = good(whole.model), 0.0
    torch.manual_seed(0)
    for _ in range(6):
        update = whole.update(TRAJECTORIES)
        assert update is not None
        kl = update.kl
    assert good(whole.model) > before + 1.0
    assert kl > 0
    torch.manual_seed(0)
    for _ in range(3):
        broken.update(TRAJECTORIES)
    broken.save(tmp_path / "state")
    torch.manual_seed(99)
    assert resumed.restore(tmp_path / "state") == {}
    for _ in range(3):
        resumed.update(TRAJECTORIES)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    reads_back(whole.model, dtype, tmp_path / "checkpoint")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_additions_are_trained_in_32_bits(dtype: DType) -> None:
    model = model_in(dtype, lora=True)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {getattr(torch, dtype)}

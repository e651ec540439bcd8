"""A two-layer model over 40 tokens, conversations for it, and what tests ask of models."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tau2rl.config import AlgoConfig, GrpoTrainConfig, SamplingConfig, ShapeConfig
from tau2rl.train.engine.shared_prefix import switch_on
from tau2rl.train.sft import SFTStep
from tau2rl.train.tiny import create
from tau2rl.train.trainer import GRPOTrainer
from tau2rl.types import TrainingSample

VOCAB = 40
SHAPE = ShapeConfig(hidden=16, layers=2, heads=2, head_dim=8, intermediate=24)
SAMPLING = SamplingConfig(temperature=1.0)


def tiny_model(seed: int = 0) -> nn.Module:
    """The same weights for the same seed; switched to our attention, on which `test_families.py` proves its kind."""
    torch.set_num_threads(1)
    model = create(SHAPE, vocab_size=VOCAB, seed=seed, eos_token_id=1, pad_token_id=0)
    switch_on(model)
    return model


def sliding_model() -> nn.Module:
    """Half of the layers have a sliding window of 8 tokens."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
            num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1,
        )
    )  # fmt: skip
    switch_on(model)
    return model


def algo_config(**values: Any) -> AlgoConfig:
    """The settings of the loss, without those that have no effect under the others: a config with them is refused."""
    corrects = values.get("correction", "none")
    idle = {
        "loss_scale": values.get("loss_aggregation") != "constant",
        "kl": not values.get("kl_coef"),
        "correction_low": corrects not in ("mis", "clip"),
        **dict.fromkeys(("correction_high", "correction_level", "veto"), corrects == "none"),
    }
    return AlgoConfig(**{name: value for name, value in values.items() if not idle.get(name)})


def grpo_trainer(
    model: nn.Module,
    algo: AlgoConfig | None = None,
    *,
    reference: nn.Module | None = None,
    max_tokens_per_microbatch: int = 8192,
    **train: Any,
) -> GRPOTrainer:
    """One with a constant rate, unless `train` says otherwise."""
    settings: dict[str, Any] = {"lr": 1e-2, "steps": 30, "warmup_steps": 1, "schedule": "constant", **train}
    return GRPOTrainer(
        model,
        algo or AlgoConfig(),
        GrpoTrainConfig(**settings),
        reference=reference,
        max_tokens_per_microbatch=max_tokens_per_microbatch,
    )


def sample(length: int, *, seed: int, shared: Sequence[int] = (), with_logprobs: bool = False) -> TrainingSample:
    """A random conversation: some spans of it sampled, the rest given."""
    rng = random.Random(seed)
    ids = [*shared, *(rng.randrange(2, VOCAB) for _ in range(length))]
    mask = [0] * len(shared) + [int(rng.random() < 0.4) for _ in range(length)]
    mask[-1] = 1
    logprobs = tuple(-rng.random() * m for m in mask) if with_logprobs else None
    return TrainingSample(token_ids=tuple(ids), loss_mask=tuple(mask), logprobs=logprobs, turn_spans=())


def weights(model: nn.Module) -> torch.Tensor:
    """Those that are trained, in one row."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def gradient(model: nn.Module) -> torch.Tensor:
    """Of all weights that have one, in one row."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Killed(Exception):
    """Stands for the power cut."""


def killer(at: int) -> Callable[[SFTStep], None]:
    """Cuts the power behind step `at`."""

    def on_step(step: SFTStep) -> None:
        if step.step == at:
            raise Killed

    return on_step

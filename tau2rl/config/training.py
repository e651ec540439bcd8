"""The groups of knobs of training: what it starts from, how weights move, where curves go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tau2rl.config.base import Section
from tau2rl.config.sections import LocalConfig


class ModelConfig(Section):
    """What training starts from."""

    init: str = "tiny"
    """A checkpoint's directory, or `tiny`: a small Qwen3 with random weights and a tokenizer made from the training rows."""


class TrainConfig(Section):
    """How weights move, on any backend."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps (GRPO: rollout rounds) of the whole run."""
    lr: float = Field(default=1e-6, gt=0)
    """Highest learning rate."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up."""
    min_lr_share: float = Field(default=0.1, ge=0, le=1)
    """Where the cosine ends, as a share of `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """On matrices; never on norms and biases."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 = off."""
    save_every: int = Field(default=50, ge=1)
    """Steps between states from which an interrupted run goes on."""
    export_every: int = Field(default=0, ge=0)
    """Steps between whole checkpoints beside the final one; 0 = none."""


class SftTrainConfig(TrainConfig):
    """How weights move in supervised training."""

    lr: float = Field(default=1e-5, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=16, ge=1)
    """Conversations a step; the loss is the mean over all their assistant tokens."""
    eval_every: int = Field(default=50, ge=1)
    """Steps between looks at the held-out loss."""
    patience: int = Field(default=0, ge=0)
    """Looks without a better held-out loss after which training stops; 0 = never."""


class GrpoTrainConfig(TrainConfig):
    """How weights move in reinforcement learning."""

    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices; never on norms and biases."""
    tasks_per_step: int = Field(default=16, ge=1)
    """Groups a step; the episodes of a group are `rollout.num_samples`."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer steps over the episodes of one round; 1 = on-policy. `local`: each over all of them, `slime`: over its share."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between looks at the selection tasks (`select`); 0 = none."""


class ShapeConfig(Section):
    """The random model behind `model.init: tiny`; its size is a matter of seconds, not of quality."""

    hidden: int = Field(default=96, ge=8)
    """Width."""
    layers: int = Field(default=3, ge=1)
    """Depth."""
    heads: int = Field(default=3, ge=1)
    """Attention heads."""
    head_dim: int = Field(default=32, ge=2)
    """Width of a head."""
    intermediate: int = Field(default=192, ge=8)
    """Width of the feed-forward layer."""
    vocab_size: int = Field(default=2048, ge=300)
    """Of the tokenizer at most; 256 bytes and the control tokens are in it."""
    copy_gain: float = Field(default=0.3, ge=0)
    """How strongly attention starts out as a copier of tokens; 0 = a plain start, which needs ten times the steps."""


class LoraConfig(Section):
    """Low-rank additions in place of whole weights."""

    rank: int = Field(default=0, ge=0)
    """0 = train all weights."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale, divided by the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On their input."""
    targets: str = "all-linear"
    """Which layers, in peft's words."""


class LocalTrainConfig(LocalConfig):
    """How a model is trained in this process."""

    micro_tokens: int = Field(default=4096, ge=1)
    """Tokens computed in one forward pass, those that rows share counted once; a step sums over as many passes as it needs."""
    gradient_checkpointing: bool = False
    """Compute activations twice in place of keeping them: slower, far less memory."""
    lora: LoraConfig = LoraConfig()
    shape: ShapeConfig = ShapeConfig()


class TrackingConfig(Section):
    """Where curves go beside `metrics.jsonl`."""

    wandb: Literal["off", "offline", "online"] = "off"
    """`offline` writes below the run folder; `wandb sync` sends it later."""
    project: str = "tau2rl"
    """The W&B project."""

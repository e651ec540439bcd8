"""The `slime:` section: how a model is trained and served on a cluster. What the training means is said in the other sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tau2rl.config.base import Section


class SlimeUserConfig(Section):
    """A user simulator of one's own, served inside the training job; it lives and dies with it."""

    gpus: int = Field(default=0, ge=0)
    """GPUs that serve it. 0: it is elsewhere, as `user.api_base` and `user.model` say."""
    gpus_per_engine: int = Field(default=1, ge=1)
    """GPUs of one engine."""
    checkpoint: Path | None = None
    """The directory of its model. `user.model` and `user.api_base` are then filled in by the job."""
    name: str = Field(default="user_sim", pattern=r"[A-Za-z][A-Za-z0-9_-]*")
    """What the job calls it."""
    mem_fraction: float = Field(default=0.85, gt=0, lt=1)
    """Share of the memory of its GPUs for weights and cached keys and values."""
    context_tokens: int = Field(default=32768, ge=1024)
    """The longest conversation that it reads."""
    tool_parser: str = "qwen25"
    """How SGLang reads its tool calls (users in telecom have tools): `qwen25` for Qwen2.5 and Qwen3, `llama3`, ..."""


class SlimeConfig(Section):
    """How training runs on a cluster, the `slime` backend. The defaults are for a model of 4B parameters on H100 GPUs."""

    root: Path = Path("/root/slime")
    """The checkout of slime, where `train.py` is."""
    megatron: Path = Path("/root/Megatron-LM")
    """The checkout of Megatron-LM."""
    layout: Literal["split", "colocate"] = "split"
    """`split`: some GPUs train and others play. `colocate`: the same ones do both in turns."""
    train_nodes: int = Field(default=1, ge=1)
    """Machines that train."""
    train_gpus: int = Field(default=4, ge=1)
    """GPUs that train, on each of them."""
    policy_gpus: int = Field(default=2, ge=1)
    """GPUs that serve the policy, of all machines together. `colocate` has the training ones in place of these."""
    gpus_per_engine: int = Field(default=1, ge=1)
    """GPUs of one engine of the policy."""
    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs of a machine."""
    user: SlimeUserConfig = SlimeUserConfig()
    tensor_parallel: int = Field(default=2, ge=1)
    """GPUs that share a layer."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """GPUs that share the stack of layers."""
    context_parallel: int = Field(default=1, ge=1)
    """GPUs that share a sequence."""
    max_tokens_per_gpu: int = Field(default=9216, ge=1)
    """Tokens of one forward pass, for each GPU that shares a sequence. The longest episode has to fit."""
    log_probs_chunk: int = Field(default=-1, ge=-1)
    """Positions whose log-probabilities are computed at once, for long sequences on little memory; -1 = all."""
    recompute: bool = True
    """Compute activations twice in place of keeping them."""
    mem_fraction: float = Field(default=0.7, gt=0, lt=1)
    """Share of the memory of a GPU that serves the policy, for weights and cached keys and values."""
    overlap: bool = False
    """Play the next round while this one is trained on: the policy is one step old. `split` alone."""
    loss_mask: Literal["qwen", "qwen3", "qwen3_5"] = "qwen3_5"
    """`sft`: how slime finds the assistant's tokens. `qwen3_5` is exact for the templates of Qwen3-Instruct-2507, of hybrid Qwen3
    and of Qwen2.5; `qwen3` is exact for the first alone."""
    saves: Literal["all", "last"] = "all"
    """What is kept of the states from which training goes on, 56 GB each at 4B; `last` deletes one once the next is written."""
    fault_tolerance: bool = True
    """Watch the engines and start dead ones again."""
    health_seconds: float = Field(default=60.0, gt=0)
    """How long an engine may take to say that it is well."""
    circuit_breaker_seconds: float = Field(default=1800.0, gt=0)
    """After `rollout.give_up_after` attempts in a row that FAILED, one at a time tries whether the world is back; after so many
    seconds the job ends."""
    dump: bool = False
    """Keep slime's own dump of every round, gigabytes each."""
    extra: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Other options of slime, Megatron or SGLang, by name without dashes: `{log-multi-turn: true, optimizer-cpu-offload: true}`.
    They are checked as all others are. One that a setting makes is refused; one that is always the same, such as
    `attention-backend`, is replaced, and `false` takes a switch away."""

    @model_validator(mode="after")
    def _fits(self) -> SlimeConfig:
        if self.overlap and self.layout == "colocate":
            raise ValueError("slime.overlap plays and trains at once, so it needs slime.layout `split`")
        if self.user.gpus and self.user.checkpoint is None:
            raise ValueError("slime.user.gpus serve slime.user.checkpoint, the user's model: give its directory, or 0 GPUs")
        return self

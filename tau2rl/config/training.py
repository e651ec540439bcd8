"""The sections of training: how weights move, what the loss is, on which tasks it is validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, model_validator

from tau2rl.config.base import Reference, Section
from tau2rl.config.kinds import TrajectoryEstimator, TurnEstimator
from tau2rl.config.sections import FaultsConfig, LocalConfig, RolloutConfig, SamplingConfig, TasksConfig


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
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Where the cosine ends, as a share of `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """On matrices; never on norms and biases."""
    max_grad_norm: float = Field(default=1.0, ge=0)
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
    val_every: int = Field(default=50, ge=1)
    """Steps between measurements of the validation loss."""
    early_stopping_patience: int = Field(default=0, ge=0)
    """Validations without a better validation loss after which training stops; 0 = never."""


class GrpoTrainConfig(TrainConfig):
    """How weights move in reinforcement learning."""

    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices; never on norms and biases."""
    tasks_per_step: int = Field(default=16, ge=1)
    """Groups a step; the episodes of a group are `rollout.num_samples`."""
    num_minibatches: int = Field(default=1, ge=1)
    """Optimizer steps over the episodes of one rollout batch, each over its share of them; 1 = on-policy."""
    val_every: int = Field(default=0, ge=0)
    """Steps between validations on the tasks of `val`; 0 = none."""


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

    max_tokens_per_microbatch: int = Field(default=4096, ge=1)
    """Tokens computed in one forward pass, those that rows share counted once; a step sums over as many passes as it needs."""
    gradient_checkpointing: bool = False
    """Compute activations twice in place of keeping them: slower, far less memory."""
    lora: LoraConfig = LoraConfig()


class SftLocalConfig(LocalTrainConfig):
    """How a model is made and trained in this process."""

    shape: ShapeConfig = ShapeConfig()


class TrackingConfig(Section):
    """Where curves and sampled conversations go beside `metrics.jsonl`."""

    wandb: Literal["off", "offline", "online"] = "off"
    """`offline` writes below the run folder; `wandb sync` sends it later."""
    trackers: tuple[Literal["trackio", "tensorboard"], ...] = ()
    """Other trackers, each an extra of its name: `tensorboard` writes below the run folder, `trackio` where its variables say."""
    project: str = "tau2rl"
    """The project in W&B and trackio."""
    conversations: int | None = Field(default=None, ge=0)
    """How many conversations of a step each tracker gets; default: 4 for one that keeps them on this machine, 0 for one that
    sends them on (W&B, now or by `wandb sync`), and for a sink of your own."""
    sinks: tuple[Reference, ...] = ()
    """Sinks of your own, `package.module:Name`, beside these."""


class RolloutSamplingConfig(SamplingConfig):
    """How episodes to learn from are sampled; top_p and top_k would bias their log-probabilities."""

    temperature: float = Field(default=1.0, gt=0)
    """The trainer divides its logits by it too."""

    @model_validator(mode="after")
    def _whole_distribution(self) -> RolloutSamplingConfig:
        if self.top_p != 1.0 or self.top_k != -1:
            raise ValueError("episodes to learn from are sampled from the whole distribution: top_p 1, top_k -1")
        return self


class CurriculumConfig(Section):
    """Which tasks come next; see `data/task_sampling.py`."""

    enabled: bool = False
    """Prefer tasks whose group is likely to hold both a success and a failure; off: every task in turn, shuffled."""
    floor: float = Field(default=0.05, gt=0, le=1)
    """Least weight of a task; a certain mixed group weighs 1."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """What each step leaves of older evidence."""
    profile: Path | None = None
    """File of `tau2rl synth profile`, the evidence to begin with: what it sets aside is drawn by `floor` until one of its groups
    ends otherwise. Given, it switches `enabled` on."""

    @model_validator(mode="before")
    @classmethod
    def _with_a_profile(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = cast("Mapping[str, Any]", values)
        return {"enabled": True, **given} if given.get("profile") is not None else given


class AlgoConfig(FaultsConfig):
    """The policy gradient, on any backend."""

    estimator: Literal[TrajectoryEstimator, TurnEstimator] = "grpo"
    """Scores to advantages: `grpo`, `dr_grpo`, `rloo` for an episode; `mt_grpo`, `gtpo`, `mt_gtpo` for each turn."""
    gamma: float = Field(default=0.9, ge=0, le=1)
    """Discount of a turn's return, `gtpo` and `mt_gtpo`."""
    outcome_weight: float = Field(default=0.3, ge=0)
    """Weight of the outcome beside the turns, `mt_gtpo`."""
    turn_rewards: Literal["reference_write", "calibrated", "dense"] = "reference_write"
    """What a turn's tool calls are worth, for the estimators of turns; see `reward/tiers.py`."""
    ratio: Literal["token", "sequence"] = "token"
    """`sequence`: GSPO, one ratio for all tokens of an episode."""
    eps_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below 1 - this."""
    eps_high: float = Field(default=0.28, ge=0)
    """The ratio is clipped above 1 + this."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of a bad token whose ratio has grown, at this many times its advantage."""
    loss_aggregation: Literal["token-mean", "seq-mean", "constant"] = "token-mean"
    """What the sum of token losses is divided by, over the whole batch. `constant`: Dr. GRPO."""
    loss_scale: int = Field(default=1024, ge=1)
    """Tokens of an episode that `constant` assumes."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL to the frozen starting model; 0 = none, and no second model is kept."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Which estimate of it."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    correction: Literal["none", "tis", "mis", "clip"] = "none"
    """Of a sampler whose log-probabilities are not the trainer's: truncate, mask or clip the importance weight."""
    correction_level: Literal["token", "sequence", "geometric"] = "token"
    """What has one weight."""
    correction_low: float = Field(default=0.5, ge=0)
    """Least weight, `mis` and `clip`."""
    correction_high: float = Field(default=2.0, gt=0)
    """Greatest weight."""
    veto: float | None = Field(default=None, gt=0)
    """Leave out an episode with a token whose weight is below this."""
    max_resample_rounds: int = Field(default=0, ge=0)
    """Groups whose attempts all score the same have no signal and are left out; at most so many more rounds of tasks a step
    are played until `train.tasks_per_step` groups have one."""
    truncated: Literal["keep", "drop"] = "keep"
    """Episodes that were cut off: `keep` trains on them with the score they have, `drop` leaves them out of loss and mean."""
    curriculum: CurriculumConfig = CurriculumConfig()

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> AlgoConfig:
        if self.kl_coef and self.kl == "k1":
            # Its gradient is the score function, whose mean over samples of the policy itself is zero.
            raise ValueError("algo.kl `k1` as a loss has an expected gradient of zero: use `k2` or `k3`, or algo.kl_coef 0")
        return self


class MonitorsConfig(Section):
    """Alarms of a training that finds another way to be paid than the one that is wanted; see docs/decide.md."""

    action: Literal["warn", "stop", "off"] = "warn"
    """What an alarm does, once in a run: `warn` says so and marks the curve; `stop` (backend `local`) ends the run behind the
    step, and `--resume` goes on with it; `off`: nothing is watched."""
    window: int = Field(default=5, ge=1)
    """Steps at the beginning of the run, and the last ones, whose means are compared."""
    rise: float = Field(default=0.25, gt=0, le=1)
    """By how much the share of episodes grows that loop, read without writes, transfer, spam numbers, or succeed by nothing."""
    turns_growth: float = Field(default=1.5, gt=1)
    """How many times as many turns a conversation has."""
    success_fall: float = Field(default=0.1, gt=0, le=1)
    """By how much success falls while the score rises."""
    entropy_left: float = Field(default=0.2, ge=0, lt=1)
    """Share of the entropy of a token below which it has collapsed."""


class GrpoRolloutConfig(RolloutConfig):
    """The episodes of a group, and how many at once."""

    num_samples: int = Field(default=8, ge=2)
    """Episodes of a group: attempts at one task with one policy."""
    keep: bool = False
    """Write every episode to `episodes.jsonl`, tens of kilobytes each; with the backend `local` also the trainer's
    log-probabilities of those that it learned from, to `trainer_logprobs/`."""


class ValConfig(TasksConfig):
    """The tasks on which a training is validated while it goes on: by default of the domains of `tasks`, never the test split."""

    split: str = "synth-select"
    """A split that is neither trained on nor tested on; default: `synth-select` for `mock`, else `train-select`."""
    limit: int | None = Field(default=50, ge=1)
    """At most so many tasks of each domain, the first ones of the split."""
    num_samples: int = Field(default=1, ge=1)
    """Attempts a task."""
    temperature: float | None = Field(default=None, ge=0)
    """Of these attempts; default: that of the training (`sampling.temperature`). 0 = greedy."""


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

"""Every knob: frozen, unknown keys are errors with the nearest name as a hint, YAML files + `--set a.b=c`.

A field's description is its documentation: `tau2rl config show` and `--help` read it from here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tau2rl.errors import UserError

DomainName = Literal["airline", "retail", "telecom", "mock"]
DOMAINS: tuple[DomainName, ...] = get_args(DomainName)
PolicyKind = Literal["sglang", "api", "local", "gold", "do-nothing", "always-transfer"]


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("this is the name of an environment variable, such as `OPENAI_API_KEY`, and never the key itself")
    return text


def _without_password(url: str) -> str:
    authority = re.split(r"[/?#]", re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//", "", url), maxsplit=1)[0]
    if "@" in authority:
        raise ValueError("a URL is stored and shown, so it holds no user and no password; keys come from the environment")
    return url


VariableName = Annotated[str, AfterValidator(_variable_name)]
Url = Annotated[str, AfterValidator(_without_password)]
UNSEEN = {"api_key_env", "api_base", "url", "address"}  # settings whose wrong values no message repeats


class Section(BaseModel):
    """A frozen group of knobs that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,  # YAML reads a task id like `17` as a number
        allow_inf_nan=False,
        hide_input_in_errors=True,  # people put keys where the name of a variable should be
    )


class TasksConfig(Section):
    """Which tasks."""

    domains: tuple[DomainName, ...] = ("airline", "retail", "telecom")
    """`airline`, `retail`, `telecom`, and the small `mock`."""
    split: str = "test"
    """`train`, `test` or `base` (all); telecom also has `small`, `full`; mock has `base`, `synth-train`, `-select`, `-test`."""
    ids: tuple[str, ...] = ()
    """Only these task ids (`17`, or `retail/17` when several domains are on); empty = all of the split."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many tasks of each domain, the first ones of the split."""
    skip: int = Field(default=0, ge=0)
    """Pass over so many tasks of each domain first, so that stages learn from different tasks of one split."""
    exclude_quarantined: bool = False
    """Leave out tasks with a known defect (`tau2rl tasks audit` lists them)."""


class UserConfig(Section):
    """Who plays the customer."""

    kind: Literal["llm", "scripted"] = "llm"
    """`llm`: tau2's own user simulator through litellm. `scripted`: deterministic, no model, follows the task."""
    model: str = "gpt-4.1-mini"
    """litellm model name; `openai/NAME` with `api_base` for a local SGLang or vLLM server."""
    api_base: Url | None = None
    """Base URL of an OpenAI-compatible server (`http://127.0.0.1:30001/v1`); default: the provider's own."""
    api_key_env: VariableName | None = None
    """Name of the environment variable that holds the key; default: what litellm looks for."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the user model; the published numbers used 0.7."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Deadline of one call to the user model."""
    retries: int = Field(default=2, ge=0)
    """Calls tried again after an error or an empty answer, each with the same deadline."""
    patience: int = Field(default=3, ge=1)
    """`scripted` only: agent messages in a row without progress before the user hangs up."""


class SamplingConfig(Section):
    """How the policy samples."""

    temperature: float = Field(default=0.7, ge=0)
    """0 = greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 = off."""
    top_k: int = Field(default=-1, ge=-1)
    """-1 = off."""
    max_tokens: int = Field(default=4096, ge=1)
    """At most so many new tokens a turn."""


class PolicyConfig(Section):
    """Who plays the agent."""

    kind: PolicyKind = "sglang"
    """`sglang`: a server's `/generate`, token ids in and out. `api`: any litellm model, eval and data only.
    `local`: a checkpoint, sampled in this process. `gold`: replays the reference actions. `do-nothing`, `always-transfer`:
    the floors."""
    checkpoint: Path | None = None
    """`local`: the directory of the checkpoint (`outputs/sft/default/checkpoints/final`); its tokenizer is in it."""
    url: Url = "http://127.0.0.1:30000"
    """`sglang`: base URL of the server or router."""
    model: str | None = None
    """`api`: litellm model name."""
    api_base: Url | None = None
    """`api`: base URL of an OpenAI-compatible server; default: the provider's own."""
    api_key_env: VariableName | None = None
    """`api`: name of the environment variable that holds the key; default: what litellm looks for."""
    sampling: SamplingConfig = SamplingConfig()
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Deadline of one policy call."""
    retries: int = Field(default=3, ge=0)
    """Tries again after an overloaded or unreachable server."""


class ChatConfig(Section):
    """How messages become tokens."""

    protocol: Literal["native", "cookbook", "transcript"] = "native"
    """`native`: the checkpoint's own chat template. `cookbook`: one `<tool_call>` a turn with `respond` and `done`, as the
    published Qwen3-4B-tau2 checkpoints were trained. `transcript`: JSON lines, for policies that read messages."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer directory (or name), or `bytes` for the built-in one. `transcript` needs none."""
    policy_text: Literal["full", "compressed"] = "full"
    """`cookbook`: the domain's whole policy, or the cookbook's short form."""
    cookbook_prompt: Path | None = None
    """`cookbook`: `tau2_rl_pipeline/prompting.py` of jbarnes850/Tau2-RL-Pipeline, whose exact words the published checkpoints
    were trained with. Default: a prompt of our own in the same format."""

    @model_validator(mode="after")
    def _takes_effect(self) -> ChatConfig:
        idle = [name for name in ("policy_text", "cookbook_prompt") if getattr(self, name) not in ("full", None)]
        if idle and self.protocol != "cookbook":
            raise ValueError(
                f"{' and '.join(f'chat.{name}' for name in idle)} would have no effect under chat.protocol `{self.protocol}`: "
                "leave it out, or set chat.protocol to `cookbook`"
            )
        return self


class LimitsConfig(Section):
    """Where a conversation is cut, and every deadline."""

    max_steps: int = Field(default=100, ge=1)
    """tau2's own limit: messages of agent, user and environment together."""
    max_turns: int = Field(default=100, ge=1)
    """Agent turns, repairs included."""
    context_tokens: int = Field(default=32768, ge=2)
    """Prompt and completion together; a turn that would not fit ends the episode as truncated."""
    repairs: int = Field(default=1, ge=0)
    """Malformed turns in a row that are answered with a repair request."""
    step_timeout_seconds: float = Field(default=300.0, gt=0)
    """One agent turn in the environment: its tool calls, or the user's whole answer."""
    grade_timeout_seconds: float = Field(default=120.0, gt=0)
    """tau2's grading of a conversation that was cut off; other gradings are part of the step that ended it."""
    episode_timeout_seconds: float = Field(default=1800.0, gt=0)
    """One conversation; when it is over, the episode is truncated."""


class RolloutConfig(Section):
    """How many episodes, and how many at once."""

    num_samples: int = Field(default=4, ge=1)
    """Attempts a task, sampled."""
    greedy: bool = False
    """One more attempt a task at temperature 0, reported apart from the sampled ones."""
    concurrency: int = Field(default=32, ge=1)
    """Episodes in flight."""
    retries: int = Field(default=2, ge=0)
    """Fresh attempts for an episode that FAILED (server, simulator, grader)."""
    give_up_after: int = Field(default=20, ge=1)
    """Episodes in a row that FAILED, retries included, after which the run stops: something is down for good."""


PRESETS = ("cookbook", "pipeline", "outcome", "guarded")


class RewardConfig(Section):
    """How tau2's verdicts become a score; every preset is documented in `rewards/presets.py`."""

    preset: Literal["cookbook", "pipeline", "outcome", "guarded"] = "pipeline"
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the partial score, the same in every domain; default: the preset's, which may differ by domain."""
    normalise: bool | None = None
    """Divide by the weights of the kinds that the task has; default: the preset's."""
    step_penalty: float | None = Field(default=None, ge=0)
    """Taken off for each agent turn; default: the preset's."""
    tool_penalty: float | None = Field(default=None, ge=0)
    """Taken off for each refused call and malformed turn, up to the preset's cap; default: the preset's."""
    allow_dominated: bool = False
    """Accept settings under which a failure can outscore a success."""


class LaunchConfig(Section):
    """Where the job runs. Not part of a run's identity."""

    address: Url | None = None
    """A running cluster's job server (`http://HEAD:8265`); default: a local head, started and stopped for this run."""
    inline: bool = False
    """Run in this process, without Ray."""
    detach: bool = False
    """Submit and return (needs `address`)."""


class LocalConfig(Section):
    """How a model runs in this process: `policy.kind: local` and the `local` backend."""

    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: float32 on a CPU, which has no fast bfloat16, and bfloat16 on a GPU."""
    threads: int = Field(default=1, ge=1)
    """Threads of one matrix product. More than the idle cores is slower than one."""
    slots: int = Field(default=64, ge=1)
    """Conversations whose keys and values are kept; more in flight take turns and pay for their prompt again."""


class StageConfig(Section):
    """What every stage has."""

    name: str = "default"
    """The run folder is `OUTPUT_ROOT/STAGE/NAME` unless `output` says otherwise."""
    seed: int = 300
    """Every attempt's own seed is derived from it."""
    output: Path | None = None
    """Run folder."""
    resume: bool = False
    """Continue the run in the folder; its settings must be the same."""
    launch: LaunchConfig = LaunchConfig()


class EvalConfig(StageConfig):
    """`tau2rl eval`."""

    stage: Literal["eval"] = "eval"
    tasks: TasksConfig = TasksConfig()
    policy: PolicyConfig = PolicyConfig()
    user: UserConfig = UserConfig()
    chat: ChatConfig = ChatConfig()
    limits: LimitsConfig = LimitsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    local: LocalConfig = LocalConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_tokenizer(cls, values: Any) -> Any:
        return _with_tokenizer(values, "policy", "checkpoint")

    @model_validator(mode="after")
    def _fits(self) -> EvalConfig:
        _check_agent(self.policy, self.chat)
        return self


class TrainTasksConfig(TasksConfig):
    """Which tasks to learn from."""

    split: str = "train"
    """`train`; for `mock` the synthesised `synth-train`."""


class TeacherConfig(PolicyConfig):
    """Who demonstrates."""

    kind: PolicyKind = "gold"
    """`gold`: replays the reference actions. `sglang`, `api`: a model that can already solve the tasks."""


class TeacherUserConfig(UserConfig):
    """Who plays the customer of a demonstration."""

    kind: Literal["llm", "scripted"] = "scripted"
    """`scripted`: deterministic, no model, follows the task. `llm`: tau2's own user simulator through litellm."""


class TeacherChatConfig(ChatConfig):
    """How demonstrations are written."""

    protocol: Literal["native", "cookbook", "transcript"] = "transcript"
    """`transcript`, `native`: OpenAI messages with tools; `native` checks each turn against a tokenizer. `cookbook`: one
    `<tool_call>` a turn as text, with its system prompt."""


class TeacherRolloutConfig(RolloutConfig):
    """How many demonstrations, and how many at once."""

    num_samples: int = Field(default=1, ge=1)
    """Attempts a task."""


class SeedConfig(StageConfig):
    """`tau2rl seed`."""

    stage: Literal["seed"] = "seed"
    tasks: TrainTasksConfig = TrainTasksConfig()
    policy: TeacherConfig = TeacherConfig()
    user: TeacherUserConfig = TeacherUserConfig()
    chat: TeacherChatConfig = TeacherChatConfig()
    limits: LimitsConfig = LimitsConfig()
    rollout: TeacherRolloutConfig = TeacherRolloutConfig()
    reward: RewardConfig = RewardConfig()
    local: LocalConfig = LocalConfig()
    keep: Literal["solved", "all"] = "solved"
    """`solved`: only what tau2 graded 1. `all`: every graded demonstration, as a teacher whom nobody checked would give them."""
    slip: float = Field(default=0.0, ge=0, le=1)
    """Synthesised tasks: how often the gold teacher gets a change wrong, so that later stages have something to gain."""
    allow_held_out: bool = False
    """Accept tasks of a test or selection split, which no training set should have."""

    @model_validator(mode="before")
    @classmethod
    def _own_tokenizer(cls, values: Any) -> Any:
        return _with_tokenizer(values, "policy", "checkpoint")

    @model_validator(mode="after")
    def _fits(self) -> SeedConfig:
        _check_agent(self.policy, self.chat)
        if self.slip and (self.policy.kind != "gold" or not self.tasks.split.startswith("synth-")):
            raise ValueError("slip is the gold teacher's, on synthesised tasks: tasks.domains [mock], tasks.split `synth-train`")
        return self


class RftSamplingConfig(SamplingConfig):
    """How attempts are sampled."""

    temperature: float = Field(default=0.8, ge=0)
    """High enough that attempts at a task differ; 0 = greedy."""


class RftPolicyConfig(PolicyConfig):
    """Who makes the attempts."""

    sampling: RftSamplingConfig = RftSamplingConfig()  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so a subclass will do


class KeepConfig(Section):
    """Which attempts are kept; the limits hold in this order."""

    partial_backoff: float | None = Field(default=None, gt=0, le=1)
    """For a task without a success: its best attempt, if its partial score is at least this (published recipes: 0.6). It
    trains on failures, so it is off by default."""
    exclude_no_op: bool = False
    """Leave out successes in which nobody called a tool that changes anything."""
    dedupe: bool = True
    """Keep one of several attempts at a task with the same tool calls in the same order."""
    per_task: int | None = Field(default=2, ge=1)
    """At most so many of a task, so that easy tasks do not take over."""
    per_kind: int | None = Field(default=None, ge=1)
    """At most so many of a kind of task (`tau2rl.bench.tasks.kind_of`), those of different tasks first."""
    per_domain: int | None = Field(default=None, ge=1)
    """At most so many of a domain, those of different tasks first."""


class RftConfig(StageConfig):
    """`tau2rl rft-filter`."""

    stage: Literal["rft-filter"] = "rft-filter"
    sources: tuple[Path, ...] = ()
    """Run folders whose episodes are filtered. Empty: attempts are sampled, by the settings below."""
    tasks: TrainTasksConfig = TrainTasksConfig()
    policy: RftPolicyConfig = RftPolicyConfig()
    user: UserConfig = UserConfig()
    chat: ChatConfig = ChatConfig()
    limits: LimitsConfig = LimitsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    keep: KeepConfig = KeepConfig()
    local: LocalConfig = LocalConfig()
    allow_held_out: bool = False
    """Accept tasks of a test or selection split, which no training set should have."""

    @model_validator(mode="before")
    @classmethod
    def _own_tokenizer(cls, values: Any) -> Any:
        return _with_tokenizer(values, "policy", "checkpoint")

    @model_validator(mode="after")
    def _fits(self) -> RftConfig:
        if not self.sources:
            _check_agent(self.policy, self.chat)
        return self


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
    """Optimizer steps over the episodes of one round; 1 = on-policy."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between looks at the selection tasks (`select`); 0 = none."""


class DataConfig(Section):
    """Rows to train on."""

    files: tuple[Path, ...] = ()
    """JSONL files: rows of `seed` and `rft-filter`, plain OpenAI `messages`, `tau2-sft-seed-v3`, AReaL-tau2-data."""
    max_tokens: int = Field(default=32768, ge=2)
    """A longer row is left out whole and named in the report; nothing is cut."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of the rows that is never trained on, chosen by a hash of the row's id; its loss is the held-out loss."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many rows of each file, the first ones."""
    allow_empty: bool = False
    """Where no row is left: hand the model on as it is, in place of a refusal. For smoke runs."""


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
    """Padded tokens of one forward pass; a step sums over as many passes as it needs."""
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


class SftConfig(StageConfig):
    """`tau2rl sft`."""

    stage: Literal["sft"] = "sft"
    backend: Literal["local"] = "local"
    """`local`: torch in this process, on a CPU or one GPU."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: SftTrainConfig = SftTrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    local: LocalTrainConfig = LocalTrainConfig()


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
    """Which tasks come next; see `rewards/curriculum.py`."""

    enabled: bool = False
    """Prefer tasks whose group is likely to hold both a success and a failure; off: every task in turn, shuffled."""
    floor: float = Field(default=0.05, gt=0, le=1)
    """Least weight of a task; a certain mixed group weighs 1."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """What each step leaves of older evidence."""


class AlgoConfig(Section):
    """The policy gradient, on any backend."""

    estimator: Literal["grpo", "dr_grpo", "rloo", "mt_grpo", "gtpo", "mt_gtpo"] = "grpo"
    """Scores to advantages: `grpo`, `dr_grpo`, `rloo` for an episode; `mt_grpo`, `gtpo`, `mt_gtpo` for each turn."""
    gamma: float = Field(default=0.9, ge=0, le=1)
    """Discount of a turn's return, `gtpo` and `mt_gtpo`."""
    outcome_weight: float = Field(default=0.3, ge=0)
    """Weight of the outcome beside the turns, `mt_gtpo`."""
    turn_rewards: Literal["reference_write", "calibrated", "dense"] = "reference_write"
    """What a turn's tool calls are worth, for the estimators of turns; see `rewards/tiers.py`."""
    ratio: Literal["token", "sequence"] = "token"
    """`sequence`: GSPO, one ratio for all tokens of an episode."""
    eps_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below 1 - this."""
    eps_high: float = Field(default=0.28, ge=0)
    """The ratio is clipped above 1 + this."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of a bad token whose ratio has grown, at this many times its advantage."""
    normaliser: Literal["token-mean", "seq-mean", "constant"] = "token-mean"
    """What the sum of token losses is divided by, over the whole batch. `constant`: Dr. GRPO."""
    constant: int = Field(default=1024, ge=1)
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
    max_refills: int = Field(default=0, ge=0)
    """Groups whose attempts all score the same teach nothing and are left out; at most so many more rounds of tasks a step
    are played until `train.tasks_per_step` groups teach something."""
    truncated: Literal["keep", "drop"] = "keep"
    """Episodes that were cut off: `keep` trains on them with the score they have, `drop` leaves them out of loss and mean."""
    curriculum: CurriculumConfig = CurriculumConfig()


class GrpoRolloutConfig(RolloutConfig):
    """The episodes of a group, and how many at once."""

    num_samples: int = Field(default=8, ge=2)
    """Episodes of a group: attempts at one task with one policy."""
    keep: bool = False
    """Write every episode to `episodes.jsonl`: tens of kilobytes each."""


class SelectConfig(TasksConfig):
    """The tasks by which one looks at a training that goes on. Never the test split."""

    split: str = "synth-select"
    """A split that is neither trained on nor tested on."""
    limit: int | None = Field(default=50, ge=1)
    """At most so many tasks of each domain, the first ones of the split."""
    num_samples: int = Field(default=1, ge=1)
    """Attempts a task."""


class GrpoConfig(StageConfig):
    """`tau2rl grpo`."""

    stage: Literal["grpo"] = "grpo"
    backend: Literal["local"] = "local"
    """`local`: torch in this process, on a CPU or one GPU."""
    model: ModelConfig = ModelConfig()
    tasks: TrainTasksConfig = TrainTasksConfig()
    select: SelectConfig = SelectConfig()
    user: UserConfig = UserConfig()
    chat: ChatConfig = ChatConfig()
    sampling: RolloutSamplingConfig = RolloutSamplingConfig()
    limits: LimitsConfig = LimitsConfig()
    rollout: GrpoRolloutConfig = GrpoRolloutConfig()
    reward: RewardConfig = RewardConfig()
    algo: AlgoConfig = AlgoConfig()
    train: GrpoTrainConfig = GrpoTrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    local: LocalTrainConfig = LocalTrainConfig()
    allow_held_out: bool = False
    """Accept tasks of a test or selection split, which no training should see."""

    @model_validator(mode="before")
    @classmethod
    def _own_tokenizer(cls, values: Any) -> Any:
        return _with_tokenizer(values, "model", "init")

    @model_validator(mode="after")
    def _fits(self) -> GrpoConfig:
        if self.model.init == "tiny":
            raise ValueError("model.init `tiny` knows nothing that could be reinforced: give a checkpoint, made by `tau2rl sft`")
        if self.chat.protocol == "transcript":
            raise ValueError("chat.protocol `transcript` has no tokens to train on: use `native` or `cookbook`")
        if self.rollout.greedy:
            raise ValueError("the episodes of a group are sampled: rollout.greedy is for evaluations")
        return self


class StepConfig(Section):
    """One step of a pipeline."""

    stage: Literal["seed", "sft", "rft-filter", "grpo"]
    """What it does."""
    file: Path | None = None
    """Its settings, as a config file; relative to the pipeline's own file."""
    settings: dict[str, Any] = {}
    """Its settings, in front of those of `file`."""
    data: tuple[str, ...] = ()
    """`sft`: the earlier steps whose rows are trained on."""
    model: str | None = None
    """The earlier step whose checkpoint is trained further, or makes the attempts."""


class EvaluationConfig(Section):
    """How the model is evaluated after each step that trains it."""

    file: Path | None = None
    """The settings of the evaluation, as a config file; relative to the pipeline's own file."""
    settings: dict[str, Any] = {}
    """The settings of the evaluation, in front of those of `file`."""


class PipelineConfig(StageConfig):
    """`tau2rl run`."""

    stage: Literal["pipeline"] = "pipeline"
    steps: dict[str, StepConfig] = {}
    """Name of a step -> the step, in the order in which they run."""
    evaluation: EvaluationConfig | None = None
    """None: no step is evaluated."""
    limit: int | None = Field(default=None, ge=1)
    """A smoke run of the whole chain: so many tasks in each step, and a few optimizer steps. It shows that the chain holds."""


def _with_tokenizer(values: Any, section: str, key: str) -> Any:
    """Settings whose `chat.tokenizer`, where it is not given, is the checkpoint that they name."""
    if not isinstance(values, Mapping):
        return values
    given = cast("Mapping[str, Any]", values)
    inner, chat = given.get(section), given.get("chat", {})
    checkpoint = cast("Mapping[str, Any]", inner).get(key) if isinstance(inner, Mapping) else None
    if checkpoint is None or not isinstance(chat, Mapping):
        return given
    chat = cast("Mapping[str, Any]", chat)
    return {**given, "chat": {**chat, "tokenizer": chat.get("tokenizer") or str(checkpoint)}}


def _check_agent(policy: PolicyConfig, chat: ChatConfig) -> None:
    """Refuse a policy that does not speak the protocol."""
    if policy.kind == "local":
        if chat.protocol == "transcript":
            raise ValueError("chat.protocol `transcript` has no tokens for policy.kind `local`: use `native` or `cookbook`")
        if policy.checkpoint is None:
            raise ValueError("policy.kind `local` needs policy.checkpoint, the directory of a checkpoint")
    if policy.kind == "sglang":
        if chat.protocol == "transcript":
            raise ValueError("chat.protocol `transcript` has no tokens for policy.kind `sglang`: use `native` or `cookbook`")
        if not chat.tokenizer:
            raise ValueError("policy.kind `sglang` needs chat.tokenizer: the directory of the checkpoint's tokenizer")
    elif policy.kind == "api":
        if chat.protocol != "transcript":
            raise ValueError("policy.kind `api` exchanges messages, not tokens: set chat.protocol to `transcript`")
        if not policy.model:
            raise ValueError("policy.kind `api` needs policy.model, a litellm model name")


STAGES: dict[str, type[StageConfig]] = {
    "seed": SeedConfig,
    "sft": SftConfig,
    "rft-filter": RftConfig,
    "grpo": GrpoConfig,
    "eval": EvalConfig,
    "pipeline": PipelineConfig,
}
# Settings that say where and how a run is carried out, not what it measures: a resumed run may change them.
NOT_IDENTITY = {"name", "output", "resume", "launch"}

C = TypeVar("C", bound=Section)


def build(model: type[C], values: Mapping[str, Any]) -> C:
    """Validate `values` as `model`. Raises UserError that names the key and, for an unknown one, the nearest."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(model, error) from None


def load(model: type[C], file: Path | None, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> C:
    """The config of a run: a YAML or JSON file, then `--set a.b=c`, then options of the command line.

    `overrides` maps dotted names to values; None means "not given". Raises UserError.
    """
    values = read_file(file) if file else {}
    for item in sets:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"cannot read `--set {item}`", hint="write it as NAME=VALUE, for example --set rollout.num_samples=8")
        put(values, name.strip(), parse_value(text))
    for name, value in (overrides or {}).items():
        if value is not None:
            put(values, name, value)
    return build(model, values)


def read_file(file: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises UserError."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such config file `{file}`", hint="the ready-made ones are in `configs/`") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config file `{file}`: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"config file `{file}` is not a mapping of settings")
    return cast("dict[str, Any]", data)


def parse_value(text: str) -> Any:
    """A value as YAML reads it: `3`, `true`, `null`, `[a, b]`, `text`.

    >>> parse_value("[retail, 3]"), parse_value("1e-6"), parse_value("on-call")
    (['retail', 3], 1e-06, 'on-call')
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads `1e-6`, which people type, as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested mappings, making the ones on the way.

    >>> d = {}
    >>> put(d, "a.b", 1)
    >>> d
    {'a': {'b': 1}}
    """
    *path, last = name.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"`{part}` in `{name}` is a value, not a section")
        values = cast("dict[str, Any]", inner)
    values[last] = value


def dump(config: Section) -> dict[str, Any]:
    """The config as JSON-ready values, every setting resolved."""
    return config.model_dump(mode="json")


def identity(config: StageConfig) -> dict[str, Any]:
    """The settings that decide what a run measures."""
    return {k: v for k, v in dump(config).items() if k not in NOT_IDENTITY}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to values.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out.update(flatten(cast("dict[str, Any]", value), f"{name}."))
        else:
            out[name] = value
    return out


def known_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted setting of a config class, sections included."""
    names: list[str] = []
    for key, info in model.model_fields.items():
        names.append(prefix + key)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names += known_names(info.annotation, f"{prefix}{key}.")
    return names


def _explain(model: type[BaseModel], error: ValidationError) -> UserError:
    names = known_names(model)
    lines: list[str] = []
    hints: list[str] = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or difflib.get_close_matches(
                name.rpartition(".")[2], [n.rpartition(".")[2] for n in names], n=1
            )
            lines.append(f"no such setting `{name}`")
            hints += [f"did you mean `{near[0]}`?"] if near else []
        else:
            if item["type"] == "literal_error":
                words = re.findall(r"'([^']+)'", str(item.get("ctx", {}).get("expected", "")))
                hints += [f"did you mean `{near}`?" for near in difflib.get_close_matches(str(item["input"]), words, n=1)]
            message = item["msg"].removeprefix("Value error, ")
            shown = (
                ""
                if not name
                else f"`{name}`"
                + (
                    ""
                    if isinstance(item["input"], dict) or UNSEEN.intersection(item["loc"])
                    else f" = {json.dumps(item['input'], default=str)}"
                )
                + ": "
            )
            lines.append(f"{shown}{message[:1].lower()}{message[1:]}")
    return UserError("\n".join(lines), hint="; ".join(dict.fromkeys(hints)) or "`tau2rl config show` lists every setting")

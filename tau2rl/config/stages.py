"""One class a stage: `tau2rl eval` and its kin read all their settings here."""

# pyright: reportIncompatibleVariableOverride=false
# Sections are frozen, so one of a subclass may stand where one of the base does.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from tau2rl.config.base import TEST_SPLITS, Module, Section, WordOrReference
from tau2rl.config.kinds import BACKENDS, POLICIES, SERVED
from tau2rl.config.sections import (
    BalanceConfig,
    BudgetConfig,
    ChatConfig,
    DataConfig,
    KeepConfig,
    LaunchConfig,
    LimitsConfig,
    LocalConfig,
    PolicyConfig,
    RewardConfig,
    RftPolicyConfig,
    RolloutConfig,
    TasksConfig,
    TeacherChatConfig,
    TeacherConfig,
    TeacherRolloutConfig,
    TeacherUserConfig,
    TemplateConfig,
    TrainBudgetConfig,
    TrainTasksConfig,
    UserConfig,
)
from tau2rl.config.training import (
    AlgoConfig,
    GrpoRolloutConfig,
    GrpoTrainConfig,
    LocalTrainConfig,
    ModelConfig,
    MonitorsConfig,
    RolloutSamplingConfig,
    SftLocalConfig,
    SftTrainConfig,
    SlimeConfig,
    TrackingConfig,
    ValConfig,
)

BackendName = Annotated[str, AfterValidator(WordOrReference(*BACKENDS))]


class StageConfig(Section):
    """What every stage has."""

    stage: str
    name: str = "default"
    """The run folder is `OUTPUT_ROOT/STAGE/NAME` unless `output` says otherwise."""
    seed: int = 300
    """Every attempt's own seed is derived from it."""
    output: Path | None = None
    """Run folder."""
    resume: bool = False
    """Continue the run in the folder; its settings must be the same."""
    plugins: tuple[Module, ...] = ()
    """Modules that every process of the run imports first, such as one that registers a domain of your own with tau2."""
    launch: LaunchConfig = LaunchConfig()


class PlayConfig(StageConfig):
    """What a stage has that plays conversations."""

    CHECKPOINT: ClassVar[tuple[str, str]] = ("policy", "checkpoint")  # the setting that names the model, by section and key

    tasks: TasksConfig = TasksConfig()
    user: UserConfig = UserConfig()
    chat: ChatConfig = ChatConfig()
    limits: LimitsConfig = LimitsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    budget: BudgetConfig = BudgetConfig()

    @property
    def attempts_per_task(self) -> int:
        """Sampled attempts at each task."""
        return self.rollout.num_samples

    @model_validator(mode="before")
    @classmethod
    def _own_tokenizer(cls, values: Any) -> Any:
        return _with_tokenizer(values, *cls.CHECKPOINT)


class AgentConfig(PlayConfig):
    """What a stage has whose agent is not trained meanwhile."""

    policy: PolicyConfig = PolicyConfig()
    local: LocalConfig = LocalConfig()

    @property
    def plays(self) -> bool:
        """Whether the stage plays at all: it may have conversations already."""
        return True

    @property
    def adaptive(self) -> bool:
        """Whether the number of episodes in flight follows a server."""
        return self.rollout.adaptive is not False and self.policy.kind in SERVED

    @model_validator(mode="after")
    def _agent_speaks_the_protocol(self) -> AgentConfig:
        if self.plays:
            _check_agent(self.policy, self.chat)
        return self


class LearnConfig(PlayConfig):
    """What a stage has whose conversations are learned from."""

    tasks: TrainTasksConfig = TrainTasksConfig()
    allow_held_out: bool = False
    """Accept tasks of a test or validation split, which no training should see."""

    @model_validator(mode="before")
    @classmethod
    def _fitting_splits(cls, values: Any) -> Any:
        return _with_splits(cls, values)


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


def _with_splits(stage: type[LearnConfig], values: Any) -> Any:
    """Settings whose splits, where they are not given, fit the domains; `val` has those of `tasks`, and none of its tasks."""
    if not isinstance(values, Mapping):
        return values
    given = cast("Mapping[str, Any]", values)
    parts: list[Any] = [given.get(key, {}) for key in ("tasks", "val", "train")]
    if not all(isinstance(part, Mapping) for part in parts):
        return given
    tasks, val, train = (dict(cast("Mapping[str, Any]", part)) for part in parts)
    domains = tasks.get("domains", stage.model_fields["tasks"].default.domains)
    if _only_mock(domains):
        tasks.setdefault("split", "synth-train")
    if "val" not in stage.model_fields or not train.get("val_every"):
        return {**given, "tasks": tasks}
    val.setdefault("domains", domains)
    val.setdefault("source", tasks.get("source"))
    val.setdefault("split", "synth-select" if _only_mock(val["domains"]) else "train-select")
    if val["split"] == "train-select":
        tasks.setdefault("split", "train-learn")  # `train` has the tasks of both
    return {**given, "tasks": tasks, "val": val}


def _only_mock(domains: Any) -> bool:
    return isinstance(domains, (list, tuple)) and list(cast("list[Any]", domains)) == ["mock"]


def _check_agent(policy: PolicyConfig, chat: ChatConfig) -> None:
    """Refuse a policy that does not speak the protocol, or lacks what it needs."""
    traits = POLICIES.get(policy.kind)
    if traits is None:
        return
    if traits.exchanges == "tokens" and chat.protocol == "transcript":
        raise ValueError(f"chat.protocol `transcript` has no tokens for policy.kind `{policy.kind}`: use `native` or `cookbook`")
    if traits.exchanges == "messages" and chat.protocol != "transcript":
        raise ValueError(f"policy.kind `{policy.kind}` exchanges messages, not tokens: set chat.protocol to `transcript`")
    if traits.needs is not None:
        setting, what = traits.needs
        section, _, name = setting.partition(".")
        if not getattr({"policy": policy, "chat": chat}[section], name):
            raise ValueError(f"policy.kind `{policy.kind}` needs {setting}, {what}")


class MakesDataConfig(LearnConfig, AgentConfig):
    """What a stage has that writes conversations to train on."""


class SeedConfig(MakesDataConfig):
    """`tau2rl seed`."""

    stage: Literal["seed"] = "seed"
    policy: TeacherConfig = TeacherConfig()
    user: TeacherUserConfig = TeacherUserConfig()
    chat: TeacherChatConfig = TeacherChatConfig()
    rollout: TeacherRolloutConfig = TeacherRolloutConfig()
    keep: Literal["solved", "solved+form", "all"] = "solved"
    """`solved`: only what tau2 graded 1. `solved+form`: of that what has no fault of `balance.form`. `all`: every graded
    demonstration, as a teacher whom nobody checked would give them. Published (docs/data.md): all 64.1, solved 56.2 at 4B."""
    balance: BalanceConfig = BalanceConfig()
    noise_prob: float = Field(default=0.0, ge=0, le=1)
    """Synthesized tasks: how often the gold teacher gets a change wrong, so that later stages have something to gain."""


class SftConfig(StageConfig):
    """`tau2rl sft`."""

    stage: Literal["sft"] = "sft"
    backend: BackendName = "local"
    """`local`: torch in this process, on a CPU or one GPU. `slime`: Megatron and SGLang on a cluster. `package.module:Name`: a
    backend of your own."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    chat: TemplateConfig = TemplateConfig()
    train: SftTrainConfig = SftTrainConfig()
    budget: TrainBudgetConfig = TrainBudgetConfig()
    tracking: TrackingConfig = TrackingConfig()
    local: SftLocalConfig = SftLocalConfig()
    slime: SlimeConfig = SlimeConfig()


class RftConfig(MakesDataConfig):
    """`tau2rl rft-filter`."""

    stage: Literal["rft-filter"] = "rft-filter"
    sources: tuple[Path, ...] = ()
    """Run folders whose episodes are filtered. Empty: attempts are sampled, by the settings below."""
    policy: RftPolicyConfig = RftPolicyConfig()
    keep: KeepConfig = KeepConfig()

    @property
    def plays(self) -> bool:
        """Whether attempts are sampled."""
        return not self.sources


class GrpoConfig(LearnConfig):
    """`tau2rl grpo`."""

    CHECKPOINT: ClassVar[tuple[str, str]] = ("model", "init")

    stage: Literal["grpo"] = "grpo"
    backend: BackendName = "local"
    """`local`: torch in this process, on a CPU or one GPU. `slime`: Megatron and SGLang on a cluster. `package.module:Name`: a
    backend of your own."""
    model: ModelConfig = ModelConfig()
    val: ValConfig = ValConfig()
    sampling: RolloutSamplingConfig = RolloutSamplingConfig()
    rollout: GrpoRolloutConfig = GrpoRolloutConfig()
    algo: AlgoConfig = AlgoConfig()
    train: GrpoTrainConfig = GrpoTrainConfig()
    monitors: MonitorsConfig = MonitorsConfig()
    tracking: TrackingConfig = TrackingConfig()
    local: LocalTrainConfig = LocalTrainConfig()
    slime: SlimeConfig = SlimeConfig()

    @property
    def serves_user(self) -> bool:
        """Whether the run serves the model of the user simulator itself."""
        return bool(self.slime.user.gpus)

    @model_validator(mode="after")
    def _fits(self) -> GrpoConfig:
        if self.model.init == "tiny":
            raise ValueError("model.init `tiny` knows nothing that could be reinforced: give a checkpoint, made by `tau2rl sft`")
        if self.chat.protocol == "transcript":
            raise ValueError("chat.protocol `transcript` has no tokens to train on: use `native` or `cookbook`")
        if self.rollout.greedy:
            raise ValueError("the episodes of a group are sampled: rollout.greedy is for evaluations")
        if self.train.val_every:
            self._validation_is_apart()
        return self

    def _validation_is_apart(self) -> None:
        """Refuse validation tasks that are tested on or trained on."""
        if self.val.split in TEST_SPLITS:
            raise ValueError(f"val.split `{self.val.split}` holds test tasks: use `train-select`, for mock `synth-select`")
        if (self.tasks.split, self.val.split) == ("train", "train-select"):
            raise ValueError("tasks.split `train` holds the tasks of val.split `train-select`: train on `train-learn`")


class EvalConfig(AgentConfig):
    """`tau2rl eval`."""

    stage: Literal["eval"] = "eval"
    repetitions: int = Field(default=1, ge=1)
    """Whole repetitions of the run, each with a seed of its own: how much they differ stands beside the interval."""
    card: str | None = None
    """A released model whose published results the report sets beside these; default: that of the checkpoint's own name. Never
    of a checkpoint that was trained here."""

    @property
    def attempts_per_task(self) -> int:
        """Sampled attempts at each task, in all repetitions."""
        return self.rollout.num_samples * self.repetitions

    @model_validator(mode="after")
    def _only_samples_are_repeated(self) -> EvalConfig:
        if self.repetitions > 1 and self.rollout.greedy:
            raise ValueError(
                "repetitions: rollout.greedy plays its one attempt a task once: leave one of them out, or sample at temperature 0"
            )
        return self


class StepConfig(Section):
    """One step of a pipeline."""

    stage: Literal["seed", "sft", "rft-filter", "grpo"]
    """What it does."""
    file: Path | None = None
    """Its settings, as a config file; relative to the pipeline's own file."""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Its settings, in front of those of `file`."""
    data: tuple[str, ...] = ()
    """`sft`: the earlier steps whose rows are trained on."""
    sources: tuple[str, ...] = ()
    """`rft-filter`: the earlier steps whose episodes are filtered; empty: attempts of its own."""
    model: str | None = None
    """The earlier step whose checkpoint is trained further, or makes the attempts."""
    start: str | None = None
    """`sft`, `grpo`: the earlier step from whose own beginning this one begins too, as branches of one model do."""


class EvaluationConfig(Section):
    """How the model is evaluated after each step that trains it."""

    file: Path | None = None
    """The settings of the evaluation, as a config file; relative to the pipeline's own file."""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The settings of the evaluation, in front of those of `file`."""


class PipelineConfig(StageConfig):
    """`tau2rl run`."""

    stage: Literal["pipeline"] = "pipeline"
    steps: dict[str, StepConfig] = Field(default_factory=dict[str, StepConfig])
    """Name of a step -> the step, in the order in which they run."""
    evaluation: EvaluationConfig | None = None
    """None: no step is evaluated."""
    compare: tuple[str, ...] = ()
    """Steps that train, or `base`: their evaluations are compared, each with each, task by task."""
    budget: BudgetConfig = BudgetConfig()
    limit: int | None = Field(default=None, ge=1)
    """A smoke run of the whole chain: so many tasks in each step, and a few optimizer steps. It shows that the chain holds."""


STAGES: dict[str, type[StageConfig]] = {
    "seed": SeedConfig,
    "sft": SftConfig,
    "rft-filter": RftConfig,
    "grpo": GrpoConfig,
    "eval": EvalConfig,
    "pipeline": PipelineConfig,
}

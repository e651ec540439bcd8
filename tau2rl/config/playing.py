"""What every stage has, and what the stages have that play conversations."""

# pyright: reportIncompatibleVariableOverride=false
# Sections are frozen, so one of a subclass may stand where one of the base does.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import model_validator

from tau2rl.config.base import Section
from tau2rl.config.data import TrainTasksConfig
from tau2rl.config.sections import (
    ChatConfig,
    LaunchConfig,
    LimitsConfig,
    LocalConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TasksConfig,
    UserConfig,
)

# Settings that say where and how a run is carried out, not what it measures: a resumed run may change them.
NOT_IDENTITY = {"name", "output", "resume", "launch"}

SERVED = ("sglang", "api")  # the kinds of policy that a server answers for


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
            if self.rollout.adaptive and not self.adaptive:
                raise ValueError(
                    f"rollout.adaptive follows a server, and policy.kind `{self.policy.kind}` has none: leave it out"
                )
        return self


class LearnConfig(PlayConfig):
    """What a stage has whose conversations are learned from."""

    tasks: TrainTasksConfig = TrainTasksConfig()
    allow_held_out: bool = False
    """Accept tasks of a test or selection split, which no training should see."""


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

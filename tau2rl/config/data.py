"""The groups of knobs of training data: `seed` and `rft-filter` make it, `sft` reads it."""

# pyright: reportIncompatibleVariableOverride=false
# Sections are frozen, so one of a subclass may stand where one of the base does.

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tau2rl.config.base import Section
from tau2rl.config.sections import ChatConfig, PolicyConfig, PolicyKind, RolloutConfig, SamplingConfig, TasksConfig, UserConfig


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


class RftSamplingConfig(SamplingConfig):
    """How attempts are sampled."""

    temperature: float = Field(default=0.8, ge=0)
    """High enough that attempts at a task differ; 0 = greedy."""


class RftPolicyConfig(PolicyConfig):
    """Who makes the attempts."""

    sampling: RftSamplingConfig = RftSamplingConfig()


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

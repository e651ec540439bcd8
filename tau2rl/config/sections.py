"""The sections that several stages share: tasks, user, policy, chat, limits, rollout, reward, launch, data."""

# pyright: reportIncompatibleVariableOverride=false
# Sections are frozen, so one of a subclass may stand where one of the base does.

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tau2rl.config.base import IsoDate, Reference, Section, Url, VariableName, WordOrReference
from tau2rl.config.kinds import POLICIES, PROTOCOLS

PolicyKind = Annotated[str, AfterValidator(WordOrReference(*POLICIES))]
ChatProtocol = Annotated[str, AfterValidator(WordOrReference(*PROTOCOLS))]
NotNegative = Annotated[float, Field(ge=0)]


class TasksConfig(Section):
    """Which tasks."""

    source: Path | None = None
    """A file of tasks in place of tau2's own, such as `tau2rl synth` makes; its splits are in `split_tasks.json` beside it."""
    domains: tuple[str, ...] = ("airline", "retail", "telecom")
    """`airline`, `retail`, `telecom`, the small `mock`, and what a module of `plugins` registers with tau2."""
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
    """Who plays the user."""

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
    omit: tuple[Literal["temperature", "seed"], ...] = ()
    """Fields of a request that the user model's server refuses, and that are left out: `[seed]`."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Deadline of one call to the user model."""
    retries: int = Field(default=2, ge=0)
    """Calls tried again after an error or an empty answer, each with the same deadline. A server that limits its rate is asked
    until as much time is over as all of them may take."""
    max_stalled_turns: int = Field(default=3, ge=1)
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
    the floors. `package.module:Name`: a policy of your own."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What a policy of your own is made with, beside the chat codec."""
    checkpoint: Path | None = None
    """`local`: the directory of the checkpoint (`outputs/sft/default/checkpoints/final`); its tokenizer is in it."""
    url: Url = "http://127.0.0.1:30000"
    """`sglang`: base URL of the server, or of the router in front of several."""
    model: str | None = None
    """`api`: litellm model name."""
    api_base: Url | None = None
    """`api`: base URL of an OpenAI-compatible server; default: the provider's own."""
    api_key_env: VariableName | None = None
    """`api`: name of the environment variable that holds the key; default: what litellm looks for, none with `api_base`."""
    omit: tuple[Literal["temperature", "top_p", "max_tokens", "seed"], ...] = ()
    """`api`: fields of a request that the server refuses, and that are left out: `[seed]`."""
    sampling: SamplingConfig = SamplingConfig()
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Deadline of one policy call."""
    retries: int = Field(default=3, ge=0)
    """Tries again after a server that is overloaded or unreachable. One that limits its rate is asked until the deadline."""


class TemplateConfig(Section):
    """What a chat template is told."""

    thinking: Literal["off", "keep", "per-turn"] = "off"
    """`off`: the model is told not to think, in its template's own way. `keep`: thoughts stay in the conversation where they
    were sampled. `per-turn`: earlier thoughts are taken out as the template does it; a turn is trained on as it was sampled."""
    date: IsoDate | None = None
    """Today's date as a template that writes it is told, `2026-01-31`. Such a template is refused without it."""


class ChatConfig(TemplateConfig):
    """How messages become tokens."""

    protocol: ChatProtocol = "native"
    """`native`: the checkpoint's own chat template. `cookbook`: one `<tool_call>` a turn with `respond` and `done`, as the
    published Qwen3-4B-tau2 checkpoints were trained. `transcript`: JSON lines, for policies that read messages.
    `package.module:Name`: a codec of your own."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What a codec of your own is made with, beside the tokenizer."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer directory (or name), or `bytes` for the built-in one. `transcript` needs none."""
    thinking_tokens: int | None = Field(default=None, ge=1)
    """At most so many tokens of thought a turn, then the thought is closed and the turn goes on; default: no such limit."""
    policy_text: Literal["full", "compressed"] = "full"
    """`cookbook`: the domain's whole policy, or the cookbook's short form."""
    cookbook_prompt: Path | None = None
    """`cookbook`: `tau2_rl_pipeline/prompting.py` of jbarnes850/Tau2-RL-Pipeline, whose exact words the published checkpoints
    were trained with. Default: a prompt of our own in the same format."""


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
    """Episodes in flight, at most."""
    adaptive: bool | None = None
    """Let the number of episodes in flight, up to `concurrency`, follow the queue, the memory and the failures of the policy's
    servers; default: on for `policy.kind` `sglang` and `api`, which have servers."""
    workers: int = Field(default=0, ge=0)
    """Processes that play them, as actors of the Ray cluster with a core each, spread over its nodes; 0 = the job's own."""
    worker_memory_gb: float = Field(default=4.0, gt=0)
    """Memory of a worker. One with more plays what it has to the end and is replaced; with twice as much it ends at once, and
    what it played is played again."""
    retries: int = Field(default=2, ge=0)
    """Fresh attempts for an episode that FAILED (server, simulator, grader)."""
    give_up_after: int = Field(default=20, ge=1)
    """Episodes in a row that FAILED, retries included, after which the run stops: something is down for good. A task that
    never ended well counts once, while others do end well."""


class RewardTermConfig(Section):
    """A term of your own in the shaped score."""

    fn: Reference
    """`package.module:function`, called with the episode and its grade; gives a number from `low` to `high`."""
    weight: float
    """What the number is multiplied by; below 0 it is a cost."""
    low: float = 0.0
    """Least number that the function gives: any other ends the run, and no failure may outscore a success by it."""
    high: float = 1.0
    """Greatest number."""

    @model_validator(mode="after")
    def _low_is_below(self) -> RewardTermConfig:
        if self.low > self.high:
            raise ValueError("reward.terms: `low` is above `high`")
        return self


class RewardConfig(Section):
    """How tau2's verdicts become a score; every preset is documented in `reward/presets.py`."""

    preset: Literal["cookbook", "pipeline", "outcome", "guarded"] = "pipeline"
    """`cookbook`, `pipeline`: as published. `outcome`: tau2's verdict alone. `guarded`: +1 or -1, less small costs of turns."""
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the partial score, the same in every domain; default: the preset's, which may differ by domain."""
    normalise: bool | None = None
    """Divide by the weights of the kinds that the task has; default: the preset's."""
    step_penalty: float | None = Field(default=None, ge=0)
    """Taken off for each agent turn; default: the preset's."""
    tool_penalty: float | None = Field(default=None, ge=0)
    """Taken off for each refused call and malformed turn, up to the preset's cap; default: the preset's."""
    terms: tuple[RewardTermConfig, ...] = ()
    """Terms of your own: `[{fn: "my_pkg:brevity", weight: 0.1}]`."""
    recipe: Path | None = None
    """A file of `tau2rl calibrate`: what a turn is worth to the estimators of turns, instead of `algo.turn_rewards`."""
    allow_dominated: bool = False
    """Accept settings under which a failure can outscore a success."""

    @model_validator(mode="after")
    def _terms_differ(self) -> RewardConfig:
        if len({term.fn for term in self.terms}) < len(self.terms):
            raise ValueError("reward.terms names a function twice: give it one weight")
        return self


class TrainBudgetConfig(Section):
    """What a run may spend. It stops before a cap is passed, saved and incomplete; a resume with a higher one goes on."""

    max_usd: float | None = Field(default=None, gt=0)
    """Dollars at most, of all sessions together: tokens at their prices, hours at `usd_per_hour`."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours at most, of all sessions together."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """What an hour of the machine costs, all of its GPUs; a model that it serves itself then costs nothing more."""
    like: Path | None = None
    """An earlier run of the kind, from which the price is estimated; default: the first episodes or steps of this one."""


class BudgetConfig(TrainBudgetConfig):
    """What a run may spend. It stops before a cap is passed, saved and incomplete; a resume with a higher one goes on."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens at most, read and written by the agent and by the user simulator, of all sessions together."""
    policy_price: tuple[NotNegative, NotNegative] | None = None
    """Dollars for a million tokens that the agent reads, and writes; default: litellm's list, for a model that it has."""
    user_price: tuple[NotNegative, NotNegative] | None = None
    """The same for the user simulator's model."""


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
    kv_cache_slots: int = Field(default=64, ge=1)
    """Conversations whose keys and values are kept; more in flight take turns and pay for their prompt again."""


class TrainTasksConfig(TasksConfig):
    """Which tasks to learn from."""

    split: str = "train"
    """`train`; for `mock` the synthesized `synth-train`."""


class TeacherConfig(PolicyConfig):
    """Who demonstrates."""

    kind: PolicyKind = "gold"
    """`gold`: replays the reference actions. `sglang`, `api`: a model that can already solve the tasks."""


class TeacherUserConfig(UserConfig):
    """Who plays the user of a demonstration."""

    kind: Literal["llm", "scripted"] = "scripted"
    """`scripted`: deterministic, no model, follows the task. `llm`: tau2's own user simulator through litellm."""


class TeacherChatConfig(ChatConfig):
    """How demonstrations are written."""

    protocol: ChatProtocol = "transcript"
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


FormRule = Literal["several_calls", "unconfirmed_write", "unauthenticated_write", "failed_write"]


class BalanceConfig(Section):
    """How what is kept is spread: over users, and over cells of domain x writes x reads x behaviour of the user."""

    form: tuple[FormRule, ...] = ("several_calls", "unconfirmed_write", "unauthenticated_write", "failed_write")
    """`solved+form`: what a conversation must not have. `several_calls` in a turn, or text beside a call; a write that the user
    did not confirm; one before the user was looked up: each where the domain's policy asks for it. A write that failed."""
    dedupe: bool = False
    """Keep one of several attempts at a task with the same tool calls in the same order."""
    per_user: int | None = Field(default=None, ge=1)
    """At most so many about one user of the database, those of different tasks first."""
    per_cell: int | None = Field(default=None, ge=1)
    """At most so many of a cell, those of different tasks first."""
    total: int | None = Field(default=None, ge=1)
    """At most so many in all, drawn evenly over the cells."""


class FaultsConfig(Section):
    """Whose faults take an episode out of training."""

    exclude_faults: tuple[Literal["user", "task"], ...] = ()
    """Leave out episodes, solved ones too, in which the simulated user broke its own rules (`user`) or whose task is defective
    (`task`), by the gates of `tau2rl blame`."""


class KeepConfig(BalanceConfig, FaultsConfig):
    """Which attempts are kept; the limits hold in this order."""

    attempts: Literal["solved", "solved+form", "all", "subset"] = "solved"
    """`solved`: those that tau2 graded 1. `solved+form`: of those the ones without a fault of `form`. `all`: every graded one.
    `subset`: as many as `solved` would leave, drawn by a hash from all graded ones, so that `solved` and it differ in what they
    show and not in how much. Published (docs/data.md): all 64.1, subset 61.0, solved 56.2 at 4B, single runs."""
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
    """At most so many of a kind of task (`tau2rl.env.tasks.kind_of`), those of different tasks first."""
    per_domain: int | None = Field(default=None, ge=1)
    """At most so many of a domain, those of different tasks first."""


class DataConfig(Section):
    """Rows to train on."""

    files: tuple[Path, ...] = ()
    """JSONL files: rows of `seed` and `rft-filter`, plain OpenAI `messages`, `tau2-sft-seed-v3`, AReaL-tau2-data."""
    max_tokens: int = Field(default=32768, ge=2)
    """A longer row is left out whole and named in the report; nothing is cut."""
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the rows that is never trained on, chosen by a hash of the row's id; its loss is the held-out loss."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many rows of each file, the first ones."""
    allow_empty: bool = False
    """Where no row is left: hand the model on as it is, in place of a refusal. For smoke runs."""

"""The nouns of the project. No behavior beyond derived properties lives here; the Protocols are in `protocols.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tau2rl.enums import Fault, FinishReason, MalformedKind, Status, StopReason

Role = Literal["system", "user", "assistant", "tool"]
Thinking = Literal["off", "keep", "per-turn"]  # `chat.thinking`
ToolSchema = dict[str, Any]  # an OpenAI function schema: {"type": "function", "function": {"name", "description", "parameters"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRef:
    """Names one task: `TaskRef(domain="retail", task_id="17", split="test")`."""

    domain: str
    task_id: str
    split: str
    source: str = ""  # the file of tasks that it is from; "" = tau2's own

    @property
    def key(self) -> str:
        """`domain/task_id`: unique whatever the split.

        >>> TaskRef(domain="retail", task_id="17", split="test").key
        'retail/17'
        """
        return f"{self.domain}/{self.task_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Text of the agent: `Say(text="Which order do you mean?")`. Alone in a turn it goes to the user."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTool:
    """A tool call: `CallTool(name="get_order_details", arguments={"order_id": "#W123"})`."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Think:
    """What the agent thought: `Think(text="The order is pending.")`. Sampled and trained on, shown to nobody."""

    text: str = field(metadata={"alias": "thought"})  # the alias is its key in a record, where `text` is a Say


Action = Say | CallTool | Think
Actions = tuple[Action, ...]  # one turn: Think or nothing, then Say, or one or more CallTool, or Say followed by CallTool


def without_thoughts(actions: Actions) -> Actions:
    """What the environment may see of a turn.

    >>> without_thoughts((Think(text="Hm."), Say(text="Yes.")))
    (Say(text='Yes.'),)
    """
    return tuple(a for a in actions if not isinstance(a, Think))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as the agent sees it: `Message(role="tool", content='{"status": "pending"}')`.

    Tool results follow the assistant message that called, in the order of its calls, so no ids are needed.
    """

    role: Role
    content: str = ""  # "" where there is none; the text that stands beside tool calls is kept
    tool_calls: tuple[CallTool, ...] = ()
    error: bool = False  # a tool message whose call failed inside the environment
    reasoning: str = ""  # what an assistant thought before it, for the templates that write thoughts

    @staticmethod
    def of(actions: Actions) -> Message:
        """The assistant message that performs these actions.

        >>> Message.of((Say(text="One moment."), CallTool(name="f", arguments={}))).content
        'One moment.'
        """
        return Message(
            role="assistant",
            content="\n".join(a.text for a in actions if isinstance(a, Say)),
            tool_calls=tuple(a for a in actions if isinstance(a, CallTool)),
            reasoning="\n".join(a.text for a in actions if isinstance(a, Think)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the agent has before its first turn: `Opening(domain_policy="# Retail ...", messages=(greeting, first), tools=())`."""

    domain_policy: str  # the domain's rules as text; the chat protocol makes the system prompt of it
    messages: tuple[Message, ...]  # the agent's greeting, then the user's first message
    tools: tuple[ToolSchema, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A conversation as a deployment has it, for a `Verifier`: without its task, its criteria and its grade.

    `Transcript(domain="retail", domain_policy="...", tools=(), messages=())`
    """

    domain: str
    domain_policy: str
    tools: tuple[ToolSchema, ...]
    messages: tuple[Message, ...]  # those that the agent saw or wrote
    tool_kinds: dict[str, str] = field(default_factory=dict[str, str])  # tool -> read, write or generic
    status: Status = Status.COMPLETED  # whether it came to its end
    end_state: str | None = None  # hash of the agent's database at the end; None: not known
    mean_logprob: float | None = None  # of the tokens that were sampled; None: the server gave none


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """tau2's verdicts by kind: `Checks(action=(True, False), db=(False,))`. `()` = the task has none; None = no judge ran."""

    action: tuple[bool, ...] = ()
    communicate: tuple[bool, ...] = ()
    env_assertion: tuple[bool, ...] = ()
    db: tuple[bool, ...] = ()
    nl: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """tau2's own result: `Grade(reward=1.0, checks=Checks(db=(True,)), reward_basis=("DB", "COMMUNICATE"))`."""

    reward: float  # tau2's product over the basis, 0.0 when the conversation was cut off
    checks: Checks | None  # None: tau2 did not grade
    reward_basis: tuple[str, ...]

    @property
    def success(self) -> bool:
        """Whether the task was solved (reward 1 within 1e-6, as tau2 counts)."""
        return self.reward >= 1.0 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back for one agent turn: `Reply(messages=(Message(role="user", content="Yes."),))`."""

    messages: tuple[Message, ...]
    done: bool = False
    grade: Grade | None = None  # only when done
    stop_reason: StopReason | None = None  # tau2's, only when done


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a server says that a call cost: `Usage(prompt_tokens=900, completion_tokens=40, cached_tokens=860)`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """The sum, field by field."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled, as it was sampled: `Completion(token_ids=(151657, 198), logprobs=(-0.1, -0.7), ...)`."""

    token_ids: tuple[int, ...]  # [num_sampled], the stop token included when the policy emitted one
    logprobs: tuple[float, ...] | None  # [num_sampled], of the sampling distribution; None = the server gives none
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    throttled_seconds: float = 0.0  # how long the call was held back, because the server limits its rate
    weight_version: str | None = None  # of the weights that sampled it, as the server numbers them


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One sampled assistant turn, as a span of the episode's tokens: `Turn(start=812, end=851, ...)`."""

    start: int  # token_ids[:start] is the prompt that was sent, unless `kept` says otherwise
    end: int  # token_ids[start:end] is the turn: what was sampled, and `forced`
    prompt_hash: str  # `prefix_hash` of the prompt, taken when it was sent
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    actions: Actions  # () when the turn was malformed
    malformed: MalformedKind | None = None
    seconds: float = 0.0  # wall time of the policy call
    throttled_seconds: float = 0.0  # of it, held back because the server limits its rate
    env_seconds: float = 0.0  # wall time until the environment (tool or user) had answered
    usage: Usage = field(default_factory=Usage)
    weight_version: str | None = None  # see `Completion`
    # Where the template took thoughts out: the prompt is so many tokens of the turn before (its prompt and what it sampled), then
    # token_ids[end of the turn before : start]. None: all of them, and so token_ids[:start].
    kept: int | None = None
    forced: tuple[int, int] | None = None  # token_ids[a:b] closed the thought at its budget: not sampled, never trained on
    thought_tokens: int = 0  # those sampled of its thought, with what opens and closes it


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvTime:
    """What an episode's environment took: `EnvTime(seconds=21.4, user_seconds=20.1, cpu_seconds=0.006)`."""

    seconds: float = 0.0  # wall, waiting for it: the opening, every step, the grading
    user_seconds: float = 0.0  # of them, until the simulated user had answered; where that is a model, this is it
    cpu_seconds: float = 0.0  # of the episode's own thread, wherever that ran: reset, tools, user, grading


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an episode did not run to its own end: `Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="HTTP 500")`."""

    fault: Fault
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One conversation from greeting to grade, exact enough to train on and to replay."""

    task: TaskRef
    seed: int
    status: Status
    stop_reason: StopReason = field(metadata={"alias": "termination"})  # the alias is its key in a record
    token_ids: tuple[int, ...]  # [num_tokens], the last prompt and the last completion; with a `kept`, a log of all pieces
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]  # without the system message
    grade: Grade | None  # None when FAILED
    failure: Failure | None = None
    seconds: float = 0.0
    user_usage: Usage = field(default_factory=Usage)
    env_time: EnvTime | None = None  # None: not measured (no environment, or a record from before it was measured)
    worker_cpu_seconds: float = 0.0  # what its worker process used since the episode before; 0 where the run's own process played
    db_hashes: tuple[str | None, str | None] = (None, None)  # (agent database, user database) at the end
    trajectory: tuple[dict[str, Any], ...] = ()  # both sides' messages in tau2's own layout, so that tau2 can grade it again

    @property
    def solved(self) -> bool:
        """Whether tau2 gave it 1; one that was never graded is not solved."""
        return self.grade is not None and self.grade.success

    @property
    def fault(self) -> Fault | None:
        """Who is to blame; None for a success.

        A wrong ending is the agent's unless a failure says otherwise.
        """
        if self.failure is not None:
            return self.failure.fault
        return None if self.solved else Fault.AGENT

    @property
    def sampled_tokens(self) -> int:
        """Tokens of all turns, without what was put in to close a thought."""
        return sum(t.end - t.start - (t.forced[1] - t.forced[0] if t.forced else 0) for t in self.turns)

    @property
    def thought_tokens(self) -> int:
        """Those of them that are thought."""
        return sum(t.thought_tokens for t in self.turns)

    @property
    def user_waits(self) -> tuple[float, ...]:
        """Seconds that each message to the user waited for its answer."""
        return tuple(t.env_seconds for t in self.turns if t.actions and not any(isinstance(a, CallTool) for a in t.actions))

    @property
    def invalid_calls(self) -> int:
        """Tool calls that the environment refused, and turns that the protocol could not read."""
        return sum(m.error for m in self.messages) + sum(t.malformed is not None for t in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Our number beside tau2's: `Score(task=0.0, partial=0.5, shaped=0.15, components={"action": 0.5})`."""

    task: float  # tau2's reward
    partial: float | None  # None: tau2 did not grade, so there is nothing to be partial about
    shaped: float | None
    components: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One sequence with its mask: what was sampled is what is trained on."""

    token_ids: tuple[int, ...]  # [num_tokens]
    loss_mask: tuple[int, ...]  # [num_tokens], 1 on sampled tokens
    logprobs: tuple[float, ...] | None  # [num_tokens], 0.0 where the mask is 0; None when the policy gave none
    turn_spans: tuple[tuple[int, int], ...]  # [num_turns], half-open, of its turns in their order


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One planned episode: `Attempt(task=..., index=2, seed=918273)`. Two attempts never share (task, index, greedy)."""

    task: TaskRef
    index: int  # 0..num_samples-1
    seed: int
    greedy: bool = False  # sampled at temperature 0 and counted apart

    @property
    def key(self) -> str:
        """Unique within a run.

        >>> Attempt(task=TaskRef(domain="mock", task_id="a", split="base"), index=1, seed=5).key
        'mock/a#1'
        """
        return f"{self.task.key}#{'greedy' if self.greedy else self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One line of `episodes.jsonl` or `failures.jsonl`."""

    schema: int  # the layout of this line; see `runs.records.SCHEMA`
    run: str  # the run's name
    attempt: Attempt
    tries: int  # 1 + how often a FAILED episode was tried again
    episode: Episode
    score: Score | None  # None when FAILED

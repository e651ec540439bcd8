"""Our episodes as slime's samples: the tokens with mask and log-probabilities, and what an episode was in `Sample.metadata`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from tau2rl.data.task_sampling import outcome
from tau2rl.errors import UserError
from tau2rl.rollouts.runner import Outcome
from tau2rl.types import CallTool, Episode, Message, Score, Status, TaskRef, TrainingSample

if TYPE_CHECKING:
    from slime.utils.types import Sample

KEY = "tau2rl"  # in `Sample.metadata`
SHOWN = 200  # characters of a failure's message
ABORTED = "aborted"  # slime had enough episodes and ended this one
STATUS = {"completed": "COMPLETED", "malformed": "COMPLETED", "truncated": "TRUNCATED", "failed": "FAILED", ABORTED: "ABORTED"}
NOTHING = 0  # the token of a sample that has none: slime's trainer cannot do with an empty prompt or response


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMetadata:
    """All that rewards, filter, curves and curriculum know of an episode, as JSON.

    `SampleMetadata(task="retail/17", domain="retail", split="train-learn", status="completed", evidence=True, score=1.0)`
    """

    task: str  # `TaskRef.key`
    domain: str
    split: str
    status: str  # a `types.Status`, or `ABORTED`
    evidence: bool = False  # whether it counts: in the loss, in its group's mean
    solved: bool | None = None  # None: nobody can say
    reward: float | None = None  # tau2's
    score: float | None = None  # ours, shaped; None = no evidence
    partial: float | None = None
    components: dict[str, float] | None = None  # shares of checks met, and the terms of the score
    termination: str = ""
    turns: int = 0
    spans: tuple[tuple[int, int, int], ...] = ()  # (turn, start, end) of sampled tokens, in response coordinates
    turn_rewards: tuple[float, ...] = ()  # [turns], for the estimators of turns
    refused: int = 0  # calls that the environment refused, and turns that could not be read
    sampled_tokens: int = 0
    fault: str | None = None  # a `types.Fault`
    failure: str = ""
    tries: int = 1
    seconds: float = 0.0
    policy_seconds: float = 0.0  # of all turns together
    user_seconds: float = 0.0  # waiting for the user, all messages to it together
    user_messages: int = 0

    @staticmethod
    def of(
        played: Outcome, score: Score | None, turn_rewards: Sequence[float] = (), *, drop_truncated: bool = False
    ) -> SampleMetadata:
        """What an attempt was. `turn_rewards` is [turns], or empty where no estimator asks for it.

        No evidence: what FAILED, what holds no sampled token, what tau2 did not grade, and with `drop_truncated` what was cut.
        """
        episode, task = played.episode, played.attempt.task
        shaped = None if score is None else score.shaped
        cut = episode.status is Status.TRUNCATED and drop_truncated
        evidence = episode.status is not Status.FAILED and bool(episode.turns) and shaped is not None and not cut
        to_user = [turn for turn in episode.turns if turn.actions and not any(isinstance(a, CallTool) for a in turn.actions)]
        return SampleMetadata(
            task=task.key,
            domain=task.domain,
            split=task.split,
            status=episode.status.value,
            evidence=evidence,
            solved=outcome(episode),
            reward=None if episode.grade is None else episode.grade.reward,
            score=shaped if evidence else None,
            partial=None if score is None else score.partial,
            components=None if score is None else dict(score.components),
            termination=episode.stop_reason,
            turns=len(episode.turns),
            spans=response_spans(episode),
            turn_rewards=tuple(turn_rewards),
            refused=episode.invalid_calls,
            sampled_tokens=sum(turn.end - turn.start for turn in episode.turns),
            fault=None if episode.fault is None else episode.fault.value,
            failure="" if episode.failure is None else f"{episode.failure.kind}: {episode.failure.message}"[:SHOWN],
            tries=played.tries,
            seconds=episode.seconds,
            policy_seconds=sum(turn.seconds for turn in episode.turns),
            user_seconds=sum(turn.env_seconds for turn in to_user),
            user_messages=len(to_user),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, equal after a round trip through text; `from_json` reads them.

        >>> one = SampleMetadata(task="mock/a", domain="mock", split="base", status="completed", spans=((0, 0, 4), (1, 9, 12)))
        >>> SampleMetadata.from_json(one.to_json()) == one
        True
        """
        return {**asdict(self), "spans": [list(span) for span in self.spans], "turn_rewards": list(self.turn_rewards)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> SampleMetadata:
        """The inverse of `to_json`."""
        known = {f.name: values[f.name] for f in fields(SampleMetadata) if f.name in values}
        spans: Sequence[Sequence[int]] = known.get("spans", ())
        known["spans"] = tuple((turn, start, end) for turn, start, end in spans)
        known["turn_rewards"] = tuple(known.get("turn_rewards", ()))
        return SampleMetadata(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An attempt as slime's sample needs it: `Played(metadata=..., episode=..., packed=...)`."""

    metadata: SampleMetadata
    episode: Episode
    packed: TrainingSample | None  # None: nothing to learn from


def response_spans(episode: Episode) -> tuple[tuple[int, int, int], ...]:
    """(turn, start, end) of what was sampled; slime counts from the first sampled token, where its response begins."""
    first = episode.turns[0].start if episode.turns else 0
    return tuple((number, turn.start - first, turn.end - first) for number, turn in enumerate(episode.turns))


def task_of(sample: Sample) -> TaskRef:
    """The task that a prompt row names. Raises UserError for a row that is not ours: neither are the others of its file."""
    try:
        return TaskRef(**sample.metadata["task"])
    except (KeyError, TypeError):
        raise UserError("a prompt row without a `task` in its metadata", hint="`tau2rl grpo` writes the prompt rows") from None


def fill(args: Any, sample: Sample, played: Played, *, evaluation: bool) -> Sample:
    """Write an attempt into the sample that asked for it, over whatever an earlier attempt has left there."""
    metadata, packed = played.metadata, played.packed
    _empty(sample, metadata)
    if packed is None:
        _fill_with_nothing(args, sample)
    else:
        end = packed.turn_spans[0][0]
        sample.tokens = list(packed.token_ids[:end])
        for (start, stop), turn in zip(packed.turn_spans, played.episode.turns, strict=True):
            sample.append_response_tokens(args, tokens=packed.token_ids[end:start], trainable=False)
            meta = {
                "finish_reason": {"type": turn.finish_reason.value},
                "prompt_tokens": turn.usage.prompt_tokens,
                "cached_tokens": turn.usage.cached_tokens,
                **({} if turn.weight_version is None else {"weight_version": turn.weight_version}),
            }
            sample.append_response_tokens(args, tokens=packed.token_ids[start:stop], log_probs=turn.logprobs, meta_info=meta)
            end = stop
        sample.response = said(played.episode.messages)
        sample.non_generation_time = sum(turn.env_seconds for turn in played.episode.turns)
    sample.status = sample.Status[STATUS[metadata.status]]
    # Evaluations count successes; a shaped score would be another number under the same name.
    value = metadata.reward if evaluation else metadata.score
    sample.reward = 0.0 if value is None else value
    return sample


def give_up(args: Any, sample: Sample) -> Sample:
    """A sample whose episode slime has ended, or that came back without one: it counts nowhere."""
    _empty(sample, _aborted(task_of(sample)))
    _fill_with_nothing(args, sample)
    sample.status, sample.reward = sample.Status.ABORTED, 0.0
    return sample


def metadata_of(sample: Sample) -> SampleMetadata:
    """What `fill` wrote; of a sample that it never saw, because slime gave up on it, that it was aborted."""
    if KEY in sample.metadata:
        return SampleMetadata.from_json(sample.metadata[KEY])
    return _aborted(task_of(sample))


def flat(group: Sequence[Any]) -> list[Sample]:
    """The samples of a group, or of groups, in order: an attempt that fanned out is a list of them."""
    return [leaf for item in group for leaf in (flat(item) if isinstance(item, list) else [item])]


def said(messages: Sequence[Message]) -> str:
    """What the agent wrote, for slime's log and its count of repetitions; nothing is trained on it."""
    return "\n".join(
        "\n".join(filter(None, (m.content, *(f"{c.name} {c.arguments}" for c in m.tool_calls))))
        for m in messages
        if m.role == "assistant"
    )


def _aborted(task: TaskRef) -> SampleMetadata:
    return SampleMetadata(task=task.key, domain=task.domain, split=task.split, status=ABORTED)


def _empty(sample: Sample, metadata: SampleMetadata) -> None:
    sample.response, sample.response_length = "", 0
    sample.loss_mask = sample.rollout_log_probs = sample.teacher_log_probs = None
    sample.weight_versions = []
    sample.prefix_cache_info = sample.PrefixCacheInfo()
    sample.metadata = {**sample.metadata, KEY: metadata.to_json()}
    sample.remove_sample = not metadata.evidence


def _fill_with_nothing(args: Any, sample: Sample) -> None:
    sample.tokens = [NOTHING]
    sample.append_response_tokens(args, tokens=[NOTHING], trainable=False)

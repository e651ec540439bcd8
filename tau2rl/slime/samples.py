"""Our episodes as slime's samples: the tokens with mask and log-probabilities, and what an episode was in `Sample.metadata`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tau2rl.config import AlgoConfig
from tau2rl.data.task_sampling import outcome
from tau2rl.errors import UserError
from tau2rl.rollouts.monitors import habits_of
from tau2rl.rollouts.runner import Outcome
from tau2rl.types import Episode, Message, Score, TaskRef, TrainingSample, Turn
from tau2rl.verify.evidence import is_evidence

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
    spans: tuple[tuple[int, int, int], ...] = ()  # (turn, start, end) of the sample's turns, in response coordinates
    turn_rewards: tuple[float, ...] = ()  # [turns], for the estimators of turns
    refused: int = 0  # calls that the environment refused, and turns that could not be read
    sampled_tokens: int = 0
    thought_tokens: int = 0  # of them
    habits: tuple[str, ...] = ()  # of `rollouts.monitors.HABITS`
    fault: str | None = None  # a `types.Fault`
    failure: str = ""
    tries: int = 1
    seconds: float = 0.0
    policy_seconds: float = 0.0  # of all turns together
    user_seconds: float = 0.0  # waiting for the user, all messages to it together
    user_messages: int = 0

    @staticmethod
    def of(
        played: Outcome, score: Score | None, turn_rewards: Sequence[float] = (), algo: AlgoConfig | None = None
    ) -> SampleMetadata:
        """What an attempt was. `turn_rewards` is [turns], or empty where no estimator asks for it.

        No evidence: what tau2 did not grade, and what `verify.evidence` says of the settings of `algo`.
        """
        episode, task = played.episode, played.attempt.task
        shaped = None if score is None else score.shaped
        evidence = shaped is not None and is_evidence(episode, algo or AlgoConfig())
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
            sampled_tokens=episode.sampled_tokens,
            thought_tokens=episode.thought_tokens,
            habits=habits_of(episode),
            fault=None if episode.fault is None else episode.fault.value,
            failure="" if episode.failure is None else f"{episode.failure.kind}: {episode.failure.message}"[:SHOWN],
            tries=played.tries,
            seconds=episode.seconds,
            policy_seconds=sum(turn.seconds for turn in episode.turns),
            user_seconds=sum(episode.user_waits),
            user_messages=len(episode.user_waits),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, equal after a round trip through text; `from_json` reads them.

        >>> one = SampleMetadata(task="mock/a", domain="mock", split="base", status="completed", spans=((0, 0, 4), (1, 9, 12)))
        >>> SampleMetadata.from_json(one.to_json()) == one
        True
        """
        lists = {
            "spans": [list(span) for span in self.spans],
            "turn_rewards": list(self.turn_rewards),
            "habits": list(self.habits),
        }
        return {**asdict(self), **lists}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> SampleMetadata:
        """The inverse of `to_json`."""
        known = {f.name: values[f.name] for f in fields(SampleMetadata) if f.name in values}
        spans: Sequence[Sequence[int]] = known.get("spans", ())
        known["spans"] = tuple((turn, start, end) for turn, start, end in spans)
        known |= {name: tuple(known.get(name, ())) for name in ("turn_rewards", "habits")}
        return SampleMetadata(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An attempt as slime's samples need it: `Played(metadata=..., episode=..., packed=(...,))`."""

    metadata: SampleMetadata
    episode: Episode
    packed: tuple[TrainingSample, ...]  # one, or several where thoughts were taken out; () = nothing to learn from


def response_spans(episode: Episode) -> tuple[tuple[int, int, int], ...]:
    """(turn, start, end) of the turns of an episode in one piece; slime counts from the first of them, where its response begins.

    Those of an episode in several pieces are written by `fill`, sample by sample.
    """
    first = episode.turns[0].start if episode.turns else 0
    return tuple((number, turn.start - first, turn.end - first) for number, turn in enumerate(episode.turns))


def task_of(sample: Sample) -> TaskRef:
    """The task that a prompt row names. Raises UserError for a row that is not ours: neither are the others of its file."""
    try:
        return TaskRef(**sample.metadata["task"])
    except (KeyError, TypeError):
        raise UserError("a prompt row without a `task` in its metadata", hint="`tau2rl grpo` writes the prompt rows") from None


def fill(args: Any, sample: Sample, played: Played, *, evaluation: bool) -> list[Sample]:
    """Write an attempt into the sample that asked for it, over whatever an earlier attempt has left there.

    An attempt in several pieces is several samples: that one and copies of it. They share `rollout_id`, by which slime takes them
    for one attempt in every mean (`rollout_mask_sums`, slime/ray/rollout.py), and its reward.
    """
    if not played.packed:
        _empty(sample, played.metadata)
        _fill_with_nothing(args, sample)
        return [_finish(sample, played.metadata, evaluation=evaluation)]
    if len(played.packed) > 1 and sample.rollout_id is None:
        sample.rollout_id = sample.index
    filled: list[Sample] = []
    first = 0  # of the turns of the piece at hand
    for piece in played.packed:
        one = copy(sample) if filled else sample
        turns = played.episode.turns[first : first + len(piece.turn_spans)]
        begins = piece.turn_spans[0][0]
        spans = tuple((first + i, start - begins, end - begins) for i, (start, end) in enumerate(piece.turn_spans))
        _empty(one, replace(played.metadata, spans=spans))
        _fill_with(args, one, piece, turns)
        one.response = agent_text(played.episode.messages)
        filled.append(_finish(one, played.metadata, evaluation=evaluation))
        first += len(turns)
    return filled


def _fill_with(args: Any, sample: Sample, piece: TrainingSample, turns: Sequence[Turn]) -> None:
    """Write a piece: its first prompt, then each turn as it was sampled, and what stands between as not trainable."""
    end = piece.turn_spans[0][0]
    sample.tokens = list(piece.token_ids[:end])
    for (start, stop), turn in zip(piece.turn_spans, turns, strict=True):
        sample.append_response_tokens(args, tokens=piece.token_ids[end:start], trainable=False)
        meta: dict[str, Any] | None = {
            "finish_reason": {"type": turn.finish_reason.value},
            "prompt_tokens": turn.usage.prompt_tokens,
            "cached_tokens": turn.usage.cached_tokens,
            **({} if turn.weight_version is None else {"weight_version": turn.weight_version}),
        }
        for low, high, is_sampled in _runs(piece.loss_mask, start, stop):
            tokens = piece.token_ids[low:high]
            if is_sampled:
                logprobs = None if piece.logprobs is None else piece.logprobs[low:high]
                sample.append_response_tokens(args, tokens=tokens, log_probs=logprobs, meta_info=meta)
                meta = None
            else:
                sample.append_response_tokens(args, tokens=tokens, trainable=False)
        end = stop
    sample.non_generation_time = sum(turn.env_seconds for turn in turns)


def _runs(mask: Sequence[int], start: int, stop: int) -> list[tuple[int, int, bool]]:
    """The longest stretches of one value: what was sampled of a turn, and what closed its thought.

    >>> _runs([0, 1, 1, 0, 1], 1, 5)
    [(1, 3, True), (3, 4, False), (4, 5, True)]
    """
    edges = [start, *(i for i in range(start + 1, stop) if mask[i] != mask[i - 1]), stop]
    return [(low, high, bool(mask[low])) for low, high in pairwise(edges)]


def _finish(sample: Sample, metadata: SampleMetadata, *, evaluation: bool) -> Sample:
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


def flat_samples(group: Sequence[Any]) -> list[Sample]:
    """The samples of a group, or of groups, in order: an attempt that fanned out is a list of them."""
    return [leaf for item in group for leaf in (flat_samples(item) if isinstance(item, list) else [item])]


def agent_text(messages: Sequence[Message]) -> str:
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

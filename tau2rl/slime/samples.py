"""Our episodes as slime's samples, and back: the tokens with their mask and log-probabilities, and the marks in the metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tau2rl.errors import UserError
from tau2rl.slime.advantages import Member
from tau2rl.slime.metadata import KEY, Marks
from tau2rl.types import Message, TaskRef

if TYPE_CHECKING:
    from slime.utils.types import Sample

    from tau2rl.slime.rollout import Played

STATUS = {"completed": "COMPLETED", "malformed": "COMPLETED", "truncated": "TRUNCATED", "failed": "FAILED", "aborted": "ABORTED"}
NOTHING = 0  # the token of a sample that has none: slime's trainer cannot do with an empty prompt or response


def task_of(sample: Sample) -> TaskRef:
    """The task that a prompt row names. Raises UserError for a row that is not ours: neither are the others of its file."""
    try:
        return TaskRef(**sample.metadata["task"])
    except (KeyError, TypeError):
        raise UserError("a prompt row without a `task` in its metadata", hint="`tau2rl grpo` writes the prompt rows") from None


def fill(args: Any, sample: Sample, played: Played, *, evaluation: bool) -> Sample:
    """Write an attempt into the sample that asked for it, over whatever an earlier attempt has left there."""
    marks, packed = played.marks, played.packed
    _empty(sample, marks)
    if packed is None:
        sample.tokens = [NOTHING]
        sample.append_response_tokens(args, tokens=[NOTHING], trainable=False)
    else:
        end = packed.turn_spans[0][0]
        sample.tokens = list(packed.token_ids[:end])
        for (start, stop), turn in zip(packed.turn_spans, played.episode.turns, strict=True):
            sample.append_response_tokens(args, tokens=packed.token_ids[end:start], trainable=False)
            meta = {
                "finish_reason": {"type": turn.finish_reason.value},
                "prompt_tokens": turn.usage.prompt_tokens,
                "cached_tokens": turn.usage.cached_tokens,
            }
            sample.append_response_tokens(args, tokens=packed.token_ids[start:stop], log_probs=turn.logprobs, meta_info=meta)
            end = stop
        sample.response = said(played.episode.messages)
        sample.non_generation_time = sum(turn.env_seconds for turn in played.episode.turns)
    sample.status = sample.Status[STATUS[marks.status]]
    # Evaluations count successes; a shaped score would be another number under the same name.
    value = marks.reward if evaluation else marks.score
    sample.reward = 0.0 if value is None else value
    return sample


def give_up(args: Any, sample: Sample, task: TaskRef) -> Sample:
    """A sample that slime needs no more."""
    marks = Marks(task=task.key, domain=task.domain, split=task.split, status="aborted")
    _empty(sample, marks)
    sample.tokens = [NOTHING]
    sample.append_response_tokens(args, tokens=[NOTHING], trainable=False)
    sample.status, sample.reward = sample.Status.ABORTED, 0.0
    return sample


def marks_of(sample: Sample) -> Marks:
    """The marks that `fill` left."""
    return Marks.from_json(sample.metadata[KEY])


def flat(group: Sequence[Any]) -> list[Sample]:
    """The samples of a group, or of groups, in order: an attempt that fanned out is a list of them."""
    return [leaf for item in group for leaf in (flat(item) if isinstance(item, list) else [item])]


def members(samples: Sequence[Sample]) -> list[Member]:
    """The samples as `score_batch` compares them."""
    return [
        Member(
            marks=marks_of(sample),
            group=sample.index if sample.group_index is None else ("group", sample.group_index),
            attempt=("sample", sample.index) if sample.rollout_id is None else ("rollout", sample.rollout_id),
            length=sample.response_length,
        )
        for sample in samples
    ]


def said(messages: Sequence[Message]) -> str:
    """What the agent wrote, for slime's log and its count of repetitions; nothing is trained on it."""
    return "\n".join(
        "\n".join(filter(None, (m.content, *(f"{c.name} {c.arguments}" for c in m.tool_calls))))
        for m in messages
        if m.role == "assistant"
    )


def _empty(sample: Sample, marks: Marks) -> None:
    sample.response, sample.response_length = "", 0
    sample.loss_mask = sample.rollout_log_probs = sample.teacher_log_probs = None
    sample.weight_versions = []
    sample.prefix_cache_info = sample.PrefixCacheInfo()
    sample.metadata = {**sample.metadata, KEY: marks.to_json()}
    sample.remove_sample = not marks.evidence

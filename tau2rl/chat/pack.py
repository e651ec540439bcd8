"""From an episode to a training sample: what was sampled, exactly, and a mask that covers nothing else."""

from __future__ import annotations

from tau2rl.types import Episode, TrainingSample, prefix_hash


def pack(episode: Episode) -> TrainingSample:
    """One sequence with its mask. Malformed turns are in it: they were sampled by the policy as any other.

    Every turn's prompt must still be the one that was sent: raises ValueError, naming the turn, when a hash, a span or the
    number of logprobs does not fit. Logprobs are None when any turn has none.
    """
    size = len(episode.token_ids)
    mask = [0] * size
    logprobs = [0.0] * size
    known = True
    end = 0
    for number, turn in enumerate(episode.turns):
        if not end <= turn.start < turn.end <= size:
            raise ValueError(f"turn {number} spans [{turn.start}, {turn.end}) behind token {end} of {size}")
        if prefix_hash(episode.token_ids[: turn.start]) != turn.prompt_hash:
            raise ValueError(f"turn {number} was sampled behind another prompt than its first {turn.start} tokens")
        if turn.logprobs is not None and len(turn.logprobs) != turn.end - turn.start:
            raise ValueError(f"turn {number} has {turn.end - turn.start} tokens and {len(turn.logprobs)} logprobs")
        mask[turn.start : turn.end] = [1] * (turn.end - turn.start)
        if turn.logprobs is None:
            known = False
        else:
            logprobs[turn.start : turn.end] = turn.logprobs
        end = turn.end
    return TrainingSample(
        token_ids=episode.token_ids,
        loss_mask=tuple(mask),
        logprobs=tuple(logprobs) if known else None,
        turn_spans=tuple((turn.start, turn.end) for turn in episode.turns),
    )

"""SGLang's `/generate` as values: what a request says and what a response must say. No network here.

Field names and rules are those of SGLang 0.5 (`srt/managers/io_struct.py`, `srt/sampling/sampling_params.py`,
`srt/managers/tokenizer_manager.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tau2rl.config import SamplingConfig
from tau2rl.errors import PolicyFailure
from tau2rl.policy.retry import shorten
from tau2rl.types import Completion, FinishReason, Usage

MAX_NUMBER = 1e300  # an integer beyond it is no float


def build_request(
    prompt_ids: Sequence[int],
    sampling: SamplingConfig,
    *,
    rid: str,
    seed: int,
    max_tokens: int,
    stop: Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """The body of one `/generate` call: ids in, ids and log-probabilities out, nothing trimmed.

    SGLang heeds `sampling_seed` only when it runs with `--enable-deterministic-inference`, and reads temperature 0 as
    greedy.

    >>> build_request([1, 2], SamplingConfig(max_tokens=64), rid="a", seed=7, max_tokens=5)["sampling_params"]["max_new_tokens"]
    5
    """
    return {
        "rid": rid,
        "input_ids": list(prompt_ids),
        "return_logprob": True,
        "logprob_start_len": -1,  # log-probabilities of the output only
        "stream": False,
        "sampling_params": {
            "max_new_tokens": min(max_tokens, sampling.max_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(stop),
            "stop_token_ids": list(stop_token_ids),
            "no_stop_trim": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "sampling_seed": seed,
        },
    }


def read_completion(payload: Any, *, num_prompt: int, max_tokens: int) -> Completion:
    """The completion in a `/generate` response to a prompt of `num_prompt` tokens.

    >>> payload = {"meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.5, 11, None]]}}
    >>> read_completion(payload, num_prompt=3, max_tokens=8).token_ids
    (11,)

    Raises PolicyFailure when the server aborted, or when any part of the answer is not what SGLang promises.
    """
    meta = _mapping(_mapping(payload, "the response").get("meta_info"), "`meta_info`")
    reason = _finish_reason(meta.get("finish_reason"))
    logprobs, ids = _columns(_rows(meta.get("output_token_logprobs")))
    if len(ids) > max_tokens:
        raise PolicyFailure(f"the server sent {len(ids)} tokens where at most {max_tokens} were asked for")
    _check_lengths(cast("dict[str, Any]", payload), meta, ids)
    usage = Usage(
        prompt_tokens=_count(meta, "prompt_tokens", num_prompt),
        completion_tokens=len(ids),
        cached_tokens=_count(meta, "cached_tokens", 0),
    )
    if usage.prompt_tokens < num_prompt:  # --allow-auto-truncate drops what does not fit and answers all the same
        raise PolicyFailure(f"the server read only {usage.prompt_tokens} of {num_prompt} prompt tokens")
    version = meta.get("weight_version")
    return Completion(
        token_ids=ids,
        logprobs=logprobs,
        finish_reason=reason,
        usage=usage,
        weight_version=None if version is None else shorten(str(version)),
    )


def _finish_reason(value: Any) -> FinishReason:
    reason = _mapping(value, "`finish_reason`")
    kind = reason.get("type")
    if kind == "stop":
        return FinishReason.STOP
    if kind == "length":
        return FinishReason.LENGTH
    if kind == "abort":
        raise PolicyFailure(f"the server aborted the request: `{shorten(str(reason.get('message') or 'no reason given'))}`")
    raise PolicyFailure(f"the server sent an unknown finish reason: `{shorten(str(kind))}`")


def _rows(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PolicyFailure("the server sent no `output_token_logprobs`")
    return cast("list[Any]", value)


def _columns(rows: list[Any]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(log-probabilities, token ids) of `[logprob, id, text]` rows: their types; `check_completion` looks at the values."""
    try:
        logprobs, ids = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    except (TypeError, LookupError):
        logprobs, ids = (), ()
    # What every server sends is seen whole, in a tenth of the time; row by row is for what is wrong, or an unusual number.
    if {*map(type, ids)} == {int} and {*map(type, logprobs)} == {float}:
        return logprobs, ids
    pairs = [_pair(item) for item in rows]
    return tuple(logprob for logprob, _ in pairs), tuple(token_id for _, token_id in pairs)


def _pair(item: object) -> tuple[float, int]:
    """(log-probability, token id) of one `[logprob, id, text]` row."""
    row = cast("list[Any]", item) if isinstance(item, list) else []
    if len(row) < 2:
        raise PolicyFailure("the server sent a row in `output_token_logprobs` that is not [logprob, id, text]")
    logprob, token_id = row[0], row[1]
    # bool is an int in Python; JSON's `true` is no token.
    if not isinstance(token_id, int) or isinstance(token_id, bool):
        raise PolicyFailure(f"the server sent a token id that is none: `{shorten(str(token_id))}`")
    # orjson, SGLang's encoder, writes NaN and infinities as null.
    if not isinstance(logprob, (int, float)) or isinstance(logprob, bool) or abs(logprob) > MAX_NUMBER:
        raise PolicyFailure(f"the server sent a log-probability that is no number: `{shorten(str(logprob))}`")
    return float(logprob), token_id


def _check_lengths(payload: dict[str, Any], meta: dict[str, Any], ids: tuple[int, ...]) -> None:
    """Ids and log-probabilities are of the same tokens: training on one with the other would be silent nonsense."""
    output_ids: object = payload.get("output_ids")
    if output_ids is not None and output_ids != list(ids):
        raise PolicyFailure(f"the server's `output_ids` differ from its {len(ids)} ids with log-probabilities")
    promised = _count(meta, "completion_tokens", len(ids))
    if promised != len(ids):
        raise PolicyFailure(f"the server sampled {promised} tokens and sent log-probabilities of {len(ids)}")


def _count(meta: dict[str, Any], name: str, default: int) -> int:
    value = meta.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PolicyFailure(f"the server sent a `{name}` that is no count: `{shorten(str(value))}`")
    return value


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolicyFailure(f"the server sent {what} as {type(value).__name__}, not as an object")
    return cast("dict[str, Any]", value)

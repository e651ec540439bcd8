"""Reading and writing SGLang's /generate, as pure values.

Pinned here:

- the request asks for ids and log-probabilities and for nothing to be trimmed; the smaller token limit wins
- ids and log-probabilities come from the same rows, whatever the text says
- whatever JSON a server sends, the result is a completion or a PolicyFailure with a short message; whether its numbers can be
  what a model sampled is for the episode loop (`tests/lock/test_completions.py`)
- an empty completion is the model's: the server did as it was told
"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tau2rl.config import SamplingConfig
from tau2rl.errors import PolicyFailure
from tau2rl.policy.sglang_format import build_request, read_completion
from tau2rl.types import Completion, FinishReason


def payload(**meta: object) -> dict[str, object]:
    rows = [[-0.5, 11, None], [-0.25, 12, None]]
    return {"text": "x", "meta_info": {"finish_reason": {"type": "stop", "matched": 12}, "output_token_logprobs": rows, **meta}}


def read(value: object) -> Completion:
    return read_completion(value, num_prompt=3, max_tokens=8)


def test_the_request_keeps_stop_tokens_and_special_tokens() -> None:
    sampling = SamplingConfig(temperature=0.7, top_p=0.9, top_k=20, max_tokens=64)
    body = build_request((1, 2), sampling, rid="r", seed=7, max_tokens=5, stop=("</tool_call>",), stop_token_ids=(9,))
    assert body["input_ids"] == [1, 2]
    assert body["return_logprob"] is True
    assert body["sampling_params"] == {
        "max_new_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "stop": ["</tool_call>"],
        "stop_token_ids": [9],
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "sampling_seed": 7,
    }


def test_the_turns_own_limit_wins_when_it_is_smaller() -> None:
    body = build_request((1,), SamplingConfig(max_tokens=64), rid="r", seed=7, max_tokens=500)
    assert body["sampling_params"]["max_new_tokens"] == 64


def test_ids_and_logprobs_are_read_row_by_row() -> None:
    completion = read(payload(prompt_tokens=3, completion_tokens=2, cached_tokens=1))
    assert completion.token_ids == (11, 12)
    assert completion.logprobs == (-0.5, -0.25)
    assert completion.finish_reason is FinishReason.STOP
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.cached_tokens) == (3, 2, 1)


def test_a_length_finish_is_a_completion() -> None:
    assert read(payload(finish_reason={"type": "length", "length": 2})).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"finish_reason": {"type": "abort", "message": "out of memory"}}, "aborted the request: `out of memory`"),
        ({"finish_reason": None}, "`finish_reason` as NoneType"),
        ({"finish_reason": {"type": "bored"}}, "unknown finish reason: `bored`"),
        ({"output_token_logprobs": None}, "no `output_token_logprobs`"),
        ({"output_token_logprobs": [[-0.5]]}, "that is not [logprob, id, text]"),
        ({"output_token_logprobs": [[None, 11, None]]}, "log-probability that is no number: `None`"),
        ({"output_token_logprobs": [[10**400, 11, None]]}, "log-probability that is no number"),
        ({"output_token_logprobs": [[-0.5, "11", None]]}, "token id that is none: `11`"),
        ({"output_token_logprobs": [[-0.5, True, None]]}, "token id that is none: `True`"),
        ({"output_token_logprobs": [[-0.5, 11, None]] * 9}, "sent 9 tokens where at most 8"),
        ({"completion_tokens": 3}, "sampled 3 tokens and sent log-probabilities of 2"),
        ({"completion_tokens": "2"}, "`completion_tokens` that is no count"),
        ({"prompt_tokens": 2}, "read only 2 of 3 prompt tokens"),
    ],
)
def test_a_lying_server_is_a_policy_failure(meta: dict[str, object], words: str) -> None:
    with pytest.raises(PolicyFailure) as caught:
        read(payload(**meta))
    assert words in str(caught.value)


def test_output_ids_that_differ_from_the_logprobs_ids_are_refused() -> None:
    with pytest.raises(PolicyFailure, match="`output_ids` differ from its 2 ids"):
        read({**payload(), "output_ids": [11, 12, 13]})


def test_nothing_sampled_is_a_completion_of_nothing() -> None:
    assert read(payload(output_token_logprobs=[])).token_ids == ()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["output_token_logprobs", "finish_reason", "completion_tokens", "prompt_tokens", "cached_tokens", "output_ids"]
)


@given(value=ANY_JSON, changes=st.dictionaries(KEYS, ANY_JSON, max_size=3), output_ids=ANY_JSON)
def test_any_json_is_a_completion_or_a_policy_failure(value: object, changes: dict[str, object], output_ids: object) -> None:
    for candidate in (value, {"meta_info": value}, {**payload(**changes), "output_ids": output_ids}):
        outcome = outcome_of(candidate)
        if isinstance(outcome, Completion):
            assert outcome.logprobs is not None
            assert len(outcome.token_ids) == len(outcome.logprobs)
        else:
            assert "\n" not in outcome
            assert len(outcome) < 300


def outcome_of(value: object) -> Completion | str:
    try:
        return read(value)
    except PolicyFailure as failure:
        return str(failure)

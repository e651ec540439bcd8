"""What servers' refusals mean, pinned here:

- they are told in the server's own words, in one short line that a terminal can show, whichever layout of errors they have
- a prompt beyond the model's context is named as such in every provider's words, and nothing else is
- 429, and a busy status with Retry-After, limit the rate; an account without money is refused for good
- Retry-After is read as seconds and as a date; what is neither says nothing
- what is no JSON is a PolicyFailure
"""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from tau2rl.errors import ContextExceeded, PolicyFailure
from tau2rl.policy.retry import RateLimited, Unavailable, failure_of, read_json, says_context_exceeded, shorten
from tau2rl.rate_limit import retry_after


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",  # OpenAI, vLLM
        "Your input exceeds the context window of this model. Please adjust your input and try again.",  # OpenAI
        "'max_tokens' is too large: 4096. This model's maximum context length is 4096 tokens",  # vLLM
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",  # vLLM
        "The input (70000 tokens) is longer than the model's context length (32768 tokens).",  # SGLang
        "Requested token count exceeds the model's maximum context length of 32768 tokens.",  # SGLang
        "Input length (70000 tokens) exceeds the maximum allowed length (32768 tokens).",  # SGLang
        "the request exceeds the available context size. try increasing the context size",  # llama.cpp
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",  # llama.cpp
        "Requested tokens (5000) exceed context window of 512",  # llama-cpp-python
        "prompt is too long: 210000 tokens > 200000 maximum",  # Anthropic
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",  # Anthropic
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",  # Gemini
        "`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 4000 `inputs` tokens",  # TGI, Together
        "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",  # Mistral
        "Please reduce the length of the messages or completion.",  # Groq
        "Current length is 9000 while limit is 8192",  # Cerebras
        "Input is too long for requested model.",  # Bedrock
        "too many tokens: total number of tokens in the prompt cannot exceed 4081",  # Cohere
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",  # xAI
        "Invalid request: Your request exceeded model token limit: 8192",  # Moonshot
        "Range of input length should be [1, 30720]",  # DashScope
    ],
)
def test_a_prompt_beyond_the_context_is_known_in_every_providers_words(words: str) -> None:
    assert says_context_exceeded(words)
    assert type(failure_of(400, json.dumps({"error": {"message": words}}).encode(), server="s", busy=())) is ContextExceeded


@pytest.mark.parametrize(
    "words",
    [
        "Unknown parameter: 'seed'.",
        "Request too large for model on tokens per minute (TPM): Limit 6000, Requested 7000",
        "Invalid 'user': string too long. Expected a string with maximum length 64 (string_above_max_length)",
        "rate limit reached: too many tokens per day",
        "max_tokens must be at least 1",
    ],
)
def test_other_refusals_are_no_overflow(words: str) -> None:
    assert type(failure_of(400, json.dumps({"error": words}).encode(), server="s", busy=())) is PolicyFailure


def test_a_code_beside_the_message_counts_too() -> None:
    body = {"error": {"message": "no", "code": "context_length_exceeded"}}
    assert isinstance(failure_of(400, json.dumps(body).encode(), server="s", busy=()), ContextExceeded)


@pytest.mark.parametrize(
    ("status", "said", "asks", "kind"),
    [
        (429, "slow down", None, RateLimited),
        (429, "slow down", 3.0, RateLimited),
        (529, "overloaded", None, RateLimited),
        (503, "busy", 3.0, RateLimited),
        (503, "busy", None, Unavailable),
        (429, "You exceeded your current quota, please check your plan and billing details.", None, PolicyFailure),
        (429, "You exceeded your current quota. Please retry in 34.07s.", None, RateLimited),
        (429, "Quota exceeded for metric generate_content_requests_per_minute", None, RateLimited),
        (429, "QUOTA_EXCEEDED", None, PolicyFailure),
        (429, "quota exceeded", 3.0, RateLimited),
        (429, "Quota exceeded for requests_per_base_model. Please submit a quota increase request.", None, RateLimited),
        (429, "Rate limit exceeded: quota exceeded, try again later", None, RateLimited),
        (429, "request_quota_exceeded: Requests per hour", None, RateLimited),
        (429, "insufficient_quota: try again later", None, PolicyFailure),
        (429, "Insufficient balance", 3.0, PolicyFailure),
        (400, "no", 3.0, PolicyFailure),
    ],
)
def test_which_refusals_may_pass(status: int, said: str, asks: float | None, kind: type[PolicyFailure]) -> None:
    failure = failure_of(status, json.dumps({"detail": said}).encode(), server="s", busy=(503,), retry_after=asks)
    assert type(failure) is kind
    assert getattr(failure, "retry_after", asks) == asks


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("7") == 7.0
    assert 50 < (retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
    assert [retry_after(value) for value in (None, "", "soon", "nan", "inf")] == [None] * 5
    assert retry_after("-5") == 0.0


def test_html_is_named_in_one_short_line() -> None:
    with pytest.raises(PolicyFailure) as caught:
        read_json(b"<html>\n<body>502</body>" + b"x" * 1_000_000)
    assert str(caught.value).startswith("the server sent something that is not JSON: `<html> <body>502</body>x")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("body", [b"", b'{"a": [1', b"\xff\xfe", b"[" * 200_000])
def test_what_is_no_json_is_a_policy_failure(body: bytes) -> None:
    with pytest.raises(PolicyFailure):
        read_json(body)


@pytest.mark.parametrize(
    "body", [{"error": {"message": "too long"}}, {"detail": "too long"}, {"message": "too long"}, {"error": "too long"}]
)
def test_the_servers_own_words_are_found_in_every_error_layout(body: object) -> None:
    assert (
        str(failure_of(400, json.dumps(body).encode(), server="http://s", busy=())) == "the server answered HTTP 400: `too long`"
    )


def test_shorten_ends_long_text_with_an_ellipsis() -> None:
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abcd", 4) == "abcd"


def test_no_escape_sequence_of_a_server_reaches_a_terminal() -> None:
    said = str(failure_of(400, json.dumps({"error": "\x1b[2Jgone\x07"}).encode(), server="s", busy=()))
    assert said.isprintable() and "gone" in said

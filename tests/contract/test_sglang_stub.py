"""The stub SGLang server against the record of a real one (`tests/fixtures/sglang_transcript.json`), pinned here:

- to every question of `tests/stubs/sglang_transcript.py` the stub gives the answer that the real server gave: status, content
  type, every field of the body, the words of a refusal;
- an id outside the vocabulary ends the stub, as it ends the server: a real one is never asked;
- what our own client sends has no field that SGLang does not know, of which it ignores some without a word.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tau2rl.config import PolicyConfig, SamplingConfig
from tau2rl.errors import PolicyFailure
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.policy.sglang_format import build_request
from tests.stubs.sglang import REQUEST_FIELDS, SAMPLING_FIELDS, SGLangStub
from tests.stubs.sglang_transcript import LONG, QUESTIONS, RECORD, answers

REAL: dict[str, Any] = json.loads(RECORD.read_text())


def stub(**options: Any) -> SGLangStub:
    """A stub whose model says what the real one said, and then goes on."""
    said = REAL["said"] + [5] * LONG
    text = REAL["pieces"]
    return SGLangStub(
        answer=lambda ids, params: said, context=REAL["context"], piece=lambda token: text.get(str(token), " and"), **options
    )


def test_the_record_has_every_question() -> None:
    assert list(REAL["answers"]) == list(QUESTIONS)


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_stub_answers_as_the_real_server_did(name: str) -> None:
    with stub(seconds_per_token=0.01 if name == "an abort" else 0.0) as server:
        assert asyncio.run(answers(server.url, name, REAL["said"])) == REAL["answers"][name]


def test_an_id_outside_the_vocabulary_ends_the_stub() -> None:
    async def use(url: str) -> None:
        async with SGLangPolicy(PolicyConfig(url=url, retries=1)) as policy:
            await policy.complete([7, 49_152], seed=1, session="s", max_tokens=4)

    with stub(vocabulary=49_152) as server, pytest.raises(PolicyFailure, match="cannot reach"):
        asyncio.run(use(server.url))


def test_our_requests_have_only_fields_that_sglang_knows() -> None:
    body = build_request([1], SamplingConfig(top_k=5), rid="a", seed=1, max_tokens=2, stop=["x"], stop_token_ids=[2])
    assert set(body) <= REQUEST_FIELDS
    assert set(body["sampling_params"]) <= SAMPLING_FIELDS

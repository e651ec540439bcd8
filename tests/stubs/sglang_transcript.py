"""Questions to an SGLang server, and what a real one answered: `tests/fixtures/sglang_transcript.json`.

    python -m tests.stubs.sglang_transcript http://127.0.0.1:31000      asks the server there, and writes the record anew

Every question is of tokens inside the vocabulary: one outside it ends a real server. What differs from one call to the next
(sampled ids, log-probabilities, times) is written as what it is; numbers that must agree (counts, limits) stay.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

RECORD = Path(__file__).parents[1] / "fixtures" / "sglang_transcript.json"
PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 2, 198, 1, 4093, 198, 19556, 47, 2, 198, 1, 520, 9531, 198]
FILLER = 5  # an id of every vocabulary
LONG = 600  # tokens that a server works on for a while

# Of each call its own, and of no use to compare.
VARIES = {
    *("id", "e2e_latency", "response_sent_to_client_ts", "created", "timestamp", "ts_tic", "version", "model_path", "root"),
    *("tokenizer_path", "gen_throughput", "cache_hit_rate", "utilization", "token_usage", "num_used_tokens", "num_total_tokens"),
    *("num_tokens", "num_pending_tokens", "num_waiting_uncached_tokens", "max_total_num_tokens", "max_running_requests"),
    *("cached_tokens", "cached_tokens_details"),
}
INFO = ("model_path", "tokenizer_path", "is_generation", "weight_version")  # of what a server says of itself, those that are read


class Asker:
    """Asks one server; what the model says to PROMPT at temperature 0 is found out first."""

    def __init__(self, http: aiohttp.ClientSession, context: int, said: list[int]) -> None:
        self.http, self.context, self.said = http, context, said

    async def get(self, path: str) -> dict[str, Any]:
        return await self._ask("GET", path)

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        return await self._ask("POST", path, json=body)

    async def generate(self, ids: list[int] | None = None, *, top: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """One call of /generate: greedy, of 8 tokens unless said otherwise."""
        sampling = {"temperature": 0.0, "max_new_tokens": 8, "no_stop_trim": True, "skip_special_tokens": False, **params}
        body = {"input_ids": PROMPT if ids is None else ids, "return_logprob": True, "stream": False, "sampling_params": sampling}
        return await self.post("/generate", {**body, **(top or {})})

    async def running(self, number: int) -> None:
        """Wait until the server works on so many requests."""
        while (await self.get("/v1/loads?include=core"))["body"]["loads"][0]["num_running_reqs"] != number:
            await asyncio.sleep(0.02)

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self.http.request(method, path, **options) as response:
            text = await response.text()
            kind = response.headers.get("Content-Type")
            return {"status": response.status, "type": kind, "body": json.loads(text) if kind == "application/json" else text}


Question = Callable[[Asker], Awaitable[list[dict[str, Any]]]]


async def one_at_a_time(ask: Asker, *questions: Awaitable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [await question for question in questions]


async def abort(ask: Asker) -> list[dict[str, Any]]:
    """A call that is aborted, and meanwhile another one of its id; then the abort of one that nobody knows."""
    long = {"rid": "long"}
    call = asyncio.create_task(ask.generate(top=long, max_new_tokens=LONG, ignore_eos=True))
    await ask.running(1)
    twin = await ask.generate(top=long)
    aborted = await ask.post("/abort_request", long)
    return [twin, aborted, await call, await ask.post("/abort_request", {"rid": "nobody"})]


async def cache(ask: Asker) -> list[dict[str, Any]]:
    """How many tokens of a prompt were known: none, all but the last, what was sampled but for its last token, a part."""
    fresh = [random.randrange(100, 40_000) for _ in range(12)]
    first = await ask.generate(fresh, max_new_tokens=4, ignore_eos=True)
    sampled: list[int] = first["body"]["output_ids"]
    more = [fresh, [*fresh, *sampled, FILLER, FILLER], [*fresh[:6], FILLER, FILLER]]
    answers = [first, *[await ask.generate(ids, max_new_tokens=1) for ids in more]]
    return [{"cached": answer["body"]["meta_info"]["cached_tokens"]} for answer in answers]


async def weight_version(ask: Asker) -> list[dict[str, Any]]:
    """A version that is set is that of the next answer."""
    changed = await ask.post("/update_weight_version", {"new_version": "w7"})
    answer = await ask.generate(max_new_tokens=1)
    return [changed, answer, await ask.post("/update_weight_version", {"new_version": "default"})]


QUESTIONS: dict[str, Question] = {
    "a limit of tokens": lambda ask: one_at_a_time(ask, ask.generate(max_new_tokens=3)),
    "no token asked for": lambda ask: one_at_a_time(ask, ask.generate(max_new_tokens=0)),
    "no log-probabilities": lambda ask: one_at_a_time(ask, ask.generate(top={"return_logprob": False}, max_new_tokens=2)),
    "a stop token": lambda ask: one_at_a_time(ask, ask.generate(stop_token_ids=[ask.said[3]])),
    "the last token allowed is a stop token": lambda ask: one_at_a_time(
        ask, ask.generate(stop_token_ids=[ask.said[3]], max_new_tokens=4)
    ),
    "a stop string": lambda ask: one_at_a_time(ask, ask.generate(stop=["help"], max_new_tokens=16)),
    "a stop string that is trimmed": lambda ask: one_at_a_time(
        ask, ask.generate(stop=["help"], no_stop_trim=False, max_new_tokens=16)
    ),
    "a seed": lambda ask: one_at_a_time(ask, ask.generate(temperature=0.7, sampling_seed=5, max_new_tokens=2, ignore_eos=True)),
    "a field that it does not know": lambda ask: one_at_a_time(ask, ask.generate(top={"bogus": 1}, max_new_tokens=1)),
    "a sampling field that it does not know": lambda ask: one_at_a_time(ask, ask.generate(bogus=1)),
    "a prompt that fills the context": lambda ask: one_at_a_time(
        ask, ask.generate([FILLER] * ask.context), ask.generate([FILLER] * (ask.context - 6), max_new_tokens=1)
    ),
    "more tokens than the context has room for": lambda ask: one_at_a_time(
        ask, ask.generate([FILLER] * 100, max_new_tokens=ask.context - 99)
    ),
    "a prompt of nothing": lambda ask: one_at_a_time(ask, ask.generate([]), ask.post("/generate", {"sampling_params": {}})),
    "sampling values that are none": lambda ask: one_at_a_time(ask, ask.generate(temperature=-1), ask.generate(top_p=2)),
    "an abort": abort,
    "the prefix cache": cache,
    "a weight version": weight_version,
    "what it says of itself": lambda ask: one_at_a_time(
        ask,
        ask.get("/health"),
        ask.get("/model_info"),
        ask.get("/get_model_info"),
        ask.get("/server_info"),
        ask.get("/v1/models"),
    ),
    "its load": lambda ask: one_at_a_time(ask, ask.get("/v1/loads?include=core"), ask.get("/get_load")),
    "a path that it does not have": lambda ask: one_at_a_time(ask, ask.get("/nothing")),
}


async def answers(url: str, name: str, said: list[int] | None = None) -> list[Any]:
    """What the server at `url` answers to one question, without what varies."""
    # A connection each: after an error of its own the server drops the one that it came by.
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(force_close=True)) as http:
        ask = Asker(http, 0, [])
        ask.context = (await ask.get("/v1/models"))["body"]["data"][0]["max_model_len"]
        ask.said = said or (await what_it_says(ask))
        return [compared(answer) for answer in await QUESTIONS[name](ask)]


async def what_it_says(ask: Asker) -> list[int]:
    """16 tokens of the model after PROMPT at temperature 0."""
    return (await ask.generate(max_new_tokens=16, ignore_eos=True))["body"]["output_ids"]


def compared(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as it is compared: without sampled values, times, and names."""
    body = answer.get("body")
    if not isinstance(body, dict):
        return answer if not isinstance(body, list) else {**answer, "body": [_plain(each) for each in body]}
    if "is_generation" in body or "tokenizer_path" in body:
        return {**answer, "body": {name: _plain(body).get(name) for name in INFO}}
    ids = body.get("output_ids", [])
    body = _plain(body)
    if "meta_info" in body:
        meta = body["meta_info"]
        finish = meta["finish_reason"]
        if isinstance(finish.get("matched"), int):
            finish["matched"] = "the last id" if finish["matched"] == ids[-1] else "another id"
        if finish["type"] == "abort":  # after as many tokens as there was time for
            for name in ("completion_tokens", "output_token_logprobs_length"):
                meta[name] = "a number"
            meta["output_token_logprobs"] = body["output_ids"] = "some"
        else:
            meta["output_token_logprobs"] = _rows(meta["output_token_logprobs"], ids) if "output_token_logprobs" in meta else None
            body["output_ids"] = f"{len(ids)} ids"
        body["text"] = "a text that ends in a stop" if body["text"].endswith(str(finish.get("matched"))) else "a text"
    return {**answer, "body": body}


def _rows(rows: list[Any], ids: list[int]) -> str:
    """Whether each id has its row: [log-probability, id, null]."""
    right = [row[1:] for row in rows] == [[token, None] for token in ids] and all(row[0] <= 0 for row in rows)
    return "a row for each id" if right else f"wrong: {rows}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "varies" if name in VARIES else _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


async def record(url: str) -> dict[str, Any]:
    """Everything that the server at `url` answers, what its model says, and the text of those tokens."""
    async with aiohttp.ClientSession(url) as http:
        ask = Asker(http, 0, [])
        card, info = (await ask.get("/v1/models"))["body"]["data"][0], (await ask.get("/server_info"))["body"]
        call = await ask.generate(
            top={"return_text_in_logprobs": True}, max_new_tokens=16, ignore_eos=True, spaces_between_special_tokens=False
        )
        pieces = {str(token): text for _, token, text in call["body"]["meta_info"]["output_token_logprobs"]}
        said = call["body"]["output_ids"]
    return {
        "server": f"SGLang {info['version']}, {info['device']}, {info['attention_backend']}",
        "context": card["max_model_len"],
        "said": said,
        "pieces": pieces,
        "answers": {name: await answers(url, name, said) for name in QUESTIONS},
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(asyncio.run(record(sys.argv[1])), indent=1, ensure_ascii=False) + "\n")

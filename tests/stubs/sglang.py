"""A stub SGLang server.

    with SGLangStub(answer=lambda input_ids, params: [5, 6, 7], latency=0.1) as server:
        policy = SGLangPolicy(PolicyConfig(url=server.url))

It answers like SGLang 0.5.15, of which `tests/fixtures/sglang_transcript.json` is a record (`test_sglang_stub.py` holds it to
that). Its log-probabilities are `logprob_of(token_id)`.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.stubs.http import MODES, Request, Response, StubServer

Answer = Callable[[list[int], dict[str, Any]], Sequence[int]]

# sglang 0.5.15: the fields of GenerateReqInput that a text client can have a use for. It ignores all others without a word.
REQUEST_FIELDS = {
    *("rid", "session_id", "text", "input_ids", "sampling_params", "return_logprob", "logprob_start_len", "stream"),
    *(
        "top_logprobs_num",
        "return_text_in_logprobs",
        "return_prompt_token_ids",
        "return_routed_experts",
        "routing_key",
        "priority",
    ),
}
# Those of SamplingParams; any other one is HTTP 500.
SAMPLING_FIELDS = {
    *("max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema", "regex", "ebnf", "structural_tag"),
    *("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "custom_params", "stream_interval"),
    *("logit_bias", "sampling_seed"),
}
NOTHING = Response(raw=b"", content_type="")
RESERVED = 6  # tokens of the context that no prompt may have


# Right in their types, and nothing that a model sampled: the episode loop finds out.
UNSAMPLED = ("negative_id", "huge_id", "unknown_id", "positive_logprob")
AGREED = (*UNSAMPLED, "empty")  # its `output_ids` say the same


def logprob_of(token_id: int) -> float:
    """The log-probability that the stub gives a token: -0.5 for 0, 8, 16...; -1.375 for 7."""
    return -0.5 - (token_id % 8) / 8


class SGLangStub(StubServer):
    """Answers POST /generate and what a client asks around it. `requests` holds the calls of /generate."""

    main_paths = ("/generate",)
    tells_load = True  # as a router and other servers do not
    modes = (
        *MODES,
        *("context", "abort", "nan", "null_logprob", "no_logprobs", "wrong_types", "bool_ids", "mismatch", "short_logprobs"),
        *("empty", "too_many", "truncated_prompt", "no_reason", "unknown_reason"),
        *UNSAMPLED,
    )

    def __init__(
        self,
        *,
        answer: Answer = lambda input_ids, params: [5, 6, 7],
        model: str = "stub/tiny",
        context: int = 32768,
        vocabulary: int | None = None,
        piece: Callable[[int], str] = lambda token: f"<{token}>",
        seconds_per_token: float = 0.0,
        **options: Any,
    ) -> None:
        """`answer(input_ids, sampling_params)` returns what the model would say, which limits and stops cut.

        `vocabulary`: a prompt with an id beyond it ends the server. `piece`: the text of a token. `options`: see StubServer.
        """
        super().__init__(**options)
        self.answer = answer
        self.model = model
        self.context = context
        self.vocabulary = vocabulary
        self.piece = piece
        self.seconds_per_token = seconds_per_token
        self.weight_version = "default"
        self._cache = PrefixCache()
        self._running: dict[str, asyncio.Event] = {}  # request id -> set when it is aborted

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the /generate calls."""
        return [request.body for request in self.requests]

    @property
    def aborted(self) -> list[str]:
        """The request ids that a client asked to abort."""
        return [request.body["rid"] for request in self.traffic.others if request.path == "/abort_request"]

    async def reply(self, request: Request, mode: str) -> Response:
        match request.path:
            case "/generate":
                return await self._generate(request.body, mode)
            case "/health":
                return NOTHING
            case "/abort_request":
                if (ends := self._running.get(request.body.get("rid", ""))) is not None:
                    ends.set()
                return NOTHING
            case "/model_info" | "/get_model_info" | "/server_info":
                info = {"model_path": self.model, "tokenizer_path": self.model, "weight_version": self.weight_version}
                return Response(payload=info if request.path == "/server_info" else {**info, "is_generation": True})
            case "/v1/models":
                card = {
                    "id": self.model,
                    "object": "model",
                    "created": 0,
                    "owned_by": "sglang",
                    "root": self.model,
                    "parent": None,
                }
                return Response(
                    payload={
                        "object": "list",
                        "data": [{**card, "root": self.model, "parent": None, "max_model_len": self.context}],
                    }
                )
            case "/v1/loads" if self.tells_load:
                return Response(payload={"timestamp": "2026-01-01T00:00:00+00:00", "version": "0.5.15", "loads": [self._load()]})
            case "/get_load" if self.tells_load:
                load = self._load()
                old = {"dp_rank": 0, "num_reqs": load["num_running_reqs"], "num_waiting_reqs": 0, "num_tokens": 0}
                return Response(payload=[{**old, "num_pending_tokens": 0, "ts_tic": 0.0}])
            case "/update_weight_version":
                self.weight_version = version = request.body["new_version"]
                said = f"Weight version updated to {version}"
                return Response(payload={"success": True, "message": said, "new_version": version})
            case _:
                return Response(status=404, payload={"detail": "Not Found"})

    def _load(self) -> dict[str, Any]:
        counts = dict.fromkeys(("num_waiting_reqs", "num_waiting_uncached_tokens", "num_used_tokens", "num_total_tokens"), 0)
        rates = dict.fromkeys(("token_usage", "gen_throughput", "cache_hit_rate", "utilization"), 0.0)
        running = {"dp_rank": 0, "num_running_reqs": self.traffic.in_flight}
        return {**running, **counts, "max_total_num_tokens": 10**6, "max_running_requests": 10**3, **rates}

    async def _generate(self, body: dict[str, Any], mode: str) -> Response:
        params, rid = body.get("sampling_params") or {}, body.get("rid") or "no id was given"
        if set(params) - SAMPLING_FIELDS:
            return Response(status=500, raw=b"Internal Server Error", content_type="text/plain; charset=utf-8")
        if problem := self._problem(body, params, rid, mode):
            return Response(status=400, payload={"error": {"message": problem}})
        if self.vocabulary is not None and max(body["input_ids"]) >= self.vocabulary:
            self._loop.stop()  # as the real one's process does
            raise ConnectionError("an id outside the vocabulary")
        began = time.monotonic()
        sampled, finish = self._sample(body["input_ids"], params)
        if self.seconds_per_token:
            self._running[rid] = asyncio.Event()
            try:
                async with asyncio.timeout(self.seconds_per_token * len(sampled)):
                    await self._running[rid].wait()
                so_far = int((time.monotonic() - began) / self.seconds_per_token)
                finish = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
                sampled = sampled[:so_far]
            except TimeoutError:  # nobody aborted it
                pass
            finally:
                del self._running[rid]
        return Response(payload=_spoil(self._payload(body, params, rid, sampled, finish, began), mode, params))

    def _problem(self, body: dict[str, Any], params: dict[str, Any], rid: str, mode: str) -> str | None:
        """Why a request is refused, in the server's words."""
        ids, most = body.get("input_ids"), params.get("max_new_tokens")
        if ids is None:
            return "Either text, input_ids or input_embeds should be provided."
        if not ids:
            return "input_ids cannot be empty."
        if rid in self._running:
            return f"Duplicate request ID detected: {rid}"
        if mode == "context" or len(ids) >= self.context:
            return f"The input ({len(ids)} tokens) is longer than the model's context length ({self.context} tokens)."
        if most is not None and len(ids) + most > self.context:
            return (
                f"Requested token count exceeds the model's maximum context length of {self.context} tokens. You requested a "
                f"total of {len(ids) + most} tokens: {len(ids)} tokens from the input messages and {most} tokens for the "
                "completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit."
            )
        if len(ids) >= self.context - RESERVED:
            return (
                f"Input length ({len(ids)} tokens) exceeds the maximum allowed length ({self.context - RESERVED} tokens). "
                "Use a shorter input or enable --allow-auto-truncate."
            )
        if params.get("temperature", 1.0) < 0:
            return f"temperature must be a non-negative finite number, got {params['temperature']}."
        if not 0 < params.get("top_p", 1.0) <= 1:
            return f"top_p must be in (0, 1], got {params['top_p']}."
        return None

    def _sample(self, ids: list[int], params: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """What the model says up to its end, a limit or a stop; and which of these it was. A limit comes before a stop."""
        said = list(self.answer(ids, params))
        limit = min(params.get("max_new_tokens") or 0 if "max_new_tokens" in params else 128, max(0, self.context - 2 - len(ids)))
        stops = [params["stop"]] if isinstance(params.get("stop"), str) else params.get("stop") or []
        for index, token in enumerate(said[: max(0, limit - 1)]):
            if token in (params.get("stop_token_ids") or ()):
                return said[: index + 1], {"type": "stop", "matched": token}
            tail = "".join(map(self.piece, said[max(0, index - 15) : index + 1])) if stops else ""
            for stop in stops:
                if stop in tail:
                    return said[: index + 1], {"type": "stop", "matched": stop}
        if len(said) >= limit:
            return said[:limit], {"type": "length", "length": limit}
        return said, {"type": "stop", "matched": said[-1] if said else None}

    def _payload(
        self, body: dict[str, Any], params: dict[str, Any], rid: str, sampled: list[int], finish: dict[str, Any], began: float
    ) -> dict[str, Any]:
        text, matched, cached = (
            "".join(map(self.piece, sampled)),
            finish.get("matched"),
            self._cache.add(body["input_ids"], sampled),
        )
        if isinstance(matched, str) and not params.get("no_stop_trim"):
            text = text[: text.index(matched)]
        logprobs = {
            "input_token_logprobs": [],
            "output_token_logprobs": [[logprob_of(token), token, None] for token in sampled],
            "output_token_logprobs_length": len(sampled),
        }
        meta = {
            "id": rid,
            "finish_reason": finish,
            "prompt_tokens": len(body["input_ids"]),
            "weight_version": self.weight_version,
            "num_retractions": 0,
            **(logprobs if body.get("return_logprob") else {}),
            "reasoning_tokens": 0,
            "completion_tokens": len(sampled),
            "cached_tokens": cached,
            "cached_tokens_details": {"device": cached, "host": 0} if cached else None,
            "dp_rank": None,
            "e2e_latency": time.monotonic() - began,
            "response_sent_to_client_ts": time.time(),
        }
        return {"text": text, "output_ids": sampled, "meta_info": meta}


class PrefixCache:
    """The longest prefix of a prompt that any request before had: never its last token, from which the next one is sampled."""

    def __init__(self) -> None:
        self._seen: list[list[int]] = []  # sorted, so that the longest common prefix is with a neighbour

    def add(self, ids: list[int], sampled: list[int]) -> int:
        """How many leading tokens of the prompt are known; what came after it is known from now on, but for the last token."""
        at = bisect.bisect(self._seen, ids)
        neighbours = self._seen[max(0, at - 1) : at + 1]
        known = max((_common(each, ids) for each in neighbours), default=0)
        if at and known == len(self._seen[at - 1]):  # it only grows
            del self._seen[at - 1]
        bisect.insort(self._seen, ids + sampled[:-1])
        return min(known, len(ids) - 1)


def _common(a: list[int], b: list[int]) -> int:
    """The length of the longest common prefix; in one step where one of both is that."""
    short = min(len(a), len(b))
    return short if a[:short] == b[:short] else next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def _spoil(payload: dict[str, Any], mode: str, params: dict[str, Any]) -> Any:
    """The payload of a server that lies in the way that `mode` names."""
    meta = payload["meta_info"]
    rows = meta.get("output_token_logprobs", [])
    if mode == "ok":
        return payload
    lies: dict[str, dict[str, Any]] = {  # what the lie puts in the place of the truth
        "abort": {"finish_reason": {"type": "abort", "message": "Abort before prefill"}},
        "no_reason": {"finish_reason": None},
        "unknown_reason": {"finish_reason": {"type": "bored"}},
        "nan": {"output_token_logprobs": [[float("nan"), *row[1:]] for row in rows]},  # json.dumps writes the literal NaN
        "null_logprob": {"output_token_logprobs": [[None, *row[1:]] for row in rows]},
        "no_logprobs": {"output_token_logprobs": None},
        "wrong_types": {"output_token_logprobs": [["-0.5", "five", None]]},
        "bool_ids": {"output_token_logprobs": [[-0.5, True, None]]},
        "mismatch": {"output_token_logprobs": rows[1:]},
        "short_logprobs": {"completion_tokens": len(rows) + 1},
        "empty": {"output_token_logprobs": [], "completion_tokens": 0},
        "negative_id": {"output_token_logprobs": [[-0.5, -1, None]], "completion_tokens": 1},
        "huge_id": {"output_token_logprobs": [[-0.5, 2**63, None]], "completion_tokens": 1},
        "unknown_id": {"output_token_logprobs": [[-0.5, 10**6, None]], "completion_tokens": 1},
        "positive_logprob": {"output_token_logprobs": [[0.5, *row[1:]] for row in rows]},
        "too_many": {"output_token_logprobs": [[-0.5, 5, None]] * (params.get("max_new_tokens", 128) + 1)},
        "truncated_prompt": {"prompt_tokens": meta["prompt_tokens"] - 1},
    }
    said = {**payload, "meta_info": {**meta, **lies[mode]}}
    return {**said, "output_ids": [row[1] for row in said["meta_info"]["output_token_logprobs"]]} if mode in AGREED else said

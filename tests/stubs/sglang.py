"""A stub SGLang server.

    with SGLangStub(answer=lambda input_ids, params: [5, 6, 7], latency=0.1) as server:
        policy = SGLangPolicy(PolicyConfig(url=server.url))

It refuses what the real server refuses: fields that it does not know, a prompt longer than its context. Its log-probabilities
are `logprob_of(token_id)`; `cached_tokens` is the prefix that the same routing key has sent or received before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.stubs.http import MODES, Request, Response, StubServer

Answer = Callable[[list[int], dict[str, Any]], Sequence[int]]

# sglang 0.5: the fields of GenerateReqInput and SamplingParams that a text client can have a use for.
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
SAMPLING_FIELDS = {
    *("max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema", "regex", "ebnf", "structural_tag"),
    *("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "custom_params", "stream_interval"),
    *("logit_bias", "sampling_seed"),
}


# Right in their types, and nothing that a model sampled: the episode loop finds out.
UNSAMPLED = ("negative_id", "huge_id", "unknown_id", "positive_logprob")
AGREED = (*UNSAMPLED, "empty")  # its `output_ids` say the same


def logprob_of(token_id: int) -> float:
    """The log-probability that the stub gives a token: -0.5 for 0, 8, 16...; -1.375 for 7."""
    return -0.5 - (token_id % 8) / 8


class SGLangStub(StubServer):
    """Answers POST /generate and what a client asks around it. `requests` holds the calls of /generate."""

    main_paths = ("/generate",)
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
        **options: Any,
    ) -> None:
        """`answer(input_ids, sampling_params)` returns the ids to sample, cut at max_new_tokens; `options`: see StubServer."""
        super().__init__(**options)
        self.answer = answer
        self.model = model
        self.context = context
        self._seen: dict[str, list[int]] = {}

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
                return self._generate(request, mode)
            case "/health" | "/abort_request":
                return Response(raw=b"")
            case "/model_info" | "/get_model_info":
                return Response(payload={"model_path": self.model, "tokenizer_path": self.model, "is_generation": True})
            case "/v1/models":
                card = {"id": self.model, "object": "model", "max_model_len": self.context}
                return Response(payload={"object": "list", "data": [card]})
            case _:
                return Response(status=404, payload={"detail": "Not Found"})

    def _generate(self, request: Request, mode: str) -> Response:
        body, params = request.body, request.body.get("sampling_params", {})
        ids = body["input_ids"]
        unknown = (set(body) - REQUEST_FIELDS) | (set(params) - SAMPLING_FIELDS)
        if unknown:
            return _error(f"Unexpected keyword argument {sorted(unknown)}")
        if mode == "context" or len(ids) >= self.context:
            return _error(f"The input ({len(ids)} tokens) is longer than the model's context length ({self.context} tokens).")
        sampled = list(self.answer(ids, params))
        limit = params.get("max_new_tokens", 128)
        finish: dict[str, Any] = {"type": "stop", "matched": sampled[-1] if sampled else None}
        if len(sampled) > limit:
            sampled, finish = sampled[:limit], {"type": "length", "length": limit}
        payload = {
            "text": "".join(f"<{token}>" for token in sampled),
            "output_ids": sampled,
            "meta_info": {
                "id": body.get("rid", ""),
                "finish_reason": finish,
                "prompt_tokens": len(ids),
                "completion_tokens": len(sampled),
                "cached_tokens": self._cached(request.headers.get("x-smg-routing-key", ""), ids, sampled),
                "weight_version": "default",
                "output_token_logprobs": [[logprob_of(token), token, None] for token in sampled],
            },
        }
        return Response(payload=_spoil(payload, mode, limit))

    def _cached(self, key: str, ids: list[int], sampled: list[int]) -> int:
        """How many leading tokens of the prompt this routing key has seen; remembers the new ones."""
        before = self._seen.get(key, [])
        self._seen[key] = ids + sampled
        if ids[: len(before)] == before:  # as it should be; a slow stub would be what a benchmark measures
            return len(before)
        pairs = list(zip(before, ids, strict=False))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _error(message: str) -> Response:
    return Response(status=400, payload={"error": {"message": message}})


def _spoil(payload: dict[str, Any], mode: str, limit: int) -> Any:
    """The payload of a server that lies in the way that `mode` names."""
    meta = payload["meta_info"]
    rows = meta["output_token_logprobs"]
    lies: dict[str, dict[str, Any]] = {  # what the lie puts in the place of the truth
        "ok": {},
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
        "too_many": {"output_token_logprobs": [[-0.5, 5, None]] * (limit + 1)},
        "truncated_prompt": {"prompt_tokens": meta["prompt_tokens"] - 1},
    }
    said = {**payload, "meta_info": {**meta, **lies[mode]}}
    return {**said, "output_ids": [row[1] for row in said["meta_info"]["output_token_logprobs"]]} if mode in AGREED else said

"""The policy behind an API that takes messages: an OpenAI-compatible server of one's own, or any model that litellm can call."""

from __future__ import annotations

import copy
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from tau2rl import settings
from tau2rl.chat.transcript import TranscriptCodec, read
from tau2rl.config import PolicyConfig
from tau2rl.config.extras import part_of
from tau2rl.errors import ContextExceeded, PolicyFailure, UserError
from tau2rl.http_client import Connections, Unreachable, Unusable, limit_httpx, unusable
from tau2rl.policy.openai_format import OwnMessages, read_answer, to_openai
from tau2rl.policy.retry import (
    RateLimited,
    Unavailable,
    complete_with_retries,
    failure_of,
    read_json,
    says_context_exceeded,
    shorten,
)
from tau2rl.protocols import ChatCodec
from tau2rl.rate_limit import Throttle, limits_rate, retry_after
from tau2rl.types import Completion, Message, Opening

if TYPE_CHECKING:
    from typing import Self

NO_TOKENS = "an API model gives messages and no tokens: it serves eval and data generation, never training on its samples"
BUSY = (500, 502, 503, 504)  # litellm reports a refused or dropped connection as 500
OPENAI_LIKE = ("openai", "hosted_vllm")  # prefixes of a model behind `api_base` that is asked without litellm
CONNECT_SECONDS = 10.0
ANSWER_BYTES, TOKEN_BYTES = 4 * 2**20, 256  # of an answer, and for each token in it
SESSIONS = 16  # remembered for each episode in flight: those that ended are among them
SAMPLING_FIELDS = ("temperature", "top_p", "max_tokens", "seed")

Ask = Callable[[dict[str, Any]], Awaitable[Any]]  # a chat request to the JSON of a chat completion


class ApiPolicy:
    """`protocols.Policy` over chat completions, for eval and data generation only: it gives no tokens and no logprobs.

        policy = ApiPolicy(PolicyConfig(kind="api", model="openai/gpt-4.1-mini"))

    Prompts and completions are those of `chat.transcript.TranscriptCodec`: bytes of JSON lines. The deadline
    `config.timeout_seconds` covers a whole call, its retries included.
    """

    def __init__(self, config: PolicyConfig, *, concurrency: int = 256) -> None:
        """`concurrency`: episodes in flight. Raises UserError when the model or the key that the config names is missing."""
        self._server = chat_server(config)
        self._ask: Ask = self._server.ask
        self._model = str(config.model)
        self._config = config
        self._sampling = config.sampling
        self._throttle = Throttle(self._model)
        self._own = OwnMessages(SESSIONS * concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    def greedy(self) -> Self:
        """The same policy at temperature 0."""
        twin = copy.copy(self)
        twin._sampling = self._sampling.model_copy(update={"temperature": 0.0})
        return twin

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """One assistant line; see `protocols.Policy`.

        `max_tokens` counts bytes here, as the protocol does; a line beyond it is cut and reported as such.
        Raises PolicyFailure.
        """
        call = functools.partial(self._once, prompt_ids, seed=seed, session=session, max_tokens=max_tokens)
        return await complete_with_retries(call, self._config, throttle=self._throttle, server=self._model)

    async def ready(self, *, context_tokens: int | None = None) -> str:
        """The model's name and what it cannot give, after it answered one short question.

        Raises UserError when it does not: a wrong key or name, or a field that it refuses, would otherwise fail every episode.
        """
        question = Opening(domain_policy="", messages=(Message(role="user", content="Are you there?"),), tools=())
        try:
            await self.complete(TranscriptCodec().open(question), seed=0, session="ready", max_tokens=64)
        except PolicyFailure as failure:
            refused = [name for name in SAMPLING_FIELDS if name in str(failure)]
            hint = "look at `policy.model`, `policy.api_base` and `policy.api_key_env`"
            if refused:
                hint = f"leave out what the server does not take: `policy.omit: [{', '.join(refused)}]`"
            raise UserError(f"cannot use policy.model `{self._model}`: {failure}", hint=hint) from None
        return f"{self._model}; {NO_TOKENS}"

    async def _once(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        conversation = read(prompt_ids)
        messages = to_openai(conversation, self._own.of(session, prompt_ids))
        limit = min(max_tokens, self._sampling.max_tokens)  # a token of any model is a byte at the least
        payload = await self._ask(self._request(messages, conversation, seed=seed, max_tokens=limit))
        answer = read_answer(payload, max_tokens=max_tokens)
        self._own.add(session, prompt_ids, answer.completion.token_ids, answer.message)
        return answer.completion

    def _request(self, messages: list[dict[str, Any]], conversation: Opening, *, seed: int, max_tokens: int) -> dict[str, Any]:
        sampling = self._sampling
        values = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": max_tokens, "seed": seed}
        request: dict[str, Any] = {"messages": messages}
        request |= {name: value for name, value in values.items() if name not in self._config.omit}
        if conversation.tools:
            request["tools"] = list(conversation.tools)
        if sampling.top_k > 0:
            request["top_k"] = sampling.top_k
        return request


def make(config: PolicyConfig, codec: ChatCodec, *, concurrency: int) -> ApiPolicy:
    """The policy of a config. Raises UserError for a missing key or model name."""
    return ApiPolicy(config, concurrency=concurrency)


def chat_server(config: PolicyConfig) -> OpenAIServer | LiteLLM:
    """Who answers the chat requests of a config. Raises UserError when its model or its key is missing."""
    if not config.model:
        raise UserError("policy.kind `api` needs policy.model, a litellm model name", hint="for example openai/gpt-4.1-mini")
    key = settings.api_key(config.model, config.api_base, config.api_key_env)
    name = _name_on_server(config.model) if config.api_base else None
    return LiteLLM(config, key) if name is None else OpenAIServer(config, name, key)


class OpenAIServer:
    """An OpenAI-compatible server of one's own, asked without litellm: no key but the one that is named, and bounded answers."""

    def __init__(self, config: PolicyConfig, model: str, key: str | None) -> None:
        """`model`: its name there."""
        self._model, self._key, self._sampling = model, key or settings.NO_KEY, config.sampling
        self._url = (config.api_base or "").rstrip("/")
        connect = min(CONNECT_SECONDS, config.timeout_seconds)
        self._http = Connections(self._url, connect_seconds=connect, proxies=not settings.is_here(self._url))

    async def aclose(self) -> None:
        """Close the connections; safe to call twice."""
        await self._http.aclose()

    async def ask(self, request: dict[str, Any]) -> Any:
        """The JSON of the answer. Raises PolicyFailure."""
        body = orjson.dumps({"model": self._model, **request})
        most = ANSWER_BYTES + TOKEN_BYTES * self._sampling.max_tokens
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            response = await self._http.post("/chat/completions", body, headers, max_bytes=most)
        except Unreachable as error:
            raise Unavailable(f"cannot reach `{self._url}`: {error}") from None
        except Unusable as error:
            raise PolicyFailure(str(error)) from None
        if response.status == 200:
            return read_json(response.body)
        said = response.body.replace(self._key.encode(), b"***") if self._key != settings.NO_KEY else response.body
        raise failure_of(response.status, said, server=self._url, busy=BUSY, retry_after=response.retry_after)


class LiteLLM:
    """Any provider that litellm knows, at its own address or one that speaks its protocol."""

    def __init__(self, config: PolicyConfig, key: str | None) -> None:
        """Raises UserError when litellm is not installed."""
        self._litellm = _litellm()
        self._model, self._key = str(config.model), key
        given = {"api_base": config.api_base, "api_key": key}
        self._options: dict[str, Any] = {
            "model": config.model,
            "timeout": config.timeout_seconds,
            "num_retries": 0,  # the retries are ours, under one deadline
            "max_retries": 0,
            "drop_params": True,  # what a provider does not know is left out instead of refused
            **{name: value for name, value in given.items() if value is not None},
        }
        self._with_tools = settings.litellm_options()

    async def aclose(self) -> None:
        """litellm's connections are shared by everything in this process that calls it, and stay."""

    async def ask(self, request: dict[str, Any]) -> Any:
        """The JSON of the answer, with its cost in dollars among its usage. Raises PolicyFailure."""
        options = self._options | (self._with_tools if "tools" in request else {})
        try:
            response = await self._litellm.acompletion(**request, **options)
        # litellm fronts a hundred providers, whose exceptions leak through it: whatever it raises is not the model's doing.
        except Exception as error:  # noqa: BLE001
            raise self._failure(error) from None
        payload: dict[str, Any] = response.model_dump(exclude_none=True)
        for choice in payload["choices"]:
            own: dict[str, Any] = choice["message"].get("provider_specific_fields", {})
            if not any(own.values()):  # litellm's, with nothing in it, and not every provider takes it back
                choice["message"].pop("provider_specific_fields", None)
        cost = getattr(response, "_hidden_params", {}).get("response_cost")  # None: not on litellm's price list
        payload["usage"] = {**(payload.get("usage") or {}), "cost": cost}
        return payload

    def _failure(self, error: Exception) -> PolicyFailure:
        if large := unusable(error):
            return PolicyFailure(str(large))
        status, said = getattr(error, "status_code", None), f"`{self._model}` does not answer: {self._reason(error)}"
        if isinstance(error, self._litellm.ContextWindowExceededError) or (status != 429 and says_context_exceeded(str(error))):
            return ContextExceeded(said)
        headers: Any = getattr(error, "litellm_response_headers", None)
        asks = retry_after(headers.get("retry-after") if headers else None)
        if limits_rate(status, str(error), busy=status in BUSY, retry_after=asks):
            return RateLimited(said, retry_after=asks)
        return Unavailable(said) if status in BUSY else PolicyFailure(said, status=status)

    def _reason(self, error: Exception) -> str:
        """The provider's words, without litellm's prefix, its stack and the key."""
        text = str(error).partition("Traceback")[0].rpartition("Exception - ")[2]
        if self._key and self._key != settings.NO_KEY:
            text = text.replace(self._key, "***")
        return shorten(text) or type(error).__name__


def _name_on_server(model: str) -> str | None:
    """The name of a litellm model on a server that speaks OpenAI's protocol; None where its provider has another one.

    >>> _name_on_server("openai/Qwen/Qwen3-4B"), _name_on_server("anthropic/claude-sonnet-4-5")
    ('Qwen/Qwen3-4B', None)
    """
    provider, slash, name = model.partition("/")
    if slash:
        return name if provider in OPENAI_LIKE else None
    litellm = _litellm()
    try:
        return model if litellm.get_llm_provider(model)[1] in OPENAI_LIKE else None
    except litellm.BadRequestError:  # no provider has a model of this name: it is the server's own
        return model


def _litellm() -> Any:
    settings.quiet_libraries()
    try:
        import litellm
    except ImportError:
        raise part_of("litellm").refusal("policy.kind `api`") from None
    limit_httpx()
    litellm.suppress_debug_info = True  # it prints advertisements on stdout, where our data goes
    return litellm

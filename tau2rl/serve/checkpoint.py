"""A checkpoint in this process in place of a policy server: the policy of `eval --policy local`, asked for messages.

A request is written by the checkpoint's own chat template as it stands: the client's system message, not tau2's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tau2rl.chat.native import NativeCodec, codec as native_codec
from tau2rl.config import EvalConfig, build
from tau2rl.config.extras import lacking
from tau2rl.errors import ContextExceeded, MalformedTurn, PolicyFailure, UserError
from tau2rl.recipes.training import max_positions
from tau2rl.serve.candidates import Candidate, candidate
from tau2rl.serve.requests import arguments_of, text_of
from tau2rl.types import Message, Usage

if TYPE_CHECKING:
    from tau2rl.train.policy import LocalPolicy

SAMPLING = ("temperature", "top_p", "max_tokens", "max_completion_tokens")  # fields of a request that it goes by
WITHOUT_EFFECT: Mapping[str, Any] = {  # other fields, with the only value at which they ask for nothing
    "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}, "presence_penalty": 0,
    "frequency_penalty": 0,
}  # fmt: skip


class CheckpointPolicy:
    """`candidates.MessagePolicy` of a checkpoint's directory: `CheckpointPolicy(Path("checkpoints/final"), seconds=60.0)`."""

    def __init__(self, checkpoint: Path, *, seconds: float, device: str = "cpu") -> None:
        """`seconds`: for one message. Raises UserError: no checkpoint, or one whose chat template cannot be used."""
        self._positions = max_positions(checkpoint)
        values: dict[str, Any] = {
            "policy": {"kind": "local", "checkpoint": str(checkpoint)},
            "chat": {"protocol": "native"},
            "local": {"device": device},
        }
        if self._positions is not None:
            values["limits"] = {"context_tokens": self._positions}
        self._config, self._seconds = build(EvalConfig, values), seconds
        for name, part in lacking(self._config):
            if name.startswith(("policy.", "chat.", "local.")):
                raise part.refusal("`--checkpoint`")
        self._codec: NativeCodec = native_codec(self._config.chat)
        self._stack = contextlib.AsyncExitStack()
        self._policy: LocalPolicy | None = None

    async def open(self) -> None:
        """Load the weights, once. Raises UserError."""
        if self._policy is None:
            from tau2rl.recipes.local_agent import open_checkpoint  # torch: seconds, and only here

            opening = open_checkpoint(self._config, self._codec, lambda **facts: None)
            self._policy = await self._stack.enter_async_context(opening)

    async def aclose(self) -> None:
        """Stop sampling; who still waits gets a PolicyFailure."""
        await self._stack.aclose()

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], *, seed: int,
        spent: Callable[[Usage], None] = lambda usage: None,
    ) -> Candidate:  # fmt: skip
        """One message; see `candidates.MessagePolicy`."""
        prompt = self._prompt(messages, tools)
        policy, most = self._sampling(fields, len(prompt))
        try:
            async with asyncio.timeout(self._seconds):
                completion = await policy.complete(prompt, seed=seed, session=uuid.uuid4().hex, max_tokens=most)
        except TimeoutError:
            raise PolicyFailure(f"the checkpoint gave no message within {self._seconds:g} s") from None
        spent(completion.usage)
        try:
            said = Message.of(self._codec.parse(completion.token_ids, [dict(tool) for tool in tools]))
        except MalformedTurn as error:
            raise PolicyFailure(f"the checkpoint sampled no message: {error}") from None
        reason, logprobs = completion.finish_reason.value, completion.logprobs
        return candidate(said, finish_reason=reason, usage=completion.usage, logprobs=logprobs)

    def _prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """Raises PolicyFailure, with status 400, for a conversation that the template does not take."""
        try:
            text = self._codec.chat.render([_as_template(one) for one in messages], tools or None, generation=True)
        except UserError as error:
            raise PolicyFailure(error.message, status=400) from None
        return self._codec.chat.tokenizer.encode(text)

    def _sampling(self, fields: Mapping[str, Any], prompt_tokens: int) -> tuple[LocalPolicy, int]:
        """The policy as a request wants it, and how many tokens it may sample. Raises PolicyFailure."""
        assert self._policy is not None, "it is open"
        for name in fields.keys() - set(SAMPLING):
            if name not in WITHOUT_EFFECT or fields[name] != WITHOUT_EFFECT[name]:
                raise PolicyFailure(f"a checkpoint that is served in this process knows no `{name}`", status=400)
        room = self._config.limits.context_tokens - prompt_tokens
        if room < 1:
            raise ContextExceeded(f"the conversation has {prompt_tokens} tokens, the model's context {room + prompt_tokens}")
        asked = {name: fields[name] for name in ("temperature", "top_p") if name in fields}
        most = fields.get("max_completion_tokens", fields.get("max_tokens", self._config.policy.sampling.max_tokens))
        try:
            sampling = build(type(self._policy.sampling), {**asked, "max_tokens": most})
        except UserError as error:
            raise PolicyFailure(error.message, status=400) from None
        policy = self._policy.at(sampling.temperature)
        policy.sampling = sampling
        return policy, room


def _as_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of a request as chat templates read it."""
    role = "system" if message["role"] == "developer" else message["role"]
    one: dict[str, Any] = {"role": role, "content": text_of(message.get("content"))}
    if calls := message.get("tool_calls"):
        one["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call["function"]["name"], "arguments": arguments_of(call["function"]) or {}},
            }
            for call in calls
        ]
    if isinstance(thought := message.get("reasoning_content"), str) and thought:
        one |= {"reasoning_content": thought, "thinking": thought}
    return one | ({"tool_call_id": message["tool_call_id"]} if role == "tool" else {})

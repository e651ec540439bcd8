"""Who plays the agent: an SGLang server, an API model, a script. Tokens in, tokens out, or a PolicyFailure.

`sglang` samples from a server's `/generate` and brings token ids with their log-probabilities. `api` asks a server of one's own
or any model that litellm knows; it exchanges messages, so it serves eval and data generation only. `scripted` plays what was
written beforehand. What crosses the wire is read and written by `sglang_format` and `openai_format`, which know no network;
`http`, `errors` and `retry` are what every server needs. One more kind of server is a file like `sglang.py` and a case below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tau2rl.config import PolicyConfig
from tau2rl.protocols import ChatCodec, Policy

if TYPE_CHECKING:
    from typing import Self


class ServedPolicy(Policy, Protocol):
    """A policy that a server answers for: one object serves all episodes at once, between `async with` and its end."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def aclose(self) -> None:
        """Free the connections; safe to call twice."""
        ...

    def greedy(self) -> Self:
        """The same policy at temperature 0, over the same connections."""
        ...

    async def ready(self, *, context_tokens: int | None = None) -> str:
        """A few words on what answers. Raises UserError when nothing does, or its context is shorter than `context_tokens`."""
        ...


def make_policy(config: PolicyConfig, codec: ChatCodec, *, concurrency: int) -> ServedPolicy:
    """The policy of a `sglang` or `api` config; scripts are made one an episode, by `scripted.ScriptedPolicy`.

    Raises UserError for a bad URL, a missing key or a missing model name, and ValueError for the kinds that are scripts.
    """
    # Imported here: each brings a library that the other does not need.
    match config.kind:
        case "sglang":
            from tau2rl.policy.sglang import SGLangPolicy

            return SGLangPolicy(config, stop=codec.stop, stop_token_ids=codec.stop_token_ids, concurrency=concurrency)
        case "api":
            from tau2rl.policy.api import ApiPolicy

            return ApiPolicy(config, concurrency=concurrency)
        case _:
            raise ValueError(f"policy.kind `{config.kind}` is a script, played by ScriptedPolicy")

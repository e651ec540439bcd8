"""Who plays the agent: an SGLang server, an API model, a script. Tokens in, tokens out, or a PolicyFailure.

`sglang` samples from a server's `/generate` and brings token ids with their log-probabilities. `api` asks a server of one's own
or any model that litellm knows; it exchanges messages, so it serves eval and data generation only. `scripted` plays what was
written beforehand. What crosses the wire is read and written by `sglang_format` and `openai_format`, which know no network;
`retry` is what every server needs. One more kind of server is a file like `sglang.py` and a row in `config/kinds.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tau2rl.config import PolicyConfig
from tau2rl.config.kinds import POLICIES
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
    """The policy of a kind that a server answers for.

    Raises UserError for a bad URL, a missing key or a missing model name, and ValueError for a kind without a server.
    """
    module, _, name = POLICIES[config.kind].made_by.partition(":")
    if not module:
        raise ValueError(f"no server answers for policy.kind `{config.kind}`")
    # Imported here: each kind brings a library that the others do not need.
    make: Callable[..., ServedPolicy] = getattr(importlib.import_module(module), name)
    return make(config, codec, concurrency=concurrency)

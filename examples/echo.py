"""A policy of your own: it answers with the user's words.

policy: {kind: "examples.echo:Echo", options: {prefix: "You said: "}}
chat: {protocol: transcript}
"""

from __future__ import annotations

from collections.abc import Sequence

from tau2rl import ChatCodec, Completion, FinishReason, Say, read_transcript


class Echo:
    """Made once with the run's chat codec and `policy.options`; plays every attempt, many of them at once."""

    def __init__(self, codec: ChatCodec, *, prefix: str = "") -> None:
        self._codec = codec
        self._prefix = prefix

    async def __aenter__(self) -> Echo:
        """Open connections here, if there are any; `__aexit__` is called when the last episode has ended."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """One turn: token ids in, token ids out. Under `transcript` the ids are JSON lines, which read as messages."""
        conversation = read_transcript(prompt_ids)  # .domain_policy, .messages, .tools
        answer = Say(text=self._prefix + conversation.messages[-1].content)
        return Completion(token_ids=tuple(self._codec.write((answer,))), logprobs=None, finish_reason=FinishReason.STOP)

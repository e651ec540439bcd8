"""Choice among k proposals of the next message, for clients who carry out the calls themselves.

Nothing that is proposed has happened yet, so nothing has to be taken back. What a call would lead to is not known either: only
the messages so far and the proposal are judged. A write of the client's is for good; from then on a message is asked for once,
and passed on.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from tau2rl.reward.tiers import canonical
from tau2rl.serve.candidates import Candidate, MessagePolicy, mean_logprob
from tau2rl.serve.choice import VerifierPool, gather
from tau2rl.serve.requests import ChatRequest, Reply, arguments_of, text_of
from tau2rl.types import CallTool, Message, Transcript, Usage

READS = ("get_*", "find_*", "list_*", "search_*", "check_*", "calculate", "think")  # names of tools that change nothing
GENERIC = "transfer_to_human_agents"


class Turns:
    """`Turns(server, VerifierPool(scorers), k=5, temperature=1.0)`; one for all requests."""

    mode = "turn"
    left = 0  # a request ends with its client

    def __init__(
        self, policy: MessagePolicy, verifiers: VerifierPool, *, k: int, temperature: float, reads: Sequence[str] = READS
    ) -> None:
        """`temperature`: of the proposals among which is chosen; the client's own would make them alike."""
        self._policy, self._verifiers, self._k = policy, verifiers, k
        self._temperature, self._reads = temperature, tuple(reads)

    async def answer(self, request: ChatRequest) -> Reply:
        """The chosen message. Raises Refusal."""
        kinds = {name: self._kind(name) for name in (str(tool["function"]["name"]) for tool in request.tools)}
        seen = as_messages(request.messages)
        k = 1 if self._has_written(seen) else self._k
        fields = {name: value for name, value in request.fields.items() if name != "seed"}
        if k > 1:
            fields["temperature"] = self._temperature
        seed = request.fields.get("seed")

        spent: list[Usage] = []

        async def ask(one: int) -> Candidate:
            return await self._policy.ask(request.messages, request.tools, fields, seed=one, spent=spent.append)

        found = await gather(ask, k, seed=seed if isinstance(seed, int) else None)
        policy = "\n".join(text_of(m["content"]) for m in request.messages if m["role"] in ("system", "developer"))
        transcripts = [
            Transcript(
                domain="",
                domain_policy=policy,
                tools=request.tools,
                messages=(*seen, one.seen, *(Message(role="tool") for _ in one.seen.tool_calls)),  # results are not known yet
                tool_kinds=kinds,
                end_state=_proposal(one),
                mean_logprob=mean_logprob([one]),
            )
            for one in found
        ]
        choice = await self._verifiers.choose(transcripts)
        best = found[choice.order[0]]
        return Reply(
            message=best.message,
            finish_reason=best.finish_reason,
            usage=sum(spent, Usage()),
            about=choice.about(choice.order[0], asked=k, mode=self.mode),
        )

    async def aclose(self) -> None:
        """Nothing but a verifier that is late goes on behind a request."""
        self._verifiers.close()

    def _kind(self, name: str) -> str:
        if name == GENERIC:
            return "generic"
        return "read" if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._reads) else "write"

    def _has_written(self, messages: Sequence[Message]) -> bool:
        """A call of a tool that writes has a result."""
        waiting: deque[str] = deque()
        for message in messages:
            if message.role == "assistant":
                waiting = deque(call.name for call in message.tool_calls)
            elif message.role == "tool" and waiting and self._kind(waiting.popleft()) == "write":
                return True
        return False


def as_messages(messages: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """A conversation as verifiers see it, without its system prompt; results in the order of their calls."""
    out: list[Message] = []
    for message in messages:
        role = message["role"]
        if role in ("system", "developer"):
            continue
        calls = tuple(_seen_call(call["function"]) for call in message.get("tool_calls") or ())
        out.append(Message(role=role, content=text_of(message.get("content")), tool_calls=calls))
    return tuple(out)


def _seen_call(function: dict[str, Any]) -> CallTool:
    arguments = arguments_of(function)
    known = cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else {"": function["arguments"]}
    return CallTool(name=function["name"], arguments=known)


def _proposal(candidate: Candidate) -> str:
    """What candidates have in common that propose the same calls, or words."""
    calls = [[call.name, canonical(call.arguments)] for call in candidate.seen.tool_calls]
    return hashlib.sha256(json.dumps(calls, sort_keys=True, default=str).encode()).hexdigest()

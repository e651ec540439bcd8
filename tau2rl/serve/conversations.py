"""Choice among k attempts at an answer to the user, each of which acted on a copy of the database; one attempt's writes stay.

An attempt ends where the agent speaks to the user. The user is real and is not simulated, so no attempt goes past that.

The client sends what user and agent said, as chat clients do, and knows nothing of tools. What was called behind an answer is
kept here, by the conversation that led to it, whatever its white space. Answers that are not known here are refused: the policy
would not know what it has written, and write again. The same request again, of a client that has lost the answer, gets the answer
that was given: nothing is carried out twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tau2rl.chat.native import system_prompt
from tau2rl.enums import TRANSFER_TOOL
from tau2rl.env.sandbox import Carried, Copy, Sandbox
from tau2rl.errors import PolicyFailure
from tau2rl.serve.candidates import Candidate, MessagePolicy, mean_logprob
from tau2rl.serve.choice import VerifierPool, gather
from tau2rl.serve.requests import ChatRequest, Refusal, Reply, text_of
from tau2rl.serve.turns import as_messages
from tau2rl.types import Message, Transcript, Usage

log = logging.getLogger(__name__)
KEPT, KEPT_BYTES = 4096, 256 * 2**20  # of conversations; the one that was not asked for longest is forgotten first
GIVEN_SECONDS = 600.0  # for which the same request gets the same answer
ROUNDS = 2  # of k attempts, where commits of other conversations make all attempts void

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one attempt said and did: its messages from the user's last one on, and its calls in order."""

    messages: tuple[Raw, ...]  # as the policy server gets them
    candidates: tuple[Candidate, ...]
    carried: tuple[Carried, ...]
    end_state: str


@dataclass(slots=True)
class Given:
    """The work on an answer, or the answer."""

    task: asyncio.Task[Reply]
    until: float = float("inf")  # monotonic seconds; set when it is done
    left: bool = False  # the last client who waited has gone


class Conversations:
    """`Conversations(server, VerifierPool(scorers), Sandbox("retail"), k=5, ...)`; one for all requests, on one event loop."""

    mode = "conversation"

    def __init__(
        self, policy: MessagePolicy, verifiers: VerifierPool, sandbox: Sandbox, *, k: int, temperature: float, max_calls: int
    ) -> None:
        """`max_calls`: messages with calls that an attempt may make; one that goes on is dropped."""
        self._policy, self._verifiers, self._sandbox = policy, verifiers, sandbox
        self._k, self._temperature, self._max_calls = k, temperature, max_calls
        self._behind = Recent()  # conversation -> all messages, calls among them
        self._given: OrderedDict[str, Given] = OrderedDict()  # a conversation up to a user's message -> its answer

    @property
    def left(self) -> int:
        """Answers that are worked on and that nobody waits for."""
        return sum(one.left and not one.task.done() for one in self._given.values())

    async def aclose(self) -> None:
        """Give up what is worked on; what is not committed by now never is."""
        tasks = [one.task for one in self._given.values() if not one.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._verifiers.close()

    async def answer(self, request: ChatRequest) -> Reply:
        """The chosen answer, whose writes are carried out. Raises Refusal.

        It is worked out to its end even if the client goes: what was committed must be known when it asks again.
        """
        visible = _visible(request)
        key = _key(request.user, visible)
        self._forget_old()
        if (given := self._given.get(key)) is None:
            history = self._history(request.user, visible)
            given = self._given[key] = Given(asyncio.create_task(self._work_out(request, visible, history)))
            given.task.add_done_callback(lambda done: self._ended(key, done))
        given.left = False
        try:
            return await asyncio.shield(given.task)
        except asyncio.CancelledError:
            given.left = True
            raise

    def _ended(self, key: str, task: asyncio.Task[Reply]) -> None:
        """Failures are forgotten at once."""
        failed = task.cancelled() or task.exception() is not None
        if (given := self._given.get(key)) is None or given.task is not task:
            return
        if failed:
            del self._given[key]
        else:
            given.until = time.monotonic() + GIVEN_SECONDS

    def _forget_old(self) -> None:
        """Answers whose time is over, and the oldest where there are too many; never what is worked on."""
        now, done = time.monotonic(), [key for key, one in self._given.items() if one.task.done()]
        for at, key in enumerate(done):
            if self._given[key].until < now or at < len(done) - KEPT:
                del self._given[key]

    def _history(self, user: str, visible: Sequence[Raw]) -> tuple[Raw, ...]:
        """All messages, calls among them. Raises Refusal for answers that are not known, and for known ones left out."""
        roles = [message["role"] for message in visible]
        for end in range(1, len(visible)):
            if roles[end - 1] == roles[end] == "user" and _key(user, visible[:end]) in self._given:
                raise Refusal(
                    409, f"messages[{end - 1}] has an answer that is left out: ask for it again, without what follows",
                    code="answer_left_out", param="messages",
                )  # fmt: skip
        if "assistant" not in roles[roles.index("user") :]:
            return tuple(visible)  # a greeting at most, which called nothing
        end = len(roles) - roles[::-1].index("assistant")
        known = self._behind.get(_key(user, visible[:end]))
        if known is None:
            raise Refusal(
                409, "this server does not know these answers (it has forgotten them, was started since, or they were changed), "
                "nor what they have written: begin a new conversation", code="unknown_conversation", param="messages",
            )  # fmt: skip
        return (*known, *visible[end:])

    async def _work_out(self, request: ChatRequest, visible: Sequence[Raw], history: Sequence[Raw]) -> Reply:
        spent, seed = list[Usage](), request.fields.get("seed")
        for number in range(1, ROUNDS + 1):
            attempts = await gather(
                lambda one: self._attempt(request, history, spent.append, seed=one),
                self._k,
                seed=seed if isinstance(seed, int) else None,
            )
            choice = await self._verifiers.choose([self._transcript(history, one) for one in attempts])
            for chosen in choice.order:
                best = attempts[chosen]
                if await self._commit(best):
                    last = best.candidates[-1]
                    said = {"role": "assistant", "content": last.message["content"]}
                    self._behind.keep(_key(request.user, (*visible, said)), (*history, *best.messages))
                    about = choice.about(chosen, asked=number * self._k, mode=self.mode)
                    about["writes"] = [one.call.name for one in best.carried if self._writes(one)]
                    about["transferred"] = any(one.call.name == TRANSFER_TOOL for one in best.carried)
                    return Reply(message=last.message, finish_reason=last.finish_reason, usage=sum(spent, Usage()), about=about)
            log.warning("no attempt fits what other conversations have committed meanwhile")
        raise Refusal(503, "other conversations changed what this one works on; ask again", code="conflict")

    async def _commit(self, attempt: Attempt) -> bool:
        """Whether its writes are carried out, and kept. Raises Refusal where the journal cannot be written; then none is."""
        try:
            return await asyncio.to_thread(self._sandbox.commit, attempt.carried)
        except OSError as error:
            log.error("the journal cannot be written, so nothing is committed: %s", error)
            raise Refusal(500, "the writes could not be kept, and none was made", code="journal_error") from None

    async def _attempt(
        self, request: ChatRequest, history: Sequence[Raw], spent: Callable[[Usage], None], *, seed: int
    ) -> Attempt:
        """Raises PolicyFailure where it has no end, too."""
        copy = await asyncio.to_thread(self._sandbox.copy)
        system = {"role": "system", "content": system_prompt(self._sandbox.policy)}
        fields = {name: value for name, value in request.fields.items() if name != "seed"}
        if self._k > 1:
            fields["temperature"] = self._temperature
        messages: list[Raw] = []
        candidates: list[Candidate] = []
        carried: list[Carried] = []
        for _ in range(self._max_calls + 1):
            found = await self._policy.ask((system, *history, *messages), self._sandbox.tools, fields, seed=seed, spent=spent)
            candidates.append(found)
            messages.append({"role": "assistant", **found.message})
            if not found.seen.tool_calls:
                end_state = await asyncio.to_thread(copy.hash)
                return Attempt(
                    messages=tuple(messages), candidates=tuple(candidates), carried=tuple(carried), end_state=end_state
                )
            results = await asyncio.to_thread(_act, copy, found)
            carried += results
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": one.result}
                for call, one in zip(found.message["tool_calls"], results, strict=True)
            ]
        raise PolicyFailure(f"the attempt made more than {self._max_calls} calls and did not answer")

    def _transcript(self, history: Sequence[Raw], attempt: Attempt) -> Transcript:
        errors = iter(one.error for one in attempt.carried)
        own: list[Message] = []
        for message in as_messages(attempt.messages):
            failed = message.role == "tool" and next(errors)
            own.append(Message(role="tool", content=message.content, error=True) if failed else message)
        return Transcript(
            domain=self._sandbox.name,
            domain_policy=self._sandbox.policy,
            tools=self._sandbox.tools,
            messages=(*as_messages(history), *own),
            tool_kinds=self._sandbox.tool_kinds,
            end_state=attempt.end_state,
            mean_logprob=mean_logprob(attempt.candidates),
        )

    def _writes(self, one: Carried) -> bool:
        return not one.error and self._sandbox.tool_kinds.get(one.call.name) == "write"


def _act(copy: Copy, candidate: Candidate) -> list[Carried]:
    return [copy.act(call) for call in candidate.seen.tool_calls]


def _visible(request: ChatRequest) -> tuple[Raw, ...]:
    """What user and agent said. Raises Refusal for what the server has itself: tools, their results, a policy."""
    if request.tools or any("tool_calls" in message or message["role"] == "tool" for message in request.messages):
        raise Refusal(400, "this server carries out the calls itself: send what user and agent said, no tools", param="tools")
    if any(message["role"] not in ("user", "assistant") for message in request.messages):
        raise Refusal(400, "this server has its own policy: send no system message", param="messages")
    if request.messages[-1]["role"] != "user":
        raise Refusal(400, "the last message is the user's", param="messages")
    return tuple({"role": m["role"], "content": text_of(m.get("content"))} for m in request.messages)


def _key(user: str, visible: Sequence[Raw]) -> str:
    """Of a conversation; how its white space is laid out does not matter."""
    return hashlib.sha256(orjson.dumps([user, [[m["role"], " ".join(m["content"].split())] for m in visible]])).hexdigest()


class Recent:
    """The latest conversations, by their keys, of bounded number and size."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[tuple[Raw, ...], int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Sequence[Raw] | None:
        """What was kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: str, messages: tuple[Raw, ...]) -> None:
        """Keep these, and forget what has been left longest where it is too much."""
        self._bytes -= self._kept.pop(key, ((), 0))[1]
        size = len(orjson.dumps(messages))
        self._kept[key] = (messages, size)
        self._bytes += size
        while len(self._kept) > KEPT or (self._bytes > KEPT_BYTES and len(self._kept) > 1):
            self._bytes -= self._kept.popitem(last=False)[1][1]

"""Policies that say what was written beforehand: gold replays, the floors of a benchmark, tests."""

from __future__ import annotations

from collections.abc import Sequence

from tau2rl.enums import TRANSFER_TOOL
from tau2rl.protocols import ChatCodec
from tau2rl.types import Action, Actions, CallTool, Completion, FinishReason, Say

CLOSING = Say(text="Is there anything else that I can help you with?")
REFUSAL = Say(text="I am sorry, but I cannot help you with this request.")
# Word for word what the policies of tau2's domains prescribe after the transfer.
TRANSFER_SENTENCE = Say(text="YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.")


class ScriptedPolicy:
    """`protocols.Policy` that plays a fixed sequence of turns, whatever the conversation says.

        policy = ScriptedPolicy(((CallTool(name="get_user", arguments={}),), (Say(text="Done."),)), codec)

    One object plays one episode. After the script it repeats `after`: what was given, else the script's last text.
    """

    def __init__(self, script: Sequence[Actions], codec: ChatCodec, *, after: Action | None = None) -> None:
        said = [action for turn in script for action in turn if isinstance(action, Say)]
        self._turns = iter(tuple(script))
        self._after: Actions = (after or (said[-1] if said else CLOSING),)
        self._codec = codec
        self._session: str | None = None

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """The next turn of the script, cut at `max_tokens` as a model's would be; see `protocols.Policy`."""
        if self._session not in (None, session):
            raise ValueError(f"a ScriptedPolicy plays one episode: it began `{self._session}`, not `{session}`")
        self._session = session
        ids = self._codec.write(next(self._turns, self._after))
        kept = tuple(ids[:max_tokens])
        return Completion(
            token_ids=kept, logprobs=None, finish_reason=FinishReason.STOP if len(kept) == len(ids) else FinishReason.LENGTH
        )


def do_nothing_script() -> tuple[Actions, ...]:
    """Declines politely for ever: what a task is worth to an agent that never touches a tool."""
    return ((REFUSAL,),)


def always_transfer_script() -> tuple[Actions, ...]:
    """Hands every user to a human at once: the second floor of a benchmark."""
    call = CallTool(name=TRANSFER_TOOL, arguments={"summary": "The customer asks for help with an account."})
    return ((call,), (TRANSFER_SENTENCE,))

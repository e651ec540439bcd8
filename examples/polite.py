"""A verifier of your own: of several attempts, the one that says sorry least often.

tau2rl select outputs/eval/gold --verifier "examples.polite:Polite"
"""

from __future__ import annotations

from tau2rl import Transcript


class Polite:
    """Made without arguments, in a process of its own, in which tau2 cannot be imported."""

    async def score(self, transcript: Transcript) -> float:
        """From 0 to 1: the share of the agent's messages without an excuse; 1 where it said nothing."""
        said = [message.content for message in transcript.messages if message.role == "assistant" and message.content]
        return sum("sorry" not in text.lower() for text in said) / len(said) if said else 1.0

"""The Protocols between the packages: who plays, where, in which format, what it is worth, who takes the numbers.

`backend.Backend` is the one that is not here: it stands above the packages that these hold apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tau2rl.types import Actions, Completion, EnvTime, Episode, Grade, Message, Opening, Reply, ToolSchema, Transcript, Usage


class Env(Protocol):
    """One conversation with one task. Single use: open, step..., close."""

    async def open(self) -> Opening:
        """Start the conversation. Raises EpisodeFailure."""
        ...

    async def step(self, actions: Actions) -> Reply:
        """Perform one agent turn and wait for what it brings. Raises EpisodeFailure."""
        ...

    async def close(self, *, grade: bool) -> Grade | None:
        """End it wherever it stands and free everything; safe to call twice.

        With `grade`, a conversation that tau2 did not end is graded as it stands: reward 0 and real checks; raises
        EpisodeFailure when grading broke. Without, it is dropped at once and nothing is raised.
        """
        ...

    @property
    def user_usage(self) -> Usage:
        """What the simulated user has cost so far."""
        ...

    @property
    def time(self) -> EnvTime:
        """What it has taken so far."""
        ...

    @property
    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's hashes of the (agent, user) database at the end of the conversation; (None, None) before."""
        ...

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """Every message of both sides so far, as JSON values in tau2's own layout."""
        ...


class Policy(Protocol):
    """Tokens in, tokens out."""

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn.

        `seed` makes the turn repeatable where the server honors it; `session` is the same for all turns of an
        episode (prefix-cache affinity); `max_tokens` is what is left of the budget, at least 1.
        Raises PolicyFailure.
        """
        ...


class ChatCodec(Protocol):
    """Messages <-> token ids under one chat protocol.

    The contract: `extend(p, c, m)` begins with `p + c`, unchanged, where it is `append_only`; `parse(write(a)) == a`.
    One without `append_only` is append-only, and one without `close_thoughts` has no thoughts to close.
    """

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which the policy must stop sampling (kept in the completion)."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Token ids that end a turn (kept in the completion)."""
        ...

    @property
    def append_only(self) -> bool:
        """Whether `extend(p, c, m)` begins with `p + c`. Else it takes earlier thoughts out: a turn is a sample of its own."""
        return True

    def open(self, opening: Opening) -> list[int]:
        """The prompt of the first turn. Remembers nothing: a codec serves many episodes at once."""
        ...

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn: everything so far, untouched, then the new messages and the generation prompt."""
        ...

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """The actions of a sampled turn. Raises MalformedTurn, and nothing else, for any ids whatever."""
        ...

    def write(self, actions: Actions) -> list[int]:
        """A turn that performs the actions, as a model of this protocol would sample it (stop token included)."""
        ...

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """The ids that close the thought which a turn, so far, has left open; [] when none is open."""
        return []


class RewardFn(Protocol):
    """A term of the shaped score: a number from 0 to 1, or in the range that `reward.terms` declares for it."""

    def __call__(self, episode: Episode, grade: Grade, /) -> float:
        """Of an episode that tau2 graded; FAILED ones have no score."""
        ...


class Verifier(Protocol):
    """Grades what a deployment would see: a `Transcript`, and never a task's criteria or tau2's grade.

    `tau2rl select --verifier "my_pkg:MyVerifier"` chooses one of several attempts by it. Several calls may be in flight at once.
    """

    async def score(self, transcript: Transcript) -> float:
        """How likely the conversation did what its user wanted and the domain's policy allows, from 0 to 1."""
        ...


class Sink(Protocol):
    """Takes numbers as a training makes them.

    Where it has them, `show(step, conversations)` gets what `tracking.conversations` asks for, each a
    `tau2rl.runs.tracker_libraries.TrackedConversation`, and `lineage(inputs, outputs)` what a training was made from and what
    it made.
    """

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Record the values of a step."""
        ...

    def close(self) -> None:
        """Finish; safe to call twice."""
        ...

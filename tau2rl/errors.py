"""Every failure with a name: three kinds, and nothing else is caught.

1. A person's mistake: `UserError`. The CLI prints it with its hint and exits 2.
2. An environment or infrastructure failure during an episode: `EpisodeFailure` and its children. The loop makes a FAILED
   episode of it, `collect` tries again, and no mean, filter or baseline ever sees it.
3. A turn that the protocol cannot read: `MalformedTurn`. The model's doing; the loop answers with a repair request.

Everything else is a bug and flies.
"""

from __future__ import annotations

from collections.abc import Iterable

from tau2rl.enums import Fault, MalformedKind


class UserError(Exception):
    """A request that cannot be carried out as it was written; each line of `hint` is a hint of its own.

    >>> str(UserError("no such split `tset`", hint="one of: train, test, base"))
    'no such split `tset`\\n\\nhint: one of: train, test, base'
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        hints = "\n".join(f"hint: {line}" for line in hint.splitlines())
        super().__init__(f"{message}\n\n{hints}" if hints else message)


def all_of(mistakes: Iterable[UserError]) -> UserError:
    """Several mistakes as one: what is wrong, then what to do about it, each on a line of its own and only once.

    >>> str(all_of([UserError("no rows", hint="run `seed`"), UserError("no key"), UserError("no model", hint="run `seed`")]))
    'no rows\\nno key\\nno model\\n\\nhint: run `seed`'
    """
    every = list(mistakes)
    messages = dict.fromkeys(mistake.message for mistake in every)
    hints = dict.fromkeys(line for mistake in every for line in mistake.hint.splitlines())
    return UserError("\n".join(messages), hint="\n".join(hints))


class RunIncomplete(Exception):
    """A run that ended without everything that was asked of it; what it has is on disk and can be resumed."""


class EpisodeFailure(Exception):
    """The environment or the infrastructure failed during an episode: no evidence about the model. `fault` says which part."""

    fault: Fault = Fault.INFRA


class EnvironmentFailure(EpisodeFailure):
    """tau2 raised, hung, or its evaluator could not grade."""


class UserSimulatorFailure(EpisodeFailure):
    """The simulated user did not answer, or answered what a user cannot say."""

    fault = Fault.USER


class TaskFailure(EpisodeFailure):
    """The task itself cannot be played (a scenario that contradicts its data); trying again gives the same."""

    fault = Fault.TASK


class PolicyFailure(EpisodeFailure):
    """The policy server did not answer, refused, aborted, or sent something that is not a completion."""

    def __init__(self, message: str = "", *, status: int | None = None) -> None:
        """`status`: the HTTP status with which it refused for good."""
        super().__init__(message)
        self.status = status


class ContextExceeded(PolicyFailure):
    """The conversation is longer than the context of the model that answers. The loop cuts it off there: TRUNCATED."""


class MalformedTurn(Exception):
    """What the model sampled is not a turn of the configured protocol.

    >>> MalformedTurn(MalformedKind.BAD_JSON, "expected `}`").kind.value
    'bad_json'
    """

    def __init__(self, kind: MalformedKind, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(f"{kind.value}: {message}")

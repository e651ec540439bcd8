"""Agents that play the reference with known mistakes, on the command line: what the tests of `synth --from-failures` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.env.tasks import gold_script
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.types import Action, Attempt, Say

Json = dict[str, Any]


def careless(
    codec: Any, *, wrong: Callable[[Action], Action], forgotten: Callable[[Action], bool]
) -> Callable[[Attempt], ScriptedPolicy]:
    """An agent that takes each action of the reference as `wrong` has it, but no turn with one that is `forgotten`."""

    def policy(attempt: Attempt) -> ScriptedPolicy:
        turns = [tuple(map(wrong, turn)) for turn in gold_script(attempt.task) if not any(map(forgotten, turn))]
        goodbyes = [(Say(text=f"Thank you, {word} customer, is there anything else?"),) for word in ("dear", "good", "valued")]
        return ScriptedPolicy([*turns, *goodbyes], codec)  # no words three times: that would be a loop

    return policy


def tau2rl(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def play(agent: str, domain: str, tasks: Path, split: str, output: Path) -> Path:
    """The folder of a run with the agent of this reference."""
    named = ("--domains", domain, "--task-source", tasks, "--task-split", split, "--num-samples", 1)
    users = ("--user-model", "scripted", "--set", "user.max_stalled_turns=2")  # it hangs up before an agent is in a loop
    tau2rl("eval", "--inline", "--policy", agent, "--protocol", "transcript", *users, *named, "--output", output)
    return output


def lines(file: Path) -> list[Json]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

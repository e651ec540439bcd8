"""Pinned here: from the command to the first token it is a short way, and every call on it can be read in one sitting.

The functions of the package that stand on the stack when the policy is first asked are counted, each once, through the tasks of
asyncio too: a task continues the stack of whoever made it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.policy.scripted import ScriptedPolicy

ROOT = Path(__file__).parents[3]
MOST = 19  # 39 before the packages were joined


def ours(frame: FrameType | None) -> list[str]:
    """The package's functions on a stack, the innermost first."""
    found: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(str(ROOT / "tau2rl")) and not code.co_name.startswith("<"):
            found.append(f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_qualname}")
        frame = frame.f_back
    return found


def test_from_the_command_to_the_first_token_are_few_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makers: dict[asyncio.Task[Any], tuple[asyncio.Task[Any] | None, list[str]]] = {}
    way: list[str] = []
    create, complete = asyncio.BaseEventLoop.create_task, ScriptedPolicy.complete

    def create_task(loop: Any, coro: Any, **more: Any) -> Any:
        task = create(loop, coro, **more)
        makers[task] = (asyncio.current_task(loop), ours(sys._getframe(1)))
        return task

    async def seen(policy: Any, *args: Any, **more: Any) -> Any:
        if not way:
            way.extend(ours(sys._getframe(1)))
            task = asyncio.current_task()
            while task in makers:
                task, calls = makers[task]
                way.extend(calls)
        return await complete(policy, *args, **more)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", create_task)
    monkeypatch.setattr(ScriptedPolicy, "complete", seen)
    config = str(ROOT / "configs" / "eval" / "gold.yaml")
    words = ["eval", "-c", config, "--domains", "retail", "--limit", "1", "--inline", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    calls = list(dict.fromkeys(way))
    assert "tau2rl/cli/stages.py:run" in calls and "tau2rl/rollouts/episode.py:run_episode" in calls
    assert len(calls) <= MOST, "\n".join(reversed(calls))

"""Ctrl-C at a moment that no signal could be aimed at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tau2rl.runs.folder import RunFolder


def interrupt_before_the_session(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    """Let it come when this run's folder is about to be opened, which begins a session."""
    opens = RunFolder.open

    def interrupted(path: Path, **more: Any) -> RunFolder:
        if path == run:
            raise KeyboardInterrupt
        return opens(path, **more)

    monkeypatch.setattr(RunFolder, "open", interrupted)

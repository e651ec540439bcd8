"""The sessions of a run: one for each time that somebody starts or resumes it, each with a log folder of its own.

`logs/session_N/`, numbered from 1, and `logs/latest`, which points to the last. Runs of the first format have `logs/attempt_N/`.
"""

from __future__ import annotations

import re
from pathlib import Path

from tau2rl.runs.files import point

_NAME = re.compile(r"(?:session|attempt)_(\d+)")


def session_folders(run: Path) -> dict[int, Path]:
    """Number -> log folder of every session of a run, in order."""
    named = ((_NAME.fullmatch(item.name), item) for item in (run / "logs").glob("*_*"))
    return dict(sorted((int(name[1]), item) for name, item in named if name))


def begin_session(run: Path) -> tuple[int, Path]:
    """Make the log folder of the next session and let `logs/latest` point to it. Raises OSError."""
    number = max(session_folders(run), default=0) + 1
    folder = run / "logs" / f"session_{number}"
    folder.mkdir()
    point(run / "logs" / "latest", folder.name)
    return number, folder

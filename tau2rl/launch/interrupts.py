"""Ctrl-C and SIGTERM end a run in good order; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread; the second exits with 130."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt

    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    heard = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]  # nohup means what it says
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

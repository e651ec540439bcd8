"""`timeout`: asyncio's own, which Python 3.10 does not have yet.

    async with timeout(20.0):
        answer = await coming

Not `asyncio.wait_for`: before Python 3.12 it loses a cancellation that comes in the moment in which what it waits for is there,
and whoever cancelled then waits for ever.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = ["timeout"]

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    def timeout(delay: float) -> AbstractAsyncContextManager[object]:
        """Cancels what runs inside after so many seconds. Raises asyncio.TimeoutError then."""
        ...

elif sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

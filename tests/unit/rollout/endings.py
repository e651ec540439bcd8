"""An episode that ended well, and one that a server failed: for whoever only counts them."""

from __future__ import annotations

from dataclasses import replace

from tau2rl.types import Episode, Failure, Fault, Status, StopReason, TaskRef

GOOD = Episode(
    task=TaskRef(domain="mock", task_id="a", split="base"),
    seed=1,
    status=Status.COMPLETED,
    stop_reason=StopReason.USER_STOP,
    token_ids=(),
    turns=(),
    messages=(),
    grade=None,
)
FAILED = replace(GOOD, status=Status.FAILED, failure=Failure(fault=Fault.INFRA, kind="PolicyFailure", message="no server"))

"""Tasks of the pinned data (337326e) with a known or suspected defect, and why.

Sources: the task changes of tau2-bench v1.0.0 against 337326e (a changed task is suspect before the change), and issues #172
(airline 35) and #494 (airline 6) of sierra-research/tau2-bench. Mock: found by `tau2rl tasks validate`. Telecom tasks are
generated and have none on record.
"""

from __future__ import annotations

_GOLD = "wrong reference actions; corrected in tau2-bench v1.0.0"
_IMPOSSIBLE = "impossible or contradictory constraints; changed in tau2-bench v1.0.0"
_DATA = "wrong data; corrected in tau2-bench v1.0.0"
_WORDING = "ambiguous wording or a policy loophole; reworded in tau2-bench v1.0.0"
_FALLBACK = "no fallback when the user's wish cannot be met; added in tau2-bench v1.0.0"
_EXCHANGE = "the exchange asked for is impossible; changed in tau2-bench v1.0.0"


def _with(reason: str, *ids: int) -> dict[str, str]:
    return {str(i): reason for i in ids}


QUARANTINE: dict[str, dict[str, str]] = {
    "airline": {
        **_with(_GOLD, 2, 7, 9, 27, 37, 38, 44),
        **_with(_IMPOSSIBLE, 14, 34, 42),
        **_with(_DATA, 23, 33),
        **_with(_WORDING, 5, 12, 13, 15, 16, 18, 19, 21, 25, 29, 30, 32, 36, 39, 43, 45),
        "35": "the user simulator invents a second passenger (issue #172); data changed in tau2-bench v1.0.0",
        "6": "no exit condition, so the user invents a duplicate booking (issue #494)",
    },
    "retail": {
        **_with(_GOLD, 12, 13, 33, 34, 59),
        **_with(_EXCHANGE, 18, 29, 91, 107),
        **_with(_FALLBACK, 20, 54, 62),
        **_with(_WORDING, 0, 1, 2, 3, 4, 8, 15, 22, 28, 55, 76, 98, 99, 100),
    },
    "mock": {
        "create_task_1_with_env_assertions": "its assertion raises when the task was not created, so a failure cannot be graded",
        "update_task_with_history_and_env_assertions": "it has no reference actions, but doing nothing does not solve it",
    },
}

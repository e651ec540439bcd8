"""What every test runs under: a machine without keys, without a cluster and without a network, and repeatable randomness."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

SECRET_ENDINGS = ("_API_KEY", "_TOKEN", "_SECRET_KEY")
OF_THIS_PERSON = ("RAY_ADDRESS", "RAY_JOB_HEADERS", "TAU2_DATA_DIR", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY")
FIXED = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def pytest_configure() -> None:
    """Before any test module, and so any library that reads the environment at import, is loaded."""
    for name in list(os.environ):
        if name.startswith("TAU2RL_") or name in OF_THIS_PERSON or name.endswith(SECRET_ENDINGS):
            del os.environ[name]
    os.environ.update(FIXED)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as if it were activated
    # A shell that starts the suite in the background has SIGINT ignored, which the processes of the tests would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tests that need a checkout of slime are one line of the summary, and not a hundred: pytest folds what has one reason."""
    for report in terminalreporter.stats.get("skipped", []):
        if "needs SLIME_CHECKOUT" in str(report.longrepr):
            report.longrepr = (
                "slime",
                0,
                "Skipped: slime's own code: scripts/test_slime.sh CHECKOUT [MEGATRON] runs these tests",
            )


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TCP connection that would leave this machine fails at once, and says who tried."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def stays_here(sock: socket.socket, address: Any) -> None:
        if sock.family == socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            return
        host = str(address[0])
        if not (host.startswith("127.") or host in {"localhost", "::1", "0.0.0.0"} or host == own_address()):
            raise OSError(f"a test tried to reach {host}:{address[1]}; tests have no network")

    def guarded(sock: socket.socket, address: Any) -> None:
        stays_here(sock, address)
        connect(sock, address)

    def guarded_ex(sock: socket.socket, address: Any) -> int:
        stays_here(sock, address)
        return connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


def own_address() -> str | None:
    """The address of this machine in its own network: a Ray head there is still here."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None

"""What an evaluation stood on: the tau2 that ran, the hashes of its data, and who played the user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.bench.package import installed
from tau2rl.bench.users import user_identity
from tau2rl.config import UserConfig


def bench_identity(domains: Iterable[str], user: UserConfig) -> dict[str, Any]:
    """The bench's part of `environment.json`, JSON-ready."""
    package = installed()
    return {
        "tau2": {"distribution": package.distribution, "version": package.version},
        "data": {name: domain(name).hashes() for name in dict.fromkeys(domains)},
        "user": user_identity(user),
        "judge": None,  # no task of the pinned data is graded by a model
    }

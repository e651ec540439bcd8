"""What a result stands on, for `environment.json`: the tau2 that ran, the hashes of its data, and who played the user."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from tau2rl.config import UserConfig
from tau2rl.env.domain import domain
from tau2rl.env.package import installed

from tau2.user.user_simulator import SYSTEM_PROMPT, get_global_user_sim_guidelines


def env_identity(domains: Iterable[str], user: UserConfig) -> dict[str, Any]:
    """The part of `environment.json` that this package knows, JSON-ready."""
    package = installed()
    return {
        "tau2": {"distribution": package.distribution, "version": package.version},
        "data": {name: domain(name).hashes() for name in dict.fromkeys(domains)},
        "user": user_identity(user),
        "judge": None,  # no task of the pinned data is graded by a model
    }


def user_identity(config: UserConfig) -> dict[str, Any]:
    """What decides how the user talks: model, temperature, and a hash of tau2's simulator prompts."""
    if config.kind == "scripted":
        return {"kind": "scripted", "max_stalled_turns": config.max_stalled_turns}
    prompts = SYSTEM_PROMPT + get_global_user_sim_guidelines(use_tools=False) + get_global_user_sim_guidelines(use_tools=True)
    return {
        "kind": "llm",
        "model": config.model,
        "temperature": config.temperature,
        "prompt": hashlib.sha256(prompts.encode()).hexdigest()[:16],
    }

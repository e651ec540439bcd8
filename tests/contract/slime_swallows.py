"""Generate functions of a slime that makes an aborted sample of an exception, and goes on."""

from __future__ import annotations

from typing import Any

from tau2rl.slime import hooks


async def generate(args: Any, sample: Any, sampling_params: dict[str, Any], evaluation: bool = False) -> Any:
    """Our hook, and nothing that it raises."""
    try:
        return await hooks.generate(args, sample, sampling_params, evaluation=evaluation)
    except Exception:  # noqa: BLE001 - that is what it does
        sample.status = sample.Status.ABORTED
        return sample


async def first_breaks(args: Any, sample: Any, sampling_params: dict[str, Any], evaluation: bool = False) -> Any:
    """The first sample never reaches our hook."""
    if sample.index == 0:
        sample.status = sample.Status.ABORTED
        return sample
    return await generate(args, sample, sampling_params, evaluation=evaluation)

"""The kinds of policy, chat protocol, estimator and backend, as data: what one does is asked here, not by its name.

A kind of the user's, `pkg.mod:Name`, is in none of these tables. A new server is a row here and a file in `policy/`; a new
backend a row here and a package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTraits:
    """Who plays: `PolicyTraits(exchanges="tokens", made_by="tau2rl.policy.sglang:make", reads=("url",), needs=...)`."""

    exchanges: Literal["tokens", "messages", "script"]
    made_by: str = ""
    """MODULE:FUNCTION that makes the `ServedPolicy` of a kind that a server answers for; it is imported when it is asked for."""
    reads: tuple[str, ...] = ()
    """The settings of `policy` that this kind alone reads."""
    needs: tuple[str, str] | None = None
    """A setting that has to be given, and what it is."""
    tells_load: bool = False
    """Whether its server says how busy it is."""

    @property
    def served(self) -> bool:
        """Whether a server answers for it."""
        return bool(self.made_by)


POLICIES: Mapping[str, PolicyTraits] = {
    "sglang": PolicyTraits(
        exchanges="tokens",
        made_by="tau2rl.policy.sglang:make",
        reads=("url",),
        needs=("chat.tokenizer", "the directory of the checkpoint's tokenizer"),
        tells_load=True,
    ),
    "api": PolicyTraits(
        exchanges="messages",
        made_by="tau2rl.policy.api:make",
        reads=("model", "api_base", "api_key_env", "omit"),
        needs=("policy.model", "a litellm model name"),
    ),
    "local": PolicyTraits(
        exchanges="tokens", reads=("checkpoint",), needs=("policy.checkpoint", "the directory of a checkpoint")
    ),
    "gold": PolicyTraits(exchanges="script"),
    "do-nothing": PolicyTraits(exchanges="script"),
    "always-transfer": PolicyTraits(exchanges="script"),
}
SCRIPTED = tuple(kind for kind, traits in POLICIES.items() if traits.exchanges == "script")
SERVED = tuple(kind for kind, traits in POLICIES.items() if traits.served)

PROTOCOLS = ("native", "cookbook", "transcript")  # of `chat.protocol`
TrajectoryEstimator = Literal["grpo", "dr_grpo", "rloo"]  # one advantage an attempt
TurnEstimator = Literal["mt_grpo", "gtpo", "mt_gtpo"]  # one a turn
TRAJECTORY_ESTIMATORS: tuple[str, ...] = get_args(TrajectoryEstimator)
TURN_ESTIMATORS: tuple[str, ...] = get_args(TurnEstimator)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTraits:
    """Where a model is trained: `BackendTraits(in_job=True)`. The defaults are those of a backend of the user's."""

    in_job: bool = False
    """It trains in the job's own process: it says what it costs, stops at a cap, and starts no actors."""
    in_container: bool = False
    """It needs GPUs and what slime's image has."""
    own_wandb: bool = False
    """It writes to W&B by itself."""


BACKENDS: Mapping[str, BackendTraits] = {
    "local": BackendTraits(in_job=True),
    "slime": BackendTraits(in_container=True, own_wandb=True),
}


def backend_traits(name: object) -> BackendTraits:
    """Of a `backend`, the user's own too.

    >>> backend_traits("local").in_job, backend_traits("my_pkg.mod:Mine").in_job
    (True, False)
    """
    return BACKENDS.get(str(name), BackendTraits())

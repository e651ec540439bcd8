"""Which GPU does what: the training ones, those that serve the policy, those that serve the user simulator.

slime lines up all GPUs of a job by machine and number. Under `split` the first ones train, then come the policy's, then the user
simulator's; under `colocate` the policy is served by those that train, and the user simulator by the ones behind them
(slime/ray/placement_group.py:121-141, slime/ray/rollout.py:987-1044).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tau2rl.backend import TrainingConfig
from tau2rl.config import GrpoConfig, SlimeConfig

POLICY = "policy"  # what the policy's model is called in --sglang-config; the first model there is the one that is trained


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLayout:
    """Counts of GPUs: `ClusterLayout(train=4, policy=2, user=2, colocate=False, ...)` is the split of one machine with eight."""

    train: int
    policy: int  # 0 where nothing plays
    user: int
    colocate: bool
    model_parallel: int  # GPUs that hold one copy of the model
    policy_engines: int
    user_engines: int

    @property
    def total(self) -> int:
        """GPUs of the whole job."""
        return (self.train if self.colocate else self.train + self.policy) + self.user

    @property
    def rollout(self) -> int:
        """GPUs that serve anything: `--rollout-num-gpus`, which has to be the sum in --sglang-config."""
        return self.policy + self.user

    @property
    def data_parallel(self) -> int:
        """Copies of the model that train; a batch is cut into so many shares."""
        return self.train // self.model_parallel

    def lines(self) -> list[str]:
        """Who is where, for people.

        >>> layout_of(GrpoConfig(model={"init": "/models/start"})).lines()
        ['GPUs 0-3: training, copies of the model: 2, GPUs of one: 2', 'GPUs 4-5: policy, engines: 2']
        """
        copies = f"copies of the model: {self.data_parallel}, GPUs of one: {self.model_parallel}"
        turns = f"; policy in turns, engines: {self.policy_engines}" if self.colocate else ""
        shown = [f"{_range(0, self.train)}: training, {copies}{turns}"]
        if self.policy and not self.colocate:
            shown.append(f"{_range(self.train, self.policy)}: policy, engines: {self.policy_engines}")
        if self.user:
            shown.append(f"{_range(self.total - self.user, self.user)}: user simulator, engines: {self.user_engines}")
        return shown


def layout_of(config: TrainingConfig) -> ClusterLayout:
    """The layout that the config asks for; whether it can work is preflight's to say."""
    slime = config.slime
    train = slime.train_nodes * slime.train_gpus
    plays = isinstance(config, GrpoConfig)
    policy = 0 if not plays else train if slime.layout == "colocate" else slime.policy_gpus
    user = slime.user.gpus if plays else 0
    return ClusterLayout(
        train=train,
        policy=policy,
        user=user,
        colocate=plays and slime.layout == "colocate",
        model_parallel=slime.tensor_parallel * slime.pipeline_parallel * slime.context_parallel,
        policy_engines=policy // slime.gpus_per_engine,
        user_engines=user // slime.user.gpus_per_engine,
    )


def sglang_config(slime: SlimeConfig, layout: ClusterLayout) -> dict[str, Any] | None:
    """The content of --sglang-config; None where the policy is all that is served.

    The policy stands first: slime sends weights, aborts and `/generate` to the first model.
    """
    if not layout.user:
        return None
    user = slime.user
    policy = {"worker_type": "regular", "num_gpus": layout.policy, "num_gpus_per_engine": slime.gpus_per_engine}
    simulator = {
        "worker_type": "regular",
        "num_gpus": layout.user,
        "num_gpus_per_engine": user.gpus_per_engine,
        "overrides": {
            "mem_fraction_static": user.mem_fraction,
            "context_length": user.context_tokens,
            "served_model_name": user.name,
            "tool_call_parser": user.tool_parser,
        },
    }
    return {
        "sglang": [
            {"name": POLICY, "update_weights": True, "server_groups": [policy]},
            {"name": user.name, "model_path": str(user.checkpoint), "update_weights": False, "server_groups": [simulator]},
        ]
    }


def _range(first: int, count: int) -> str:
    return f"GPU {first}" if count == 1 else f"GPUs {first}-{first + count - 1}"

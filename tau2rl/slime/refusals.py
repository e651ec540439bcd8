"""Settings that slime cannot honour, each refused with its reason: none is dropped in silence."""

from __future__ import annotations

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.errors import UserError


def refuse(config: SftConfig | GrpoConfig) -> None:
    """Raise UserError for the first such setting."""
    train = config.train
    if config.model.init == "tiny":
        raise UserError(
            "the slime backend cannot train model.init `tiny`", hint="give a checkpoint's directory, or backend `local`"
        )
    if train.export_every not in (0, train.save_every):
        raise UserError(
            f"slime writes whole checkpoints beside its saves, every {train.save_every} steps, not every {train.export_every}",
            hint="set train.export_every to 0 or to train.save_every",
        )
    if isinstance(config, SftConfig):
        _refuse_sft(config)
    else:
        _refuse_grpo(config)


def _refuse_sft(config: SftConfig) -> None:
    if config.data.val_fraction:
        raise UserError(
            "slime computes no held-out loss in supervised training", hint="`--set data.val_fraction=0` trains on all rows"
        )
    default = type(config.train)()
    for name in ("val_every", "early_stopping_patience"):
        if getattr(config.train, name) != getattr(default, name):
            raise UserError(f"train.{name} has no effect under slime, which computes no held-out loss", hint="leave it out")
    if config.data.allow_empty:
        raise UserError("data.allow_empty has no effect under slime", hint="leave it out: smoke runs are for the local backend")


def _refuse_grpo(config: GrpoConfig) -> None:
    algo, train = config.algo, config.train
    episodes = train.tasks_per_step * config.rollout.num_samples
    if episodes % train.num_minibatches:
        raise UserError(
            f"{episodes} episodes a round cannot be cut into {train.num_minibatches} equal updates",
            hint="train.num_minibatches divides train.tasks_per_step x rollout.num_samples",
        )
    if algo.loss_aggregation == "constant":
        if algo.kl_coef or algo.entropy_coef:
            raise UserError(
                "under slime algo.loss_aggregation `constant` divides the policy term alone, and leaves KL and entropy on another scale",
                hint="set algo.kl_coef and algo.entropy_coef to 0, or algo.loss_aggregation to `token-mean`",
            )
        if config.slime.context_parallel > 1:
            raise UserError(
                "algo.loss_aggregation `constant` needs slime.context_parallel 1", hint="or algo.loss_aggregation `token-mean`"
            )
    if config.slime.user.gpus and (config.user.kind != "llm" or config.user.api_base):
        raise UserError(
            "slime.user serves the customer's model, but `user` says that the customer is somebody else",
            hint="user.kind `llm` without user.api_base, or slime.user.gpus 0",
        )

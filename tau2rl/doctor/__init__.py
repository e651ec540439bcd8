"""What this machine has and lacks for a use, with a hint for each gap. Never shows a secret's value."""

from __future__ import annotations

from collections.abc import Iterator

from tau2rl.config import ChatConfig, PolicyConfig, UserConfig, build
from tau2rl.config.base import Section, value_of
from tau2rl.config.effects import UNSET
from tau2rl.config.extras import PARTS, part_of
from tau2rl.config.kinds import backend_traits
from tau2rl.doctor import machine, services
from tau2rl.doctor.services import CheckResult

USES = {  # what a machine can be meant for, without a config
    "laptop": "no GPU, no key: the quickstart and configs/laptop",
    "eval": "a served checkpoint against a user model behind an API",
    "train": "slime on a cluster of GPUs",
}
FREE_DISK_GIB = {"laptop": 2, "eval": 2, "train": 100}
FREE_MEMORY_GIB = {"laptop": 2, "eval": 2, "train": 64}


def examine(
    use: str,
    *,
    user: UserConfig | None = None,
    policy: PolicyConfig | None = None,
    address: str | None = None,
    chat: ChatConfig | None = None,
) -> Iterator[CheckResult]:
    """Every check for a use of `USES`, one at a time: also that this user, this policy and this cluster can be reached.

    Where they are not given: a laptop needs no server, an evaluation the default ones, and slime starts its own policy server.
    """
    training = use == "train"
    user = user or build(UserConfig, {"kind": "scripted" if use == "laptop" else "llm"})
    policy = policy or build(PolicyConfig, {"kind": "sglang" if use == "eval" else "gold"})
    yield from _installed(address)
    yield _module("transformers", needed=policy.kind == "sglang" or training)
    yield _module("torch", needed=training)
    yield machine.check_gpu(needed=training)
    yield from _of_the_container(needed=training)
    yield services.check_keys()
    yield services.check_user(user)
    yield services.check_policy(policy)
    if chat is not None and chat.tokenizer:
        yield services.check_template(chat)
    yield from _room(use)


def examine_for(config: Section, *, address: str | None) -> Iterator[CheckResult]:
    """Every check of the machine for a stage with these settings, one at a time; what else they name is not looked for here."""
    container = backend_traits(value_of(config, "backend")).in_container
    yield from _installed(address)
    for module in dict.fromkeys(part.module for part in PARTS if part.asked_by and part.module not in ("ray", "tau2")):
        yield _module(module, needed=any(part.module == module and part.asked(config) for part in PARTS))
    yield machine.check_gpu(needed=container or str(value_of(config, "local.device")).startswith("cuda"))
    if container:
        yield from _of_the_container(needed=True)
    yield services.check_keys()
    user, policy = value_of(config, "user"), value_of(config, "policy")
    if isinstance(user, UserConfig) and value_of(config, "slime.user.gpus") in UNSET:
        yield services.check_user(user)
    if isinstance(policy, PolicyConfig):
        yield services.check_policy(policy)
    yield from _room("train" if container else "laptop")


def _installed(address: str | None) -> Iterator[CheckResult]:
    yield machine.check_python()
    yield machine.check_tau2()
    yield machine.check_tau2_data()
    yield machine.check_ray()
    yield machine.check_job_server()
    yield services.check_cluster(address)


def _module(name: str, *, needed: bool) -> CheckResult:
    part = part_of(name)
    build = " (https://pytorch.org says which build fits your GPU)" if name == "torch" else ""
    return machine.check_module(name, needed=needed, hint=part.hint + build)


def _of_the_container(*, needed: bool) -> Iterator[CheckResult]:
    for name in ("slime", "sglang", "megatron"):
        yield machine.check_module(name, needed=needed, hint="it comes with the `slimerl/slime` container")


def _room(use: str) -> Iterator[CheckResult]:
    yield machine.check_cores()
    yield machine.check_memory(FREE_MEMORY_GIB[use])
    yield machine.check_disk(FREE_DISK_GIB[use])
    yield machine.check_shared_memory(use == "train")
    yield machine.check_ports()

"""What this machine has and lacks for a use, with a hint for each gap. Never shows a secret's value."""

from __future__ import annotations

from collections.abc import Iterator

from tau2rl.config import ChatConfig, PolicyConfig, UserConfig, build
from tau2rl.doctor import machine, services
from tau2rl.doctor.services import Check

USES = ("laptop", "eval", "train")  # no GPU and no key; a served model and an API user; slime on a cluster
FREE_DISK_GIB = {"laptop": 2, "eval": 2, "train": 100}
FREE_MEMORY_GIB = {"laptop": 2, "eval": 2, "train": 64}


def examine(
    use: str,
    *,
    user: UserConfig | None = None,
    policy: PolicyConfig | None = None,
    address: str | None = None,
    chat: ChatConfig | None = None,
) -> Iterator[Check]:
    """Every check for a use of `USES`, one at a time: also that this user, this policy and this cluster can be reached.

    Where they are not given: a laptop needs no server, an evaluation the default ones, and slime starts its own policy server.
    """
    training = use == "train"
    user = user or build(UserConfig, {"kind": "scripted" if use == "laptop" else "llm"})
    policy = policy or build(PolicyConfig, {"kind": "sglang" if use == "eval" else "gold"})
    yield machine.check_python()
    yield machine.check_tau2()
    yield machine.check_tau2_data()
    yield machine.check_ray()
    yield machine.check_job_server()
    yield services.check_cluster(address)
    yield machine.check_module(
        "transformers", needed=policy.kind == "sglang" or training, hint="pip install -e '.[tokenizers]' in the clone of tau2rl"
    )
    yield machine.check_module(
        "torch", needed=training, hint="pip install torch (https://pytorch.org says which build fits your GPU)"
    )
    yield machine.check_gpu(needed=training)
    for name in ("slime", "sglang", "megatron"):
        yield machine.check_module(name, needed=training, hint="it comes with the `slimerl/slime` container")
    yield services.check_keys()
    yield services.check_user(user)
    yield services.check_policy(policy)
    if chat is not None and chat.tokenizer:
        yield services.check_template(chat)
    yield machine.check_cores()
    yield machine.check_memory(FREE_MEMORY_GIB[use])
    yield machine.check_disk(FREE_DISK_GIB[use])
    yield machine.check_shared_memory(training)
    yield machine.check_ports()

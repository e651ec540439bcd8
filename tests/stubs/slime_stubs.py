"""slime's own code without GPUs: its source from a checkout, and stand-ins for the libraries that it cannot have here.

SLIME_CHECKOUT names a checkout of slime at the pinned commit; without it every test that needs one is skipped.
MEGATRON_CHECKOUT names one of Megatron-LM (the commit in slime's docker/Dockerfile, with docker/patch/latest/megatron.patch);
without it, Megatron's options are read by a parser that is made from our contract.

    install(monkeypatch)                 what `import slime...` needs, until the end of the test
    parse(argv, monkeypatch)             slime's real `parse_args` over a command line

What stands in: `sglang` (constants; a parser made from the contract), `sglang_router` (the same), `megatron.core.mpu`
(one rank of one), `megatron.training.arguments` (see above), `wandb` where it is not installed, and under a real
Megatron-LM its Triton kernels.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tau2rl.slime.options import Option, contract

WITHOUT = "needs SLIME_CHECKOUT"  # how a reason to skip begins; `tests/conftest.py` counts them in one line
WITHOUT_MEGATRON = f"{WITHOUT} and MEGATRON_CHECKOUT"
TYPES = {"int": int, "float": float}
DEFAULTS = {"--dp-size": 1, "--pp-size": 1, "--ep-size": 1, "--moe-dp-size": 1}  # of SGLang's, what slime's validation looks at
MEGATRON_DEFAULTS = {"--micro-batch-size": 1, "--context-parallel-size": 1, "--pipeline-model-parallel-size": 1}


def checkout() -> Path:
    """The checkout of slime; the test is skipped without one."""
    named = os.environ.get("SLIME_CHECKOUT")
    if not named:
        pytest.skip(WITHOUT)
    root = Path(named)
    assert (root / "train.py").exists(), f"no checkout of slime in {root}"
    return root


def megatron() -> Path | None:
    """The checkout of Megatron-LM, if there is one."""
    named = os.environ.get("MEGATRON_CHECKOUT")
    return Path(named) if named else None


def install(monkeypatch: pytest.MonkeyPatch, *, real_megatron: bool = False) -> Path:
    """Make `import slime` work until the end of the test; returns the checkout."""
    root = checkout()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("slime", "megatron", "sglang", "sglang_router")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(root))
    modules = {**_sglang(), **({} if importlib.util.find_spec("wandb") else {"wandb": module("wandb")})}
    if real_megatron and (source := megatron()):
        monkeypatch.syspath_prepend(str(source))
        modules |= _kernels()
    else:
        modules |= _megatron()
    for name, made in modules.items():
        monkeypatch.setitem(sys.modules, name, made)
    return root


def parse(argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """What slime's real parser and its validation make of a command line. With MEGATRON_CHECKOUT Megatron's are real too.

    Afterwards slime is there with the stand-ins, whose process groups need no GPU.
    """
    install(monkeypatch, real_megatron=True)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=9, minor=0))  # an H100
    from slime.utils.arguments import parse_args  # pyright: ignore[reportMissingImports] - in the checkout

    args = parse_args()
    if megatron():
        install(monkeypatch)
    return args


def module(name: str, **attributes: Any) -> ModuleType:
    """A module made of the given attributes."""
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    made.__path__ = []
    made.__dict__.update(attributes)
    return made


def add_options(parser: ArgumentParser, source: str, *, strip: str = "", defaults: dict[str, Any] | None = None) -> None:
    """Give a parser the contract's options of one library, each under all its names, without a prefix that slime adds itself."""
    options = {option.names[0]: option for option in contract().options.values() if option.source == source}
    for option in options.values():
        names = [f"--{name.removeprefix(strip)}" if strip else name for name in option.names]
        if not set(names) & set(parser._option_string_actions):
            parser.add_argument(*names, **_keywords(option, names, defaults or {}))


def _keywords(option: Option, names: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    default = next((defaults[name] for name in names if name in defaults), None)
    if option.nargs == 0:
        return {"action": "store_true", "default": default or False}
    keywords: dict[str, Any] = {"nargs": option.nargs, "default": default}
    if option.type in TYPES:
        keywords["type"] = TYPES[option.type]
    if option.choices:
        keywords["choices"] = [TYPES.get(option.type, str)(choice) for choice in option.choices]
    return keywords


def _sglang() -> dict[str, ModuleType]:
    @dataclasses.dataclass
    class ServerArgs:
        model_path: str = ""

        @staticmethod
        def add_cli_args(parser: ArgumentParser) -> None:
            add_options(parser, "sglang", strip="--sglang-", defaults=DEFAULTS)

    class RouterArgs:
        @staticmethod
        def add_cli_args(parser: ArgumentParser, use_router_prefix: bool = False, exclude_host_port: bool = False) -> None:
            add_options(parser, "sglang-router")

    def kill_process_tree(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing was started that could be killed")

    kinds = {f"GPU_MEMORY_TYPE_{kind}": kind.lower() for kind in ("CUDA_GRAPH", "KV_CACHE", "WEIGHTS")}
    return {
        "sglang": module("sglang"),
        "sglang.srt": module("sglang.srt"),
        "sglang.srt.constants": module("sglang.srt.constants", **kinds),
        "sglang.srt.server_args": module("sglang.srt.server_args", ServerArgs=ServerArgs),
        "sglang.srt.utils": module("sglang.srt.utils", kill_process_tree=kill_process_tree),
        "sglang_router": module("sglang_router"),
        "sglang_router.launch_router": module("sglang_router.launch_router", RouterArgs=RouterArgs),
    }


def _megatron() -> dict[str, ModuleType]:
    mpu = module("megatron.core.mpu", is_pipeline_last_stage=lambda *_, **__: True, is_pipeline_first_stage=lambda *_, **__: True)
    for axis in ("data_parallel", "context_parallel", "tensor_model_parallel", "pipeline_model_parallel"):
        for part, value in (("world_size", 1), ("rank", 0), ("group", None)):
            setattr(mpu, f"get_{axis}_{part}", _constant(value))
    mpu.__dict__["get_virtual_pipeline_model_parallel_world_size"] = _constant(None)
    tokenizer = module("megatron.training.tokenizer.tokenizer", _vocab_size_with_padding=lambda size, _: size)
    arguments = module("megatron.training.arguments", parse_args=_parse_megatron, validate_args=lambda args: args)
    return {
        "megatron": module("megatron"),
        "megatron.core": module("megatron.core", mpu=mpu),
        "megatron.core.mpu": mpu,
        "megatron.core.packed_seq_params": module("megatron.core.packed_seq_params", PackedSeqParams=dict),
        "megatron.training": module("megatron.training"),
        "megatron.training.arguments": arguments,
        "megatron.training.global_vars": module("megatron.training.global_vars"),  # tests of the trainer give it `get_args`
        "megatron.training.tokenizer": module("megatron.training.tokenizer"),
        "megatron.training.tokenizer.tokenizer": tokenizer,
        # What slime changes in Megatron when it is imported has nothing to change here.
        "slime.backends.megatron_utils.megatron_patch": module("slime.backends.megatron_utils.megatron_patch"),
    }


def _parse_megatron(extra_args_provider: Any, ignore_unknown_args: bool = False) -> Namespace:
    parser = ArgumentParser(allow_abbrev=False)
    add_options(parser, "megatron", defaults=MEGATRON_DEFAULTS)
    parser = extra_args_provider(parser)
    args, unknown = parser.parse_known_args()
    assert ignore_unknown_args or not unknown
    args.__dict__.setdefault("rope_type", None)
    return args


def _kernels() -> dict[str, ModuleType]:
    """The one module with Triton kernels that Megatron's parser pulls in."""
    name = "megatron.core.transformer.custom_layers.batch_invariant_kernels"
    return {name: module(name, enable_batch_invariant_mode=_constant(None), is_batch_invariant_mode_enabled=_constant(False))}


def _constant(value: Any) -> Any:
    return lambda *_, **__: value


def unread(argv: Sequence[str], args: Namespace) -> list[str]:
    """The options of a command line that no attribute of the parsed arguments belongs to."""
    known, attributes = contract().options, vars(args)
    names = {word: (word, known[word].names[0], *ALIASES.get(word, ())) for word in argv if word.startswith("--")}
    return [word for word, own in names.items() if not any(_attribute(name) in attributes for name in own)]


def _attribute(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


ALIASES = {  # options whose values argparse keeps under a name of another kind
    "--apply-layernorm-1p": ("--layernorm-zero-centered-gamma",),
    "--disable-compute-advantages-and-returns": ("--compute-advantages-and-returns",),
    "--disable-bias-linear": ("--add-bias-linear",),
    "--disable-wandb-random-suffix": ("--wandb-random-suffix",),
    "--norm-epsilon": ("--layernorm-epsilon",),
}

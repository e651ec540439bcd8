"""Every option that slime's `train.py` takes, the check of a command line against them, and what `slime.extra` may add.

slime reads its options with `parse_known_args`, twice, so that it ignores what it does not know: a misspelled option trains for a
day without it, and a value too many is dropped. A wrong type or choice it refuses itself, before it takes a GPU. `options.json`
is made by `scripts/make_slime_contract.py`; the commits it was read at are in it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

from tau2rl.errors import UserError

Nargs = int | str | None  # as argparse means it; None: one value
FILE = "options.json"
ENGINE = ("sglang", "sglang-router", "slime(sglang)")  # sources that are not read where no engine is started
NO_ENGINE = ("--debug-train-only", "--load-debug-rollout-data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: `Option(names=("--lr",), source="megatron", type="float", nargs=None)`."""

    names: tuple[str, ...]
    source: str  # whose it is: "slime", "megatron", "sglang", "sglang-router", ...
    type: str = "text"  # "int", "float", "json" or "text"
    nargs: Nargs = None  # 0: a switch
    choices: tuple[str, ...] = ()  # () = any value
    repeats: bool = False  # whether it may stand twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The options by every name that they have, and what they were read from."""

    versions: Mapping[str, str]  # {"slime": "624b824a898a...", "megatron": ..., "sglang": ...}
    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenOption:
    """One option of a command line with its values: `GivenOption(name="--lr", values=("1e-06",))`."""

    name: str
    values: tuple[str, ...]


@cache
def contract() -> Contract:
    """The contract of the pinned versions."""
    data = json.loads(files("tau2rl.slime").joinpath(FILE).read_text(encoding="utf-8"))
    return read_contract(data)


def read_contract(data: Mapping[str, Any]) -> Contract:
    """The contract in the layout of `options.json`."""
    options: dict[str, Option] = {}
    for entry in data["options"]:
        values = {**entry, "names": tuple(entry["names"]), "choices": tuple(entry.get("choices", ()))}
        option = Option(**values)
        options.update(dict.fromkeys(option.names, option))
    return Contract(versions=data["versions"], options=options)


def split(argv: Sequence[str]) -> list[GivenOption]:
    """The options of a command line. Raises UserError for a value that no option stands before.

    >>> split(["--lr", "1e-06", "--colocate"])
    [Given(name='--lr', values=('1e-06',)), Given(name='--colocate', values=())]
    """
    found: list[GivenOption] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found.append(GivenOption(name=name, values=(value,) if equals else ()))
        elif found:
            found[-1] = GivenOption(name=found[-1].name, values=(*found[-1].values, word))
        else:
            raise UserError(f"`{word}` is a value without an option", hint="options of slime begin with two dashes")
    return found


def check(argv: Sequence[str], known: Contract | None = None) -> None:
    """Refuse a command line that slime would misread. Raises UserError that names the option and the nearest."""
    known = known or contract()
    given = split(argv)
    names = [item.name for item in given]
    for item in given:
        option = lookup(item.name, known)
        _check_count(item, option)
        if names.count(item.name) > 1 and not option.repeats:
            raise UserError(f"`{item.name}` is given twice, and slime reads the last one alone")
        if option.source in ENGINE and (off := next((name for name in NO_ENGINE if name in names), None)):
            raise UserError(f"slime does not read `{item.name}` beside `{off}`", hint="no engine is started there: leave it out")


def lookup(name: str, known: Contract | None = None) -> Option:
    """The option of a name. Raises UserError with the nearest one."""
    options = (known or contract()).options
    if name in options:
        return options[name]
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    raise UserError(f"slime has no option `{name}`", hint=f"did you mean `{near[0]}`?" if near else "names are in slime's docs")


def _check_count(given: GivenOption, option: Option) -> None:
    count, name = len(given.values), given.name
    match option.nargs:
        case None:
            fits, wanted = count == 1, "one value"
        case int():
            fits, wanted = count == option.nargs, "no value" if option.nargs == 0 else f"{option.nargs} values"
        case "+":
            fits, wanted = count >= 1, "one value or more"
        case "?":
            fits, wanted = count <= 1, "at most one value"
        case _:
            fits, wanted = True, ""
    if not fits:
        raise UserError(f"`{name}` takes {wanted}, not `{' '.join(given.values)}`")


# What `slime.extra` may not have: slime would take it without a word, and train something else than the settings say.
FORBIDDEN = {
    name: reason
    for reason, names in {
        "episodes are graded one by one, by tau2, and scored by `reward`": (
            "--group-rm", "--custom-rm-path", "--rm-type", "--reward-key", "--eval-reward-key",
        ),
        "advantages are made by the `algo` settings, on the way that it replaces": (
            "--normalize-advantages", "--disable-rewards-normalization", "--disable-grpo-std-normalization",
            "--custom-convert-samples-to-train-data-path", "--custom-advantage-function-path",
            "--disable-compute-advantages-and-returns",
        ),
        "turn-level advantages travel in the field that distillation uses": ("--use-opd",),
        "no estimator of ours reads a KL penalty on rewards; `algo.kl_coef` is the weight of KL in the loss": ("--kl-coef",),
        "`algo` says what the loss is": (
            "--use-kl-loss", "--kl-loss-coef", "--kl-loss-type", "--calculate-per-token-loss", "--loss-type",
            "--custom-loss-function-path", "--custom-pg-loss-reducer-function-path",
        ),
        "`algo.correction` says what becomes of the sampler's log-probabilities": (
            "--use-rollout-logprobs", "--use-tis", "--tis-clip", "--tis-clip-low", "--custom-tis-function-path",
        ),
        "our policy does not ask engines for routed experts, and the models that train here are dense": (
            "--use-routing-replay", "--use-rollout-routing-replay",
        ),
        "slime's own rollout plays our episodes, and tells our data source how each of them ended": (
            "--rollout-function-path", "--eval-function-path", "--buffer-filter-path",
        ),
        "a conversation that was cut off cannot go on in a fresh environment": ("--partial-rollout",),
        "slime would play and train nothing, or train on what was played before": (
            "--debug-rollout-only", "--debug-train-only", "--load-debug-rollout-data",
        ),
        "`val` says which tasks validation has, and it counts successes": ("--eval-config",),
        "`limits.context_tokens` is the longest conversation, in training and validation": (
            "--rollout-max-prompt-len", "--eval-max-context-len", "--eval-max-prompt-len",
        ),
        "`train` says how long training goes on and in how many optimizer steps": ("--num-epoch", "--num-steps-per-rollout"),
        "it would set the trainer's options behind those of `train` and `algo`": ("--megatron-config-path",),
        "a run goes on behind its own last save, with its own optimizer": (
            "--start-rollout-id", "--finetune", "--no-load-optim", "--ckpt-step",
        ),
        "slime's rollouts and our choice of tasks need it": ("--disable-rollout-global-dataset",),
        "our chat codec makes the tokens, and says where a turn ends": (
            "--rollout-stop", "--rollout-stop-token-ids", "--rollout-skip-special-tokens", "--apply-chat-template",
        ),
        "episodes to learn from are sampled from the whole distribution": ("--rollout-top-p", "--rollout-top-k"),
        "it would be shown to everyone who sees the run; WANDB_API_KEY is read from the environment": ("--wandb-key",),
    }.items()
    for name in names
}  # fmt: skip


def with_extra(defaults: Sequence[str], extra: Mapping[str, Any], made: Sequence[str]) -> list[str]:
    """The defaults and the options of `slime.extra`, which win over them. Raises UserError for what `extra` may not have.

    `made` are the options that settings have become; `false` takes a switch of the defaults away.

    >>> with_extra(["--balance-data"], {"balance-data": False, "log_multi_turn": True}, made=["--lr", "1e-06"])
    ['--log-multi-turn']
    """
    taken = {given.name: given for given in split(made)}
    own = {given.name: given for given in split(defaults)}
    for key, value in extra.items():
        name = f"--{key.lstrip('-').replace('_', '-')}"
        lookup(name)
        if name in FORBIDDEN:
            raise UserError(f"slime.extra cannot have `{name}`: {FORBIDDEN[name]}")
        if name in taken:
            raise UserError(
                f"slime.extra has `{name}`, which is made from the other settings", hint="`--dry-run` shows what from"
            )
        if value is False:
            own.pop(name, None)
        elif value is not None:
            own[name] = GivenOption(name=name, values=_words(value))
    return [word for given in own.values() for word in (given.name, *given.values)]


def _words(value: Any) -> tuple[str, ...]:
    """A value of YAML as words of a command line: `true` is a switch, a list is several, a mapping is JSON."""
    match value:
        case True:
            return ()
        case dict():
            return (json.dumps(value),)
        case list():
            return tuple(str(item) for item in cast("list[Any]", value))
        case _:
            return (str(value),)

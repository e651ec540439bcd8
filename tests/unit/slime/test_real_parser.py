"""slime's own code over every config of `configs/`: its parser reads each option, its placement accepts each layout.

Runs where SLIME_CHECKOUT names a checkout of slime at the pinned commit; skipped elsewhere. Real here: slime's parsers with
their validation, among it the model's shape against `config.json`; `SglangConfig`; the placement of `start_rollout_servers`. With
MEGATRON_CHECKOUT also Megatron's parser and validation. What stands in for the rest: `tests/stubs/slime_stubs.py`.

- no option of a config is left unread, and the values arrive as they were written;
- our settings arrive as `args.tau2rl` and are the config again;
- the GPUs that train, serve the policy and serve the user simulator are those that our layout names;
- Megatron takes the schedule of a training up again that is extended (`train.steps`), and refuses it without our option;
- the list of slime's own options is the one that its source has.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.slime.argv import build_argv
from tau2rl.slime.layout import POLICY, ClusterLayout, layout_of
from tau2rl.slime.model import QWEN3_5_SPEC, read_shape
from tau2rl.slime.options import FILE, contract, lookup, split
from tau2rl.slime.run_context import SlimeRun, absolute, run_context, write_files
from tests.slime_configs import CONFIGS, QWEN3_5, load_slime, model_of
from tests.stubs.slime_stubs import WITHOUT_MEGATRON, checkout, install, megatron, parse, unread

GRPO = [name for name in CONFIGS if "grpo" in name]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The directory of a model; `prepared` says of what shape."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def prepared(name: str, checkpoint: Path, *sets: str) -> tuple[SftConfig | GrpoConfig, SlimeRun, list[str]]:
    """A config whose checkpoints are there, its files written, and its command line."""
    if not (checkpoint / "config.json").exists():
        (checkpoint / "config.json").write_text(json.dumps(model_of(name)))
    config = load_slime(name, f"model.init={checkpoint}", *sets)
    if config.slime.user.gpus:
        config = load_slime(name, f"model.init={checkpoint}", f"slime.user.checkpoint={checkpoint}", *sets)
    config = absolute(config)
    run = SlimeRun(folder=checkpoint.parent / "run", shape=read_shape(checkpoint))
    write_files(config, run)
    return config, run, build_argv(config, run)


@pytest.mark.parametrize("name", CONFIGS)
def test_slime_reads_every_option(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run, argv = prepared(name, checkpoint)
    args = parse(argv, monkeypatch)
    assert unread(argv, args) == []
    assert wrong_values(argv, args) == []
    back = run_context(args)
    assert (back.config, back.folder) == (config, run.folder)


def wrong_values(argv: Sequence[str], args: Namespace) -> list[str]:
    """Options of one number whose value is another one after parsing."""
    wrong: list[str] = []
    for given in split(argv):
        option = lookup(given.name)
        read = getattr(args, given.name[2:].replace("-", "_"), None)
        if (
            option.nargs is None
            and option.type in ("int", "float")
            and read is not None
            and float(read) != float(given.values[0])
        ):
            wrong.append(f"{given.name}: {given.values[0]} became {read}")
    return wrong


MORE = [
    "algo.estimator=mt_gtpo",
    "algo.ratio=sequence",
    "algo.loss_aggregation=constant",
    "algo.dual_clip=3.0 && train.num_minibatches=2",
    "algo.kl_coef=0.01",
    "algo.correction=mis",
    "algo.correction_level=geometric",
    "algo.veto=1e-4",
    "train.num_minibatches=2",
    "slime.overlap=true",
    "slime.dump=true",
    "slime.saves=last",
    "slime.log_probs_chunk=1024",
    "tracking.wandb=offline",
    "slime.extra={optimizer-cpu-offload: true, overlap-cpu-optimizer-d2h-h2d: true, use-precision-aware-optimizer: true}",
]


@pytest.mark.parametrize("size", QWEN3_5)
def test_slime_reads_the_shape_of_each_qwen3_5(size: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / "config.json").write_text(json.dumps(QWEN3_5[size]))
    _, run, argv = prepared("8xh100/grpo-qwen3.5-4b.yaml", checkpoint)
    args = parse(argv, monkeypatch)  # with its own check of each size against `config.json`
    assert (unread(argv, args), wrong_values(argv, args)) == ([], [])
    assert run.shape is not None
    assert (args.num_layers, args.rotary_percent, args.spec) == (run.shape.layers, 0.25, list(QWEN3_5_SPEC))
    assert (args.attention_output_gate, args.use_gated_attention, args.position_embedding_type) == (True, True, "rope")


@pytest.mark.parametrize("setting", MORE)
def test_slime_reads_the_options_of_other_settings(setting: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, argv = prepared("8xh100/grpo.yaml", checkpoint, *setting.split(" && "))
    args = parse(argv, monkeypatch)
    assert (unread(argv, args), wrong_values(argv, args)) == ([], [])


@pytest.mark.parametrize("setting", MORE)
def test_dotted_paths_into_slime_lead_somewhere(setting: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, argv = prepared("8xh100/grpo.yaml", checkpoint, *setting.split(" && "))
    install(monkeypatch)
    paths = [value for given in split(argv) if given.name.endswith("-path") for value in given.values]
    theirs = [path for path in paths if path.startswith(("slime.", "examples."))]
    assert all(callable(getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])) for path in theirs)


@pytest.mark.parametrize("name", GRPO)
def test_slime_places_the_gpus_as_the_layout_says(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, argv = prepared(name, checkpoint)
    args = parse(argv, monkeypatch)
    layout = layout_of(config)
    placement = importlib.import_module("slime.ray.placement_group")
    total, first_rollout = placement._get_placement_group_layout(args)
    assert (total, first_rollout) == (layout.total, 0 if layout.colocate else layout.train)
    servers = started(args, monkeypatch)
    assert {name: gpus for name, (gpus, _) in servers.items()} == expected(config, layout)
    updated = [name for name, (_, updates) in servers.items() if updates]
    assert updated == [next(iter(servers))]  # the first model is the trained one


def started(args: Namespace, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[range, bool]]:
    """The models that slime would start, each with its GPUs and whether it is sent weights."""
    rollout: ModuleType = importlib.import_module("slime.ray.rollout")
    monkeypatch.setattr(rollout, "_start_router", lambda *_, **__: ("127.0.0.1", 1))
    monkeypatch.setattr(rollout.ServerGroup, "start_engines", lambda _, cursors: ([], cursors))
    servers, _ = rollout.start_rollout_servers(args, None)
    offset = rollout._compute_rollout_offset(args)
    groups = {name: server.server_groups[0] for name, server in servers.items()}
    return {name: (gpus_of(group, offset), bool(servers[name].update_weights)) for name, group in groups.items()}


def gpus_of(group: Any, offset: int) -> range:
    first = offset + group.gpu_offset
    return range(first, first + len(group.all_engines) * group.num_gpus_per_engine)


def expected(config: SftConfig | GrpoConfig, layout: ClusterLayout) -> dict[str, range]:
    first = 0 if layout.colocate else layout.train
    policy = range(first, first + layout.policy)
    if not layout.user:
        return {"default": policy}
    return {POLICY: policy, config.slime.user.name: range(layout.total - layout.user, layout.total)}


def test_a_user_simulator_beside_the_trainer_is_never_put_to_sleep(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, argv = prepared("8xh100/grpo-colocate.yaml", checkpoint)
    args = parse(argv, monkeypatch)
    rollout = importlib.import_module("slime.ray.rollout")
    monkeypatch.setattr(rollout, "_start_router", lambda *_, **__: ("127.0.0.1", 1))
    monkeypatch.setattr(rollout.ServerGroup, "start_engines", lambda _, cursors: ([], cursors))
    servers, _ = rollout.start_rollout_servers(args, None)
    assert [servers[name].server_groups[0].needs_offload for name in (POLICY, "user_sim")] == [True, False]


def test_a_longer_training_takes_the_saved_schedule_up(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not megatron():
        pytest.skip(WITHOUT_MEGATRON)
    parsed = [parse(prepared("8xh100/sft.yaml", checkpoint, f"train.steps={n}")[2], monkeypatch) for n in (40, 80)]
    install(monkeypatch, real_megatron=True)
    kind = importlib.import_module("megatron.core.optimizer_param_scheduler").OptimizerParamScheduler

    def schedule(args: Namespace, *, override: bool) -> Any:
        """As slime makes it, backends/megatron_utils/model.py:203-232."""
        steps = args.num_rollout * args.rollout_batch_size * args.n_samples_per_prompt
        group = {"lr": 0.0, "weight_decay": 0.0}
        return kind(
            SimpleNamespace(param_groups=[group]), args.lr_warmup_init, args.lr, args.min_lr,
            args.lr_warmup_iters * args.global_batch_size, steps, args.lr_decay_style, args.weight_decay, args.weight_decay,
            steps, args.weight_decay_incr_style, args.use_checkpoint_opt_param_scheduler, override,
        )  # fmt: skip

    short, long = parsed
    assert short.override_opt_param_scheduler is True
    done = schedule(short, override=True)
    done.step(increment=40 * short.global_batch_size)
    with pytest.raises(AssertionError, match="total number of iterations do not match"):
        schedule(long, override=False).load_state_dict(done.state_dict())
    on = schedule(long, override=long.override_opt_param_scheduler)
    on.load_state_dict(done.state_dict())
    whole = schedule(long, override=True)
    whole.step(increment=40 * long.global_batch_size)
    assert on.num_steps == 40 * long.global_batch_size
    assert on.optimizer.param_groups == whole.optimizer.param_groups  # the learning rate of step 40 of 80


def test_the_contract_has_the_options_of_slimes_source() -> None:
    path = ROOT / "scripts" / "make_slime_contract.py"
    spec = importlib.util.spec_from_file_location("make_slime_contract", path)
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    known = json.loads((ROOT / "tau2rl" / "slime" / FILE).read_text("utf-8"))
    made = maker.from_checkout(checkout(), known)

    def by_name(options: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {option["names"][0]: option for option in options}

    assert by_name(made["options"]) == by_name(known["options"])
    assert sum(option.source.startswith("slime") for option in contract().options.values()) > 200

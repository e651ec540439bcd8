"""Pinned here:

- a setting that does not exist is refused, with the nearest that does as a hint, at any depth;
- `--set a.b=c` reads a value as its setting takes it, text as it was typed, and what it cannot place is refused;
- an option of the command line wins over `--set`, which wins over the file; an option not given changes nothing;
- a config never changes once it is made, and survives the way to JSON and back;
- the combinations that cannot work are refused when the config is made, not after an hour;
- every file in `configs/` loads;
- the splits that are learned from and validated on fit the domains without a word, and share no task;
- a key where the name of its variable should be, or a password in a URL, is refused, and no message repeats it;
- a file that others can read is not accepted for secrets, and no secret is ever shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from tau2rl import settings
from tau2rl.config import (
    STAGES,
    EvalConfig,
    GrpoConfig,
    RolloutConfig,
    TasksConfig,
    UserConfig,
    build,
    dump,
    flatten,
    known_names,
    load_config,
    put,
    read_config_file,
)
from tau2rl.config.base import value_of
from tau2rl.config.reading import read_text
from tau2rl.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPTED = {"policy": {"kind": "gold"}}


def written(folder: Path, text: str) -> Path:
    """A config file with this text."""
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# --- text that nothing can take ---


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("name", ["name", "output", "tasks.ids", "chat.tokenizer"])
def test_text_that_no_file_or_process_can_take_is_refused(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^setting `{name}` "):
        build(EvalConfig, SCRIPTED | put_in({}, name, [text] if name == "tasks.ids" else text))


def put_in(values: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    """The values with one more, by its dotted name."""
    put(values, name, value)
    return values


# --- unknown settings ---


@pytest.mark.parametrize(
    ("values", "named", "near"),
    [
        ({"rollout": {"num_sample": 8}}, "rollout.num_sample", "rollout.num_samples"),
        (
            {"policy": {"kind": "gold", "sampling": {"temprature": 0}}},
            "policy.sampling.temprature",
            "policy.sampling.temperature",
        ),
        ({"sead": 1}, "sead", "seed"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_one(values: dict[str, object], named: str, near: str) -> None:
    with pytest.raises(UserError) as refused:
        build(EvalConfig, SCRIPTED | values)
    assert refused.value.message == f"no such setting `{named}`"
    assert refused.value.hint == f"did you mean `{near}`?"


def test_a_setting_of_other_stages_is_named_with_them() -> None:
    with pytest.raises(UserError) as refused:
        build(EvalConfig, SCRIPTED | {"tracking": {"wandb": "online"}})
    assert refused.value.hint == "`tracking` is a setting of sft, grpo"


def test_a_setting_like_no_other_is_pointed_to_the_list() -> None:
    with pytest.raises(UserError) as refused:
        build(EvalConfig, SCRIPTED | {"zzzzzzzz": 1})
    assert refused.value.message == "no such setting `zzzzzzzz`"
    assert refused.value.hint == "`tau2rl config show` lists every setting"


def test_every_mistake_of_a_file_is_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        build(EvalConfig, SCRIPTED | {"sead": 1, "rollout": {"concurrency": 0}, "policy": {"kind": "gould"}})
    assert "`sead`" in refused.value.message
    assert "`rollout.concurrency` = 0: input should be greater than or equal to 1" in refused.value.message
    assert '`policy.kind` = "gould"' in refused.value.message


def test_every_name_that_a_hint_can_show_can_be_set() -> None:
    names = known_names(EvalConfig)
    assert {"seed", "tasks", "tasks.split", "policy.sampling.temperature"} <= set(names)
    assert set(flatten(dump(build(EvalConfig, SCRIPTED)))) <= set(names)


# --- values from the command line ---


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (int | None, "null", None),
        (int, "two", "two"),
        (float, "1e-6", 1e-6),
        (float, "0.5", 0.5),
        (bool, "on", True),
        (str, "1e-5", "1e-5"),
        (str, "010", "010"),
        (str, "null", "null"),
        (str | None, "null", None),
        (str, "a: b # c", "a: b # c"),
        (str, "true", "true"),
        (str, "[x", "[x"),
        (str, "'null'", "null"),
        (Path | None, "007", "007"),
        (tuple[str, ...], "[retail, 010]", ["retail", "010"]),
        (tuple[str, ...], "a, 1e5", ["a", "1e5"]),
        (tuple[str, ...], "[]", []),
        (tuple[float, float], "0.9,0.95", [0.9, 0.95]),
        (dict[str, Any], "a=1", {"a": 1}),
        (dict[str, Any], "{a: [x, 2]}", {"a": ["x", 2]}),
        (Any, "3", 3),
        (Any, "1e-6", 1e-6),
        (Any, "true", True),
        (Any, "010", "010"),
        (Any, "1:30", "1:30"),
        (Any, "2024-01-01", "2024-01-01"),
        (Any, "a: b: c", "a: b: c"),
        (Any, "", None),
        (Any, "[retail, 3]", ["retail", 3]),
    ],
)
def test_a_value_is_read_as_its_setting_takes_it(annotation: Any, text: str, value: object) -> None:
    read = read_text([text], annotation)
    assert (read, type(read)) == (value, type(value))


def test_set_reaches_into_sections() -> None:
    config = load_config(
        EvalConfig, None, ["chat.tokenizer=bytes", "tasks.domains=[mock]", "policy.sampling.temperature=0", "reward.alpha=1e-1"]
    )
    assert (config.tasks.domains, config.policy.sampling.temperature, config.reward.alpha) == (("mock",), 0.0, 0.1)


def test_set_keeps_an_equals_sign_in_the_value() -> None:
    assert load_config(EvalConfig, None, ["chat.tokenizer=bytes", "policy.url=http://h/?a=b"]).policy.url == "http://h/?a=b"


def test_set_without_a_value_shows_how_it_is_written() -> None:
    with pytest.raises(UserError) as refused:
        load_config(EvalConfig, None, ["rollout.num_samples"])
    assert refused.value.message == "cannot read `--set rollout.num_samples`"
    assert "NAME=VALUE" in refused.value.hint


def test_set_cannot_go_below_a_value() -> None:
    with pytest.raises(UserError, match=r"`seed` in `seed\.x` is a value, not a section"):
        load_config(EvalConfig, None, ["seed=1", "seed.x=2"])


# --- files ---


def test_an_option_wins_over_set_and_set_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "policy: {kind: gold}\nseed: 1\nname: file\nrollout: {num_samples: 1, concurrency: 1, retries: 1}\n")
    config = load_config(
        EvalConfig,
        file,
        ["seed=2", "rollout.num_samples=2", "rollout.concurrency=2"],
        {"rollout.num_samples": 3, "rollout.concurrency": None, "name": None},
    )
    assert config.name == "file"
    assert config.seed == 2
    assert config.rollout == RolloutConfig(num_samples=3, concurrency=2, retries=1)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(TasksConfig, written(tmp_path, "# nothing yet\n")) == TasksConfig()


@pytest.mark.parametrize(
    ("text", "told"), [("a: [1", "cannot read config file"), ("- a\n- b\n", "not a mapping"), ("just words", "not a mapping")]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError, match=told) as refused:
        read_config_file(file)
    assert str(file) in refused.value.message


def test_a_file_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for file in (binary, tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(UserError) as refused:
            read_config_file(file)
        assert f"`{file}`" in refused.value.message


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read config file"):
        read_config_file(written(tmp_path, "name: !!python/object/apply:os.getcwd []"))


def shipped() -> list[Path]:
    """Every ready-made config."""
    return sorted(file for suffix in ("yaml", "yml", "json") for file in (ROOT / "configs").rglob(f"*.{suffix}"))


def test_there_are_ready_made_configs() -> None:
    names = {file.relative_to(ROOT).as_posix() for file in shipped()}
    assert {"configs/eval/gold.yaml", "configs/eval/do-nothing.yaml", "configs/eval/always-transfer.yaml"} <= names


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_ready_made_config_loads(file: Path) -> None:
    stage = read_config_file(file).get("stage", file.parent.name)
    config = load_config(STAGES[stage], file)
    assert config == build(STAGES[stage], json.loads(json.dumps(dump(config))))


# --- the config itself ---


def test_a_config_cannot_be_changed() -> None:
    config = build(EvalConfig, SCRIPTED)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.policy.sampling.temperature = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "needs chat.tokenizer"),
        ({"chat": {"protocol": "transcript"}}, "no tokens for policy.kind `sglang`"),
        ({"policy": {"kind": "api", "model": "gpt-4.1"}}, "set chat.protocol to `transcript`"),
        ({"policy": {"kind": "api"}, "chat": {"protocol": "transcript"}}, "needs policy.model"),
        ({"policy": {"kind": "gold"}, "chat": {"policy_text": "compressed"}}, "chat.policy_text has no effect"),
        (
            {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript", "cookbook_prompt": "a.py"}},
            "chat.cookbook_prompt has no effect while chat.protocol is `transcript`",
        ),
    ],
)
def test_a_policy_and_a_protocol_that_do_not_fit_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        build(EvalConfig, values)
    assert refused.value.hint


def test_the_cookbooks_own_settings_stand_under_its_protocol() -> None:
    chat = {"protocol": "cookbook", "tokenizer": "bytes", "policy_text": "compressed", "cookbook_prompt": "a.py"}
    assert build(EvalConfig, {"chat": chat}).chat.policy_text == "compressed"


@pytest.mark.parametrize("name", ["user.api_key_env", "policy.api_key_env"])
@pytest.mark.parametrize("key", ["sk-live-PLANTED", "PLANTED KEY", "1PLANTED", "[PLANTED]", "PLANTED="])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(name: str, key: str) -> None:
    api = ["policy.kind=api", "policy.model=m", "chat.protocol=transcript"]
    with pytest.raises(UserError, match=f"`{name}`: ") as refused:
        load_config(EvalConfig, None, [*api, f"{name}={key}"])
    assert "PLANTED" not in str(refused.value)
    assert load_config(EvalConfig, None, [*api, f"{name}=MY_KEY_2"]).model_dump()[name.partition(".")[0]]["api_key_env"]


@pytest.mark.parametrize("name", ["policy.url", "policy.api_base", "user.api_base", "launch.address"])
@pytest.mark.parametrize("url", ["http://me:PLANTED@host:1/v1", "https://PLANTED@host", "me:PLANTED@host:1", "//me:PLANTED@host"])
def test_a_password_in_a_url_is_refused_and_not_repeated(name: str, url: str) -> None:
    with pytest.raises(UserError, match=f"`{name}`: a URL is stored and shown") as refused:
        load_config(EvalConfig, None, ["policy.kind=gold", f"{name}={url}"])
    assert "PLANTED" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://h:1/v1", "http://h/a@b", "http://h?mail=a@b", "http://h/?next=http://b@c", "auto", "h:6379"]
)
def test_an_at_sign_behind_the_host_is_no_password(url: str) -> None:
    config = load_config(EvalConfig, None, ["chat.tokenizer=bytes", f"policy.url={url}", f"launch.address={url}"])
    assert (config.policy.url, config.launch.address) == (url, url)


def test_python_does_not_repeat_a_key_either() -> None:
    with pytest.raises(ValidationError) as refused:
        UserConfig(api_key_env="sk-live-PLANTED")
    assert "PLANTED" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["rollout.num_samples", "rollout.concurrency", "limits.max_steps", "user.timeout_seconds", "tasks.limit"]
)
def test_zero_is_no_count_and_no_deadline(name: str) -> None:
    with pytest.raises(UserError, match=name):
        load_config(EvalConfig, None, ["policy.kind=gold", f"{name}=0"])


# --- defaults that fit the domains ---

START = ["model.init=start"]


@pytest.mark.parametrize(
    ("sets", "tasks", "val"),
    [
        (["tasks.domains=[retail]"], (("retail",), "train-learn"), (("retail",), "train-select")),
        ([], (("airline", "retail", "telecom"), "train-learn"), (("airline", "retail", "telecom"), "train-select")),
        (["tasks.domains=[mock]"], (("mock",), "synth-train"), (("mock",), "synth-select")),
        (["tasks.domains=[retail]", "val.domains=[mock]"], (("retail",), "train"), (("mock",), "synth-select")),
    ],
)
def test_validation_fits_the_domains_without_a_word(sets: list[str], tasks: object, val: object) -> None:
    config = load_config(GrpoConfig, None, [*START, "train.val_every=5", *sets])
    assert (config.tasks.domains, config.tasks.split) == tasks
    assert (config.val.domains, config.val.split) == val
    assert build(GrpoConfig, dump(config)) == config


@pytest.mark.parametrize("stage", ["seed", "grpo"])
def test_the_split_to_learn_from_fits_the_domains(stage: str) -> None:
    start = START if stage == "grpo" else []
    assert value_of(load_config(STAGES[stage], None, start), "tasks.split") == "train"
    assert value_of(load_config(STAGES[stage], None, [*start, "tasks.domains=[mock]"]), "tasks.split") == "synth-train"
    assert (
        value_of(load_config(STAGES[stage], None, [*start, "tasks.domains=[mock]", "tasks.split=base"]), "tasks.split") == "base"
    )


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["tasks.split=train"], "holds the tasks of val.split `train-select`"),
        (["val.split=test"], "holds test tasks"),
        (["tasks.domains=[mock]", "val.split=synth-test"], "holds test tasks"),
    ],
)
def test_validation_on_tasks_that_are_trained_or_tested_on_is_refused(sets: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_config(GrpoConfig, None, [*START, "train.val_every=5", *sets])


keys = st.text("abcdef_", min_size=1, max_size=4)
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
trees = st.dictionaries(
    keys, st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=8)
)


@given(trees)
def test_put_undoes_flatten(tree: dict[str, object]) -> None:
    again: dict[str, object] = {}
    for name, value in flatten(tree).items():
        put(again, name, value)
    assert again == tree


# --- settings: secrets and machine paths ---


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A secrets file that only its owner can read, and that the environment names."""
    file = tmp_path / "secrets"
    file.write_text("# keys\n\nOPENAI_API_KEY = 'from-the-file'\nHF_TOKEN=a=b\nnot a pair\n", encoding="utf-8")
    file.chmod(0o600)
    monkeypatch.setenv(settings.SECRETS_FILE, str(file))
    return file


def test_a_secret_comes_from_the_file_unless_the_environment_has_it(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.secret("OPENAI_API_KEY") == "from-the-file"
    assert settings.secret("HF_TOKEN") == "a=b"
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    assert settings.secret("OPENAI_API_KEY") == "from-the-environment"
    assert settings.secret("ANTHROPIC_API_KEY") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_a_secrets_file_that_others_can_read_is_refused(secrets: Path, mode: int) -> None:
    secrets.chmod(mode)
    with pytest.raises(UserError) as refused:
        settings.secret("OPENAI_API_KEY")
    assert refused.value.hint == f"chmod 600 {secrets}"
    assert "from-the-file" not in str(refused.value)


def test_a_secrets_file_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.SECRETS_FILE, str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot read the secrets file"):
        settings.secret("OPENAI_API_KEY")


def test_credentials_are_those_of_the_environment_and_of_the_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "mine")
    monkeypatch.setenv("LAB_GATEWAY", "mine too")
    assert settings.credentials().keys() >= {"OPENAI_API_KEY", "HF_TOKEN", "GROQ_API_KEY"}
    assert "LAB_GATEWAY" not in settings.credentials()
    assert settings.credentials(["LAB_GATEWAY"])["LAB_GATEWAY"] == "mine too"


def test_loading_secrets_does_not_touch_what_is_set(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    monkeypatch.setenv("HF_TOKEN", "to be put back")
    monkeypatch.delenv("HF_TOKEN")
    settings.load_secrets()
    environment = settings.child_environment()
    assert (environment["OPENAI_API_KEY"], environment["HF_TOKEN"]) == ("mine", "a=b")


def test_machine_paths_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings.output_root() == Path("outputs")
    assert settings.ray_address() is None
    monkeypatch.setenv(settings.OUTPUT_ROOT, str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert settings.output_root() == tmp_path
    assert settings.ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert settings.ray_address() == "http://head:8265"


def test_a_child_inherits_the_environment_and_what_is_added_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAU2RL_OUTPUTS", "parent")
    assert settings.child_environment()["TAU2RL_OUTPUTS"] == "parent"
    assert settings.child_environment({"TAU2RL_OUTPUTS": "child"})["TAU2RL_OUTPUTS"] == "child"


def test_a_number_is_a_task_id_and_infinity_is_no_deadline() -> None:
    base = ["policy.kind=gold", "chat.protocol=transcript"]
    assert load_config(EvalConfig, None, [*base, "tasks.ids=[17]", "name=5"]).tasks.ids == ("17",)
    with pytest.raises(UserError, match=r"user\.timeout_seconds"):
        load_config(EvalConfig, None, [*base, "user.timeout_seconds=inf"])

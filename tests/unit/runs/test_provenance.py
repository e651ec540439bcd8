"""What a run stood on.

- a digest does not depend on the order of keys, and changes with any value
- versions are read without importing the libraries
- the commit is this checkout's, never that of a repository around an installed package
- identity and what is merely recorded are apart: a change of route leaves the digest, a change of task does not
- differences are named by dotted key
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tau2rl
from tau2rl.config import EvalConfig, build
from tau2rl.runs import provenance


def config(**changes: object) -> EvalConfig:
    gold = {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}, "user": {"kind": "scripted"}}
    return build(EvalConfig, {**gold, **changes})


def environment(**changes: object) -> dict[str, object]:
    return provenance.environment(config(**changes), {"tau2": {"version": "26.3"}}, {"tokenizer": None})


def test_a_digest_is_known() -> None:
    # printf '{"a":[1,"\\u00fc"],"b":null}' | sha256sum
    assert provenance.digest({"b": None, "a": (1, "ü")}) == "eb7f3d221da61647"


ROUTE = [
    {"name": "x"},
    {"launch": {"inline": True}},
    {"resume": True},
    {"local": {"threads": 1}},
    {"rollout": {"concurrency": 1}},
]
MEASURED = [{"seed": 1}, {"tasks": {"domains": ["mock"]}}, {"rollout": {"num_samples": 1}}, {"policy": {"kind": "do-nothing"}}]


@pytest.mark.parametrize("changes", ROUTE)
def test_the_route_is_not_identity(changes: dict[str, object]) -> None:
    assert environment(**changes)["digest"] == environment()["digest"]


@pytest.mark.parametrize("changes", MEASURED)
def test_what_is_measured_is_identity(changes: dict[str, object]) -> None:
    assert environment(**changes)["digest"] != environment()["digest"]


def test_the_two_halves_hold_what_they_should() -> None:
    made = provenance.environment(config(), {"tau2": 1}, {"judge": None}, recorded={"engine": "sglang 0.5"})
    assert set(made) == {"schema", "digest", "identity", "recorded", "changes"}
    assert set(made["identity"]) == {"settings", "bench", "judge"}
    assert made["recorded"]["engine"] == "sglang 0.5"
    assert made["recorded"]["settings"]["rollout.concurrency"] == 32
    assert made["recorded"]["libraries"]["pydantic"].startswith("2.")


def test_versions_are_read_without_importing() -> None:
    code = (
        "import sys; from tau2rl.runs.provenance import library_versions as v; v();"
        "print([m for m in ('ray', 'torch', 'tau2', 'litellm', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert provenance.library_versions(["no-such-distribution", "pytest"]) == {"pytest": pytest.__version__}


def test_the_commit_is_that_of_our_checkout() -> None:
    root = Path(tau2rl.__file__).parents[1]
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    found = provenance.source_revision()
    assert (found or {}).get("commit", "") == (head if (root / ".git").exists() else "")


def test_an_installed_package_does_not_name_the_repository_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    package = tmp_path / "venv" / "site-packages" / "tau2rl" / "__init__.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr(tau2rl, "__file__", str(package))
    assert provenance.source_revision() is None


def test_an_edit_makes_the_source_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tau2rl" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(tau2rl, "__file__", str(package))
    clean = provenance.source_revision()
    package.write_text("x = 1\n")
    dirty = provenance.source_revision()
    assert clean is not None
    assert dirty == {"commit": clean["commit"], "dirty": True}
    assert clean["dirty"] is False


def test_differences_are_sorted_dotted_keys() -> None:
    a = {"bench": {"data": {"retail": "1"}}, "seed": 1, "same": [1]}
    b = {"bench": {"data": {"airline": "2", "retail": "1"}}, "seed": 2, "same": [1]}
    assert provenance.differences(a, b) == [("bench.data.airline", None, "2"), ("seed", 1, 2)]

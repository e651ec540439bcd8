"""`scripts/start_user_sim.sh` and `start_policy.sh`, with a program in place of SGLang; pinned here:

- a server is started with the flags that its use needs, and the script waits until it answers;
- it is ended by its own number, and a number that belongs to another program is not touched;
- a server that dies at its start is said to have died, with its last words; one that hangs is ended;
- a second start is refused while the first one runs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """#!{python}
import http.server, json, os, sys, time
if sys.argv[1:3] != ["-m", "sglang.launch_server"]:  # the script's own look at the server's health
    os.execv("{python}", ["{python}", *sys.argv[1:]])
flag = lambda name: sys.argv[sys.argv.index(name) + 1]
json.dump({{"argv": sys.argv[3:], "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}}, open("seen.json", "w"))
if "--die" in sys.argv:
    sys.exit("out of memory")
if "--hang" in sys.argv:
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(flag("--port"))), Handler).serve_forever()
"""


class Place:
    """A copy of the scripts, and an interpreter that stands in for SGLang's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        for name in ("_env.sh", "_serve.sh", "start_user_sim.sh", "start_policy.sh"):
            shutil.copy2(ROOT / "scripts" / name, folder / "scripts" / name)
        program = folder / "python"
        program.write_text(PROGRAM.format(python=shutil.which("python3")))
        program.chmod(0o755)
        (folder / "model").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def call(self, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(self.folder / "python"), "PORT": str(self.port), "POLL": "0.1", **variables}
        command = [str(self.folder / "scripts" / script), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def process(self, name: str) -> int:
        return int((self.folder / "outputs" / "servers" / f"{name}.pid").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for script in ("start_user_sim.sh", "start_policy.sh"):
        made.call(script, "stop")


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_customer_is_served_with_tool_calls_and_ended_by_its_number(place: Place) -> None:
    done = place.call("start_user_sim.sh", "model", "--chunked-prefill-size", "4096", GPUS="6,7")
    assert done.returncode == 0, done.stderr
    seen = (place.folder / "seen.json").read_text()
    for flags in (
        '"--model-path", "model", "--served-model-name", "user_sim", "--host", "127.0.0.1"',
        '"--data-parallel-size", "2", "--context-length", "32768"',
        '"--tool-call-parser", "qwen25", "--chunked-prefill-size", "4096"',
        '"gpus": "6,7"',
    ):
        assert flags in seen
    process = place.process("user_sim")
    assert alive(process)
    assert place.call("start_user_sim.sh", "status").returncode == 0
    again = place.call("start_user_sim.sh", "model")
    assert again.returncode == 2
    assert "runs already" in again.stderr
    assert alive(process)
    assert place.call("start_user_sim.sh", "stop").returncode == 0
    assert not alive(process)
    assert place.call("start_user_sim.sh", "status").returncode == 3


def test_a_policy_is_served_without_a_tool_parser(place: Place) -> None:
    assert place.call("start_policy.sh", "model").returncode == 0
    seen = (place.folder / "seen.json").read_text()
    assert '"--served-model-name", "policy"' in seen
    assert "tool-call-parser" not in seen


def test_a_server_that_dies_is_said_to_have_died(place: Place) -> None:
    done = place.call("start_policy.sh", "model", "--die")
    assert done.returncode == 2
    assert "out of memory" in done.stderr
    assert "ended before it was ready" in done.stderr
    assert not (place.folder / "outputs" / "servers" / "policy.pid").exists()


def test_a_server_that_hangs_is_ended(place: Place) -> None:
    done = place.call("start_policy.sh", "model", "--hang", WAIT="1")
    assert done.returncode == 2
    assert "not ready within 1 s" in done.stderr
    assert place.call("start_policy.sh", "status").returncode == 3


def test_the_number_of_another_program_is_not_touched(place: Place) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        servers = place.folder / "outputs" / "servers"
        servers.mkdir(parents=True)
        (servers / "policy.pid").write_text(f"{other.pid}\n")
        done = place.call("start_policy.sh", "stop")
        assert (done.returncode, done.stderr) == (0, "policy does not run\n")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_model_that_is_not_there_is_a_wrong_request(place: Place) -> None:
    done = place.call("start_policy.sh", "nowhere")
    assert done.returncode == 2
    assert "no model in `nowhere`" in done.stderr
    assert "GPUS=" in place.call("start_policy.sh").stdout

"""A local Ray head and jobs on it.

- the output of a job arrives whole, in order and once; progress is told apart; exit codes are the job's
- Ctrl-C stops the job gently first and gives 130
- ports are on loopback only and ask for a token
- two heads live side by side, and one that ends takes all its processes and its folder along, and nothing else's;
  also when its owner is killed
- a dead, a silent and a wrong address are told at once
- a machine whose memory something else has filled is no reason to end a job
- a server that drops the connection is asked again, and has the job once
- a secret reaches the job by its environment and is nowhere to be seen
"""

from __future__ import annotations

import glob
import http.server
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tau2rl.doctor.services import answers
from tau2rl.errors import UserError
from tau2rl.launch import jobs, supervisor
from tau2rl.launch.ray_head import LocalHead
from tau2rl.runs.progress import ProgressEvent

pytestmark = pytest.mark.e2e
SECRET = "sk-planted-in-the-environment"


@pytest.fixture(scope="module")
def head() -> Iterator[LocalHead]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        with LocalHead() as running:
            yield running


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[ProgressEvent] = []

    def follow(self, head: LocalHead, command: list[str], on_line: Callable[[str], None] | None = None) -> int:
        server = jobs.connect(head.address, head.headers, alive=head.alive)
        server.submit("exec " + shlex.join(command), job := jobs.new_id("test"))
        return server.follow(job, on_line=on_line or self.lines.append, on_progress=self.events.append)


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", f"exec({code!r})"]  # Ray tells the command line in the log: one line is easy to skip


def folder_of(head: LocalHead) -> str:
    return folder_of_process(head.pid)


def folder_of_process(process: int) -> str:
    command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    return command[command.index(supervisor.__file__) + 1]


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_every_line_arrives_once_and_in_order(head: LocalHead) -> None:
    heard = Heard()
    loop = "for i in range(3000):\n print('line', i, 'ü' * 20)\n i % 1000 or time.sleep(1)\n"
    code = f"import sys, time\n{loop}sys.stdout.write('no newline')"
    assert heard.follow(head, python(code)) == 0
    assert heard.lines == [f"line {i} {'ü' * 20}" for i in range(3000)] + ["no newline"]


def test_progress_is_told_apart_from_words(head: LocalHead) -> None:
    heard = Heard()
    code = "print('hello'); print('::tau2rl-progress {\"done\": 3, \"total\": 8}'); print('bye')"
    assert heard.follow(head, python(code)) == 0
    assert heard.lines == ["hello", "bye"]
    assert heard.events == [ProgressEvent(done=3, total=8)]


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("sys.exit(2)", 2, []),
        ("sys.exit(130)", 130, []),
        ("sys.exit(7)", 1, ["error: the job ended with exit code 7"]),
        ("os.kill(os.getpid(), 9)", 1, ["error: the job was killed by signal 9"]),
    ],
)
def test_the_exit_code_is_the_jobs(head: LocalHead, ending: str, code: int, words: list[str]) -> None:
    heard = Heard()
    assert heard.follow(head, python(f"import os, sys; {ending}")) == code
    assert heard.lines == words


def test_ctrl_c_stops_the_job_gently_and_gives_130(head: LocalHead) -> None:
    heard = Heard()

    def interrupt_once(line: str) -> None:
        heard.lines.append(line)
        if len(heard.lines) == 1:
            raise KeyboardInterrupt

    gentle = (
        "import os, signal, sys, time\n"
        "def bye(*_): time.sleep(4); print('records are closed'); sys.exit(130)\n"  # longer than Ray waits by default
        "signal.signal(signal.SIGTERM, bye); print(os.getpid()); time.sleep(600)"
    )
    assert heard.follow(head, python(gentle), interrupt_once) == 130
    assert heard.lines[1:] == ["records are closed"]
    assert not alive(int(heard.lines[0]))


def test_a_secret_reaches_the_job_and_is_nowhere_to_be_seen(head: LocalHead) -> None:
    heard, seen = Heard(), []

    def look(line: str) -> None:
        heard.lines.append(line)
        for file in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                seen.append(SECRET.encode() in Path(file).read_bytes())
            except OSError:
                continue

    code = f"import os, time; print(len(os.environ['OPENAI_API_KEY']) == {len(SECRET)}); time.sleep(2)"
    assert heard.follow(head, python(code), look) == 0
    assert heard.lines == ["True"]
    assert seen
    assert not any(seen)
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers=head.headers)
    with urllib.request.urlopen(request, timeout=30) as listing:
        assert SECRET not in listing.read().decode()
    logs = [Path(file) for file in glob.glob(f"{folder_of(head)}/**/*", recursive=True)]
    assert [file for file in logs if file.is_file() and SECRET.encode() in file.read_bytes()] == []


def test_without_the_token_nobody_gets_in(head: LocalHead) -> None:
    assert answers(f"{head.address}/api/jobs/") == 401
    assert Path(folder_of(head)).stat().st_mode & 0o777 == 0o700


def test_every_port_is_on_loopback(head: LocalHead) -> None:
    inodes: dict[str, str] = {}  # socket inode -> local address in hex, listening ones
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        inodes.update({row[9]: row[1].partition(":")[0] for row in rows if row[3] == "0A"})
    addresses: list[str] = []
    for process in supervisor.descendants(head.pid):
        for descriptor in glob.glob(f"/proc/{process}/fd/*"):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                addresses.append(inodes[target[8:-1]])
    assert len(addresses) > 5
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_two_heads_live_side_by_side_and_each_ends_alone(head: LocalHead) -> None:
    second = LocalHead()
    with second:
        heard = Heard()
        assert heard.follow(second, python("print('second')")) == 0
        assert heard.lines == ["second"]
        folder = folder_of(second)
        owned = [second.pid, *supervisor.descendants(second.pid)]
        assert len(owned) > 10
    assert not second.alive()
    assert [process for process in owned if alive(process)] == []
    assert not Path(folder).exists()
    heard = Heard()
    assert heard.follow(head, python("print('first')")) == 0
    assert heard.lines == ["first"]


OWNER = """
import shlex, sys, time
from tau2rl.launch import jobs
from tau2rl.launch.ray_head import LocalHead
head = LocalHead()
with head:
    server = jobs.connect(head.address, head.headers, variables=head.job_variables)
    said = "import os, tempfile, time; print(os.getpid(), tempfile.gettempdir()); time.sleep(600)"
    command = [sys.executable, "-u", "-c", said]
    server.submit("exec " + shlex.join(command), job := jobs.new_id("test"))
    def say(line):
        sys.stdout.write(f"{head.pid} {line}\\n"); sys.stdout.flush()
    server.follow(job, on_line=say, on_progress=lambda event: None)
"""


def test_a_head_and_its_job_go_when_their_owner_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout is not None
    with owner.stdout:
        said = owner.stdout.readline()
        assert "error:" not in said, said + owner.stdout.read()
        outer, job = map(int, said.split()[:2])
        assert said.split()[2] == str(tmp_path)
        folder = Path(folder_of_process(outer))
        owned = [outer, *supervisor.descendants(outer)]
        assert job in owned
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not any(alive(process) for process in owned) and not folder.exists())
    assert list(tmp_path.iterdir()) == []  # the dashboard's sockets were in the folder


@pytest.mark.slow
def test_memory_that_something_else_has_filled_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")  # this machine is always fuller than that
    with LocalHead() as head:
        assert Heard().follow(head, python("import time; time.sleep(3)")) == 0


def test_a_head_goes_when_both_its_supervisors_are_killed_at_once() -> None:
    with LocalHead() as head:
        below = supervisor.descendants(head.pid)
        folder = Path(folder_of(head))
        for process in (head.pid, below[0]):  # the outer one, then the inner one
            os.kill(process, signal.SIGKILL)
    assert not any(alive(process) for process in below)
    assert not folder.exists()


def test_a_head_that_breaks_down_ends_the_wait_for_its_job() -> None:
    with LocalHead() as head:
        heard = Heard()

        def break_it(line: str) -> None:
            heard.lines.append(line)
            if line == "working":
                os.kill(supervisor.descendants(head.pid)[0], signal.SIGKILL)

        assert heard.follow(head, python("import time; print('working'); time.sleep(600)"), break_it) == 1
        assert heard.lines[0] == "working"
        assert any(line.startswith("error: ") for line in heard.lines[1:])


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "ray://127.0.0.1:{port}", "http://[", "host:port"]
)
def test_a_dead_address_is_told_at_once(address: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no Ray cluster answers") as caught:
            jobs.connect(address.format(port=unused.getsockname()[1]))
    assert "--address" in caught.value.hint


def test_a_silent_address_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="no Ray cluster answers"):
        jobs.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_an_address_of_something_else_is_told() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="not Ray's job server"):
            jobs.connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_rays_own_variables_do_not_send_the_run_elsewhere(head: LocalHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address.replace("127.0.0.1", "localhost"))
    with pytest.raises(UserError, match="its own environment variables win"):
        jobs.connect(head.address, head.headers)


def test_the_wrong_token_is_a_clear_error(head: LocalHead) -> None:
    with pytest.raises(UserError, match="cannot use the Ray cluster"):
        jobs.connect(head.address, {"Authorization": "Bearer wrong"})


def test_a_server_that_drops_the_connection_has_the_job_once() -> None:
    taken: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        """Ray's job server, which drops the first two requests: one before it has taken the job, one behind that."""

        dropped = 0

        def do_GET(self) -> None:
            known = [{"type": "SUBMISSION", "submission_id": job, "status": "PENDING", "entrypoint": "true"} for job in taken]
            self._answer(known if "jobs" in self.path else {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Server.dropped += 1
            if Server.dropped > 1:
                taken.append(asked["submission_id"])
            self.close_connection = True  # and no answer

        def _answer(self, values: object) -> None:
            body = json.dumps(values).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            jobs.connect(f"http://127.0.0.1:{server.server_port}").submit("true", "one")
        finally:
            server.shutdown()
    assert taken == ["one"]

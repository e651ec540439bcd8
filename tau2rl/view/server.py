"""The web app: pages and JSON on loopback, for one person.

The address has a secret in its path, `http://127.0.0.1:PORT/TOKEN/`, so that scripts and links below it need no cookie. A request
without it, for another host name (DNS rebinding) or from another origin gets an empty 404. Nothing here writes to a run but its
index. The pages come from `static/`; their policy allows no script, style or connection from elsewhere, and no HTML from strings.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tau2rl.errors import UserError
from tau2rl.view import group, runs
from tau2rl.view.conversation import first_difference
from tau2rl.view.index import Index, Query, record_files
from tau2rl.view.pipeline import pipeline, pipeline_tasks

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_ROWS = 500  # of a page
MOST_RUNS = 20  # over one another
FIRST_SECONDS = 0.4  # that a request reads new records for; what is left is read behind it
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Viewer:
    """What is looked at: the runs at and below some folders, each with its index once somebody asks for it."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = tuple(places)
        self._lock = threading.Lock()
        self._found: dict[str, Path] = {}
        self._indexes: dict[Path, Index] = {}
        self._reading: set[Path] = set()
        self._closed = threading.Event()

    def runs(self) -> dict[str, Path]:
        """Id -> folder, looked up again."""
        self._found = runs.find_runs(self.places)
        return self._found

    def run(self, name: str) -> Path:
        """The folder of an id. Raises UserError."""
        found = self._found.get(name) or self.runs().get(name)
        if found is None:
            raise UserError("no such run")
        return found

    def index(self, run: Path) -> Index:
        """A run's index, up to date or becoming so: a long first reading goes on in a thread."""
        with self._lock:
            if run not in self._indexes:
                self._indexes[run] = Index(run)
            index = self._indexes[run]
        if not index.update(seconds=FIRST_SECONDS):
            with self._lock:
                if run not in self._reading:
                    self._reading.add(run)
                    threading.Thread(target=self._read_on, args=(run, index), daemon=True).start()
        return index

    def _read_on(self, run: Path, index: Index) -> None:
        with suppress(UserError):  # the next request says it
            while not self._closed.is_set() and not index.update(seconds=FIRST_SECONDS):
                self._closed.wait(0.02)  # a page may come in between
        with self._lock:
            self._reading.discard(run)

    def close(self) -> None:
        """Stop reading and let go of the indexes."""
        self._closed.set()
        for index in self._indexes.values():
            index.close()


def make_viewer(viewer: Viewer, token: str) -> AccessGuard:
    """The ASGI application."""

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        file = STATIC / name
        if name not in {item.name for item in STATIC.iterdir()} or file.suffix not in TYPES:
            return Response(status_code=404)
        return Response(file.read_bytes(), media_type=TYPES[file.suffix])

    def api(answer: Callable[[Viewer, Request], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                found = await asyncio.to_thread(answer, viewer, request)
            except (UserError, ValueError) as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            return found if isinstance(found, Response) else JSONResponse(found)

        return endpoint

    below = "/api/runs/{run}"
    routes = [
        Route("/", page), Route("/static/{name}", page), Route("/api/runs", api(_list)), Route("/api/version", api(_version)),
        Route(below, api(_overview)), Route(f"{below}/episodes", api(_episodes)), Route(f"{below}/attempts", api(_attempts)),
        Route(f"{below}/episodes/{{number:int}}", api(_episode)), Route(f"{below}/episodes/{{number:int}}/tokens", api(_tokens)),
        Route(f"{below}/episodes/{{number:int}}/group", api(_group)), Route(f"{below}/episodes/{{number:int}}/raw", api(_raw)),
        Route("/api/compare", api(_compare)), Route("/api/curves", api(_curves)), Route("/api/tasks", api(_tasks)),
    ]  # fmt: skip
    return AccessGuard(Starlette(routes=routes), token)


def _list(viewer: Viewer, request: Request) -> Any:
    return [{"id": name, **runs.run_summary(run)} for name, run in viewer.runs().items()]


def _overview(viewer: Viewer, request: Request) -> Any:
    run = viewer.run(request.path_params["run"])
    index = viewer.index(run) if record_files(run) else None
    return {"id": request.path_params["run"], "pipeline": pipeline(run), **runs.overview(run, index)}


def _version(viewer: Viewer, request: Request) -> Any:
    """`runs=A,B`, or none for all that there are: a string that changes with what they write, and how far they are read."""
    names = _names(request)
    looked = [viewer.run(name) for name in names] if names else list(viewer.runs().values())
    progress = [viewer.index(run).progress() for run in looked if names and record_files(run)]
    version = hashlib.sha256("".join(f"{run}{runs.run_version(run)}" for run in looked).encode()).hexdigest()[:12]
    return {"version": version, "indexed": sum(done for done, _ in progress), "size": sum(size for _, size in progress)}


def _episodes(viewer: Viewer, request: Request) -> Any:
    run = viewer.run(request.path_params["run"])
    found = viewer.index(run).page(query_of(dict(request.query_params)))
    return {"rows": found.rows, "total": found.total}


def _episode(viewer: Viewer, request: Request) -> Any:
    run = viewer.run(request.path_params["run"])
    return runs.episode(run, viewer.index(run), request.path_params["number"])


def _attempts(viewer: Viewer, request: Request) -> Any:
    """`task=DOMAIN/ID`: the attempts of the run at one task, a validation by `place`."""
    domain, _, task = request.query_params.get("task", "").partition("/")
    place = request.query_params.get("place") or "run"
    found = viewer.index(viewer.run(request.path_params["run"])).attempts({"place": place, "domain": domain, "task": task})
    return [{key: row[key] for key in ("id", "attempt", "greedy", "status", "reward", "score")} for row in found]


def _group(viewer: Viewer, request: Request) -> Any:
    run = viewer.run(request.path_params["run"])
    return group.attempts(run, viewer.index(run), request.path_params["number"])


def _tokens(viewer: Viewer, request: Request) -> Any:
    run = viewer.run(request.path_params["run"])
    return runs.episode_tokens(run, viewer.index(run), request.path_params["number"])


def _raw(viewer: Viewer, request: Request) -> Any:
    index = viewer.index(viewer.run(request.path_params["run"]))
    line = index.line(index.find(request.path_params["number"]))
    name = {"Content-Disposition": 'attachment; filename="episode.json"'}
    return Response(line, media_type="application/json", headers=name)


def _compare(viewer: Viewer, request: Request) -> Any:
    """`a=RUN:NUMBER&b=RUN:NUMBER`."""
    sides: list[dict[str, Any]] = []
    for side in ("a", "b"):
        name, _, number = request.query_params.get(side, "").partition(":")
        run = viewer.run(name)
        sides.append(
            {**runs.episode(run, viewer.index(run), int(number)), "run": name, "run_name": runs.run_summary(run)["name"]}
        )
    return {"a": sides[0], "b": sides[1], "first": first_difference(sides[0]["items"], sides[1]["items"])}


def _curves(viewer: Viewer, request: Request) -> Any:
    """`runs=A,B`, and `metrics=X,Y` for some of the numbers alone."""
    found = [(name, viewer.run(name)) for name in _names(request)]
    wanted = {name for name in request.query_params.get("metrics", "").split(",") if name}
    return [
        {
            "id": name,
            **runs.run_summary(run),
            "metrics": {metric: points for metric, points in runs.curves(run).items() if metric in wanted or not wanted},
        }
        for name, run in found
    ]


def _tasks(viewer: Viewer, request: Request) -> Any:
    found = [(name, viewer.run(name)) for name in _names(request)]
    return pipeline_tasks([(name, run, viewer.index(run)) for name, run in found])


def _names(request: Request) -> list[str]:
    return [name for name in request.query_params.get("runs", "").split(",") if name][:MOST_RUNS]


def query_of(asked: dict[str, str]) -> Query:
    """The query of an address; unknown names are passed over. Raises UserError and ValueError for values that are none."""
    texts: dict[str, Any] = {f.name: asked[f.name] for f in fields(Query) if f.type == "str" and f.name in asked}
    offset, limit = int(asked.get("offset", "0")), int(asked.get("limit", "50"))
    if not (0 <= offset < 1 << 60 and limit >= 0):
        raise UserError("a page begins at 0 or behind it")
    return Query(
        **texts,
        descending=asked.get("descending") == "1",
        every=asked.get("every") == "1",
        offset=offset,
        limit=min(limit, MOST_ROWS),
    )


class AccessGuard:
    """Lets in who has the token, and nobody from elsewhere; puts the headers on every answer."""

    def __init__(self, app: Starlette, token: str) -> None:
        self._app = app
        self._prefix = f"/{token}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        if scope["type"] != "http" or not self._may_enter(scope):
            await Response(status_code=404)(scope, receive, with_headers)
            return
        path = scope["path"][len(self._prefix) :]
        await self._app({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, with_headers)

    def _may_enter(self, scope: Any) -> bool:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        port = (scope.get("server") or ("", 0))[1]
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        given = scope["path"][: len(self._prefix) + 1]
        return (
            secrets.compare_digest(given.encode(), f"{self._prefix}/".encode())
            and headers.get("host") in hosts
            and headers.get("origin", f"http://{headers.get('host')}") == f"http://{headers.get('host')}"
            and headers.get("sec-fetch-site", "none") in {"none", "same-origin"}
            and scope["method"] in {"GET", "HEAD"}
        )


def serve_viewer(places: Sequence[Path], *, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is told the address. Port 0: a free one. Raises UserError."""
    token = secrets.token_urlsafe(24)
    viewer = Viewer(places)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"cannot listen on port {port}: {error.strerror}", hint="leave `--port` out, and a free one is taken"
            ) from None
        listener.listen(64)
        config = uvicorn.Config(make_viewer(viewer, token), log_level="warning", access_log=False, server_header=False)
        ready(f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            viewer.close()

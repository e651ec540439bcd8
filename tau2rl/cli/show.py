"""`tau2rl show` and `tau2rl view`: a run's conversations in the terminal, and everything about runs in a browser."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console, settings
from tau2rl.cli.blame import config_of, explanation
from tau2rl.cli.options import Json
from tau2rl.cli.printing import program, shown
from tau2rl.config.extras import refuse_command
from tau2rl.errors import UserError
from tau2rl.report.tables import blame_words, number, quantity

if TYPE_CHECKING:
    from tau2rl.view.index import Index

FOLD = 300  # characters of a tool's result that show without `--whole`
WIDTH = 100
Piece = tuple[str, str]  # text and its style


def _filter(flag: str, text: str, metavar: str = "TEXT") -> Any:
    return typer.Option(flag, help=text, metavar=metavar, rich_help_panel="Which episodes", show_default=False)


def show(
    run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR", show_default=False)],
    task: Annotated[
        str, typer.Argument(help="A task, `domain/task_id` or part of it: with one attempt left, it is shown.", metavar="[TASK]")
    ] = "",
    attempt: Annotated[int | None, typer.Option("--attempt", help="Which attempt at the task.", metavar="N")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Its tokens with mask, log-probability, mismatch and advantage.")
    ] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Results of tools unfolded.")] = False,
    domain: Annotated[str, _filter("--domain", "Of this domain.", "NAME")] = "",
    status: Annotated[str, _filter("--status", "completed, truncated, malformed or failed.", "NAME")] = "",
    fault: Annotated[str, _filter("--fault", "agent, user, task, infra or none.", "NAME")] = "",
    reason: Annotated[str, _filter("--reason", "What ended it, such as user_stop.", "NAME")] = "",
    score: Annotated[str, _filter("--score", "A comparison: `1`, `<0.5`, `>=0.9`.", "COMPARISON")] = "",
    text: Annotated[str, _filter("--text", 'Words of the conversation, or "a phrase".')] = "",
    part: Annotated[str, _filter("--part", "`run`, or `val 20`: the validation behind step 20.", "NAME")] = "",
    sort: Annotated[str, typer.Option("--sort", help="order, task, score, reward, turns, tokens, seconds or status.")] = "order",
    descending: Annotated[bool, typer.Option("--descending", help="The greatest first.")] = False,
    page: Annotated[int, typer.Option("--page", help="Which page of the list.", min=1)] = 1,
    per_page: Annotated[int, typer.Option("--per-page", help="Episodes on a page.", min=1)] = 30,
    as_json: Json = False,
) -> None:
    """Show the episodes of a run: a list, or one conversation with its checks beside what was expected.

    The first call makes `index.sqlite` in the run folder, which later ones bring up to date; it may be deleted at any time.
    """
    from tau2rl.verify.attribution import kept
    from tau2rl.view.index import Index, Query

    if attempt is not None and not task:
        raise UserError("`--attempt` is of a task", hint=f"`tau2rl show {shown(run)} TASK --attempt {attempt}`")
    query = Query(
        domain=domain, task=task if attempt is None else "", status=status, fault=fault, reason=reason, score=score, text=text,
        place=part, sort=sort, descending=descending, offset=(page - 1) * per_page, limit=per_page,
    )  # fmt: skip
    found_blame = kept(run) or {"episodes": [], "scores": None}
    blamed = {one["episode"]: one for one in found_blame["episodes"]}
    with Index(run) as index:
        _read_all(index)
        found = index.page(query)
        rows = found.rows
        if task and attempt is not None:
            rows = [row for row in _named(index, task, part) if row["attempt"] == attempt and not row["greedy"]]
            if len(rows) != 1:
                raise UserError(
                    f"{len(rows)} episodes are attempt {attempt} at `{task}`",
                    hint=f"`tau2rl show {shown(run)} {task}` lists them",
                )
        if task and len(rows) == 1 and (attempt is not None or found.total == 1):
            who = blamed.get(rows[0]["key"]) if rows[0]["place"] == "run" else None
            _print_episode(run, index, int(rows[0]["id"]), who, tokens=tokens, whole=whole, as_json=as_json)
        elif tokens:
            raise UserError(f"`--tokens` shows one episode, and {found.total} fit", hint="name its task, and `--attempt N`")
        elif as_json:
            rows = [{**row, "blame": blamed.get(row["key"]) if row["place"] == "run" else None} for row in rows]
            console.emit_json({"total": found.total, "episodes": rows, "scores": found_blame["scores"]})
        else:
            _print_list(rows, found.total, query.offset, blamed)
            if any(row["key"] in blamed for row in rows):
                console.say(f"what the faults mean: `{program()} blame {shown(run)}`")
            if scores := found_blame["scores"]:
                console.emit_words(f"success: {blame_words(scores['overall'])}")
        if bad := index.unreadable():
            console.say(f"warning: {quantity(bad, 'line')} cannot be read as a record of this version")


def _print_episode(
    run: Path, index: Index, number: int, who: Mapping[str, Any] | None, *, tokens: bool, whole: bool, as_json: bool
) -> None:
    """One conversation; `who`: to blame for it."""
    from tau2rl.view import runs

    values = runs.episode(run, index, number)
    drawn = runs.episode_tokens(run, index, number) if tokens else None
    if as_json:
        console.emit_json({**values, **({"tokens": drawn} if drawn else {}), **({"blame": who} if who else {})})
        return
    lines = [(f"blame: {who['fault']}, {who['name']} {who['detail']}\n", "red")] if who else []
    lines += [(f"  {line}\n", "dim") for line in (explanation(config_of(run), [who["name"]]) if who else ())]
    console.emit_styled([*conversation_pieces(values, whole=whole), *lines, *(_tokens(drawn) if drawn else ())])


def view(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, or folders of them. (default: the outputs folder)", metavar="[RUN...]", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="On loopback; 0 takes a free one.", min=0, max=65535)] = 0,
) -> None:
    """Look at runs in a browser: results, conversations, tokens and curves, live while a run goes on.

    Prints an address with a secret in it, and serves on loopback until it is interrupted. For another machine: `ssh -L`.
    """
    looked = places or [settings.output_root()]
    if not places and not looked[0].exists():
        raise UserError(
            f"there is no run yet: no folder `{looked[0]}`",
            hint="`tau2rl eval -c configs/eval/gold.yaml --limit 5` makes one\nor name run folders, or a folder of them",
        )
    if missing := [place for place in looked if not place.is_dir()]:
        raise UserError(f"`{missing[0]}` is not a folder", hint="name run folders, or a folder of them")
    refuse_command("tau2rl view")
    from tau2rl.view.server import serve_viewer

    serve_viewer(looked, port=port, ready=console.emit)


def _read_all(index: Any) -> None:
    started, said = time.monotonic(), False
    while not index.update(seconds=1.0):
        done, size = index.progress()
        seconds = time.monotonic() - started
        console.say(f"indexing: {done / max(1, size):.0%}, {console.clock(seconds * (size - done) / max(1, done))} left")
        said = True
    if said:
        console.say(f"indexed in {console.clock(time.monotonic() - started)}")


def _named(index: Any, task: str, part: str) -> list[dict[str, Any]]:
    """All attempts at a task, by its whole name or its id alone."""
    from tau2rl.view.index import Query

    rows = index.page(Query(task=task, place=part or "run", limit=1 << 30)).rows
    exact = [row for row in rows if task in (row["task"], f"{row['domain']}/{row['task']}")]
    return exact or rows


def _print_list(rows: list[dict[str, Any]], total: int, offset: int, blamed: Mapping[str, Mapping[str, Any]]) -> None:
    def fault(row: Mapping[str, Any]) -> str:
        who = blamed.get(row["key"]) if row["place"] == "run" else None
        return f"{who['fault']}: {who['name']}" if who else row["fault"] or "-"

    head = ["episode", "result", "fault", "ended by", "reward", "score", "turns", "tokens", "seconds"]
    body = [
        [row["key"] + ("" if row["place"] == "run" else f" ({row['place']})"), row["status"], fault(row), row["reason"],
         number(row["reward"]), number(row["score"]), str(row["turns"]), str(row["tokens"]), f"{row['seconds'] or 0:.1f}"]
        for row in rows
    ]  # fmt: skip
    if body:
        console.emit_table([head, *body])
    last = offset + len(rows)
    more = "; `--page` has the others" if last < total else ""
    console.say(f"{offset + 1}-{last} of {quantity(total, 'episode')}{more}" if rows else
                f"no episode fits ({total} on other pages)" if total else "no episode fits, or none was played yet")  # fmt: skip


def conversation_pieces(values: Mapping[str, Any], *, whole: bool) -> list[Piece]:
    """A conversation of `view.runs.episode` with its checks and its group, as text in styles of rich's."""
    solved = values["reward"] is not None and values["reward"] >= 1 - 1e-6
    verdict = f"{values['status']}, reward {number(values['reward'])}"
    rest = f", ended by {values['reason']}, {quantity(values['turns'], 'turn')}, {values['seconds']:.1f} s\n\n"
    out: list[Piece] = [(f"{values['key']}  ", "bold"), (verdict, "green" if solved else "red"), (rest, "")]
    for item in values["items"]:
        out += _item(item, whole=whole)
    if failure := values["failure"]:
        out.append((f"failed, {console.WHOSE.get(failure['fault'], failure['fault'])}: {failure['message']}\n", "red"))
    for check in sorted(values["checks"], key=lambda one: one["passed"]):
        words = "passed" if check["passed"] else "failed" if check["counts"] else "failed (not in the reward)"
        side = "by the user: " if check["side"] == "user" else ""
        out.append((f"{words:7} {check['kind']}: ", "green" if check["passed"] else "red" if check["counts"] else "dim"))
        out.append((f"expected {side}{check['expected'] or 'something that is not known here'}\n", ""))
    if score := values["score"]:
        out.append(("score " + ", ".join(f"{name} {value:.3g}" for name, value in score["components"].items()) + "\n", "dim"))
    if len(values["group"]) > 1:
        out += [_attempt(one, here=one["id"] == values["id"]) for one in values["group"]]
    return out


def _attempt(one: Mapping[str, Any], *, here: bool) -> Piece:
    advantage = "-" if one["advantage"] is None else f"{one['advantage']:+.3f}"
    name = "greedy" if one["greedy"] else f"attempt {one['attempt']}"
    return f"{name}: {one['status']}, score {number(one['score'])}, advantage {advantage}\n", "bold" if here else ""


def _item(item: Mapping[str, Any], *, whole: bool) -> list[Piece]:
    """A message: the agent's side to the left, the user's, with what is done on the device, indented."""
    indent = " " * 24 if item["side"] == "user" else ""
    names = {"agent": "agent", "user": "user", "result": "  result", "malformed": "malformed turn"}
    style = {"agent": "bold cyan", "user": "bold yellow", "result": "dim", "malformed": "bold magenta"}[item["who"]]
    text = item["text"]
    if item["who"] == "result" and len(text) > FOLD and not whole:
        text = f"{text[:FOLD]} ... {len(text) - FOLD:,} more characters"
    out: list[Piece] = [
        (f"{indent}{names[item['who']]}{' (refused)' if item['error'] and item['who'] == 'result' else ''}\n", style)
    ]
    if item.get("thought"):
        out.append((_block(item["thought"], indent) + "\n", "dim italic"))
    if text:
        out.append((_block(text, indent) + "\n", "dim" if item["who"] == "result" else ""))
    out += [
        (_block(f"{call['name']} {' '.join(call['arguments'].split())}", f"{indent}> ") + "\n", "blue") for call in item["calls"]
    ]
    return [*out, ("\n", "")]


def _block(text: str, indent: str) -> str:
    lines = (textwrap.wrap(line, WIDTH - len(indent), replace_whitespace=False) or [""] for line in text.splitlines())
    return "\n".join(indent + part for wrapped in lines for part in wrapped)


def _tokens(values: Mapping[str, Any]) -> list[Piece]:
    out: list[Piece] = [
        ("\ntokens: id, mask, log-probability, mismatch (the trainer's less the sampler's), advantage, text\n", "bold")
    ]
    out += [(f"{line}\n", "yellow") for line in (values["reason"], values["tokenizer"], values["untrained"]) if line]
    for span in values["spans"]:
        out += [(_token(span, number_), "" if span["mask"] else "dim") for number_ in range(len(span["ids"]))]
    return out


def _token(span: Mapping[str, Any], at: int) -> str:
    logprob = span["logprobs"][at] if span["logprobs"] else None
    trained = span["trainer"][at] if span["trainer"] else None
    mismatch = None if logprob is None or trained is None else trained - logprob
    words = repr(span["texts"][at]) if span["texts"] else ""
    numbers = f"{_signed(logprob, '.4f'):>9} {_signed(mismatch, '+.4f'):>8} {_signed(span['advantage'], '+.3f'):>7}"
    return f"{span['ids'][at]:>7} {span['mask']} {numbers} {words}\n"


def _signed(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)

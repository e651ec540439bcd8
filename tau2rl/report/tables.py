"""A report as rows of text; who prints them, and in which colours, is the console's business."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

NONE = "-"
NOT_ASKED = "no model is asked"  # the source of a price of nothing


def printable(text: str) -> str:
    r"""Text of a model, a server or a file as a table may show it: what would move the cursor or turn the text is written out.

    >>> printable("a\x1b[2Jb\u202ec")
    'a\\x1b[2Jb\\u202ec'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def report_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """A header and one row per domain, then `macro` (with several domains) and `overall`; greedy rows after them.

    An incomplete run shows `-` in its headline rows and then rows marked `so far`. Columns: domain, tasks, pass@1 with its
    interval, sd of whole runs where the evaluation was repeated, pass@n and pass^n for the largest n (when there is more than one
    attempt), the higher floor.
    """
    largest = max(1, int(report["attempts"]))
    rows = [_header(largest), *_block(report, report, report, largest, "")]
    if repeated := report.get("repetitions"):
        of = {**repeated["by_domain"], "overall": repeated["overall"]}
        for row in rows:
            sd = f"sd of {repeated['count']} runs" if row is rows[0] else number(of[row[0]]["sd"]) if row[0] in of else NONE
            row.insert(3, sd)
    if report["greedy"]:
        rows += _block(report["greedy"], report, report, largest, "greedy: ")
    so_far = report["so_far"]
    if so_far:
        rows += _block(so_far, so_far, report, largest, "so far: ")
        if so_far["greedy"]:
            rows += _block(so_far["greedy"], so_far, report, largest, "so far, greedy: ")
    return rows


def cell_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """A header and a row a cell of the grid of made tasks: tasks, pass@1 with its interval, pass@k for the largest k.

    Nothing of a run on tasks without cells.
    """
    cells: Mapping[str, Mapping[str, Any]] = report.get("by_cell") or {}
    largest = max(1, int(report["attempts"]))
    more = [f"pass@{largest}"] if largest > 1 else []
    rows = [
        [cell, str(part["tasks"]), interval(part["pass@1"]), *(number(part[name]["value"]) for name in more)]
        for cell, part in cells.items()
    ]
    return [["cell", "tasks", "pass@1 [95%]", *more], *rows] if rows else []


def blame_words(scores: Mapping[str, Any]) -> str:
    """Raw and adjusted success in a line, neither for the other, and the failures by whose they are.

    >>> row = {"raw": {"value": 0.5, "ci95": None}, "adjusted": {"value": 0.6, "ci95": None}, "left_out": 2}
    >>> blame_words({**row, "left_out_solved": 1, "names": {"agent": {"loop": 3}, "user": {"role_flip": 1}}})
    'raw 0.500, adjusted 0.600 without 2 episodes (1 solved) that user, task or infra spoilt; agent: 3 loop; user: 1 role_flip'
    """
    solved = f" ({scores['left_out_solved']} solved)" if scores["left_out_solved"] else ""
    words = f"raw {interval(scores['raw'])}, adjusted {interval(scores['adjusted'])}"
    without = f" without {quantity(scores['left_out'], 'episode')}{solved} that user, task or infra spoilt"
    words += without if scores["left_out"] else ""
    named = {fault: ", ".join(f"{count} {name}" for name, count in names.items()) for fault, names in scores["names"].items()}
    return "; ".join([words, *(f"{fault}: {text}" for fault, text in named.items())])


def cost_words(cost: Mapping[str, Any]) -> str:
    """The `cost` of a report in a line.

    >>> tokens = {"policy_in": 1_200_000, "policy_out": 45_000, "policy_cached": 900_000, "user_in": 0, "user_out": 0}
    >>> words = "87% of episode time waits for the policy"
    >>> seconds = {"process": {"wall_seconds": 40.0}, "episode_seconds": {"total": 900.0}}
    >>> cost_words({**seconds, "tokens": tokens, "bottleneck": words})
    '40.0 s for 900.0 s of episodes; agent 1,200,000 tokens in (75% cached), 45,000 out; 87% of episode time waits for the policy'
    >>> wall = {"seconds": {"update": 9.0, "saving": 1.0}, "shares": {"update": 0.9, "saving": 0.1}}
    >>> tokens = {"trained": 4500, "trained_per_second": 500.0}
    >>> cost_words({"process": {"wall_seconds": 10.0}, "wall": wall, "tokens": tokens, "bottleneck": None})
    '10.0 s (90% update, 10% saving); 4,500 tokens trained, 500 a second'
    """
    limit = cost.get("bottleneck")
    return "; ".join([_time(cost), *_tokens(cost.get("tokens", {})), *_cpu(cost), *([limit] if limit else [])])


def total_words(total: Mapping[str, Any]) -> str:
    """The `cost` of a pipeline in a line.

    >>> counted = {"tokens": {"trained": 4500}, "env_cpu": {"seconds": 2.5}}
    >>> total_words({"seconds": 20.0, "cpu_seconds": 19.0, "runs": {"seed": 5.0, "grpo": 15.0}, **counted})
    '20.0 s, 19.0 s of CPU; 4,500 tokens trained; environments 2.50 s of CPU; 75% of the time is `grpo`'
    """
    words = [f"{total['seconds']:.1f} s, {total['cpu_seconds']:.1f} s of CPU", *_tokens(total["tokens"]), *_cpu(total)]
    if total["seconds"]:
        most = max(total["runs"], key=total["runs"].__getitem__)
        words.append(f"{total['runs'][most] / total['seconds']:.0%} of the time is `{most}`")
    return "; ".join(words)


def short_words(cost: Mapping[str, Any]) -> str:
    """The `cost` of a run or of a pipeline as one line for everybody; `cost_words` and `total_words` have the details.

    >>> tokens = {"policy_in": 1_200_000, "policy_out": 45_000, "policy_cached": 0, "trained": 4500}
    >>> short_words({"seconds": 69.4, "tokens": tokens})
    '1:09 min; the agent read 1,200,000 tokens and wrote 45,000; 4,500 tokens trained on'
    """
    if "seconds" in cost:
        seconds = cost["seconds"]
    else:
        wall = cost.get("wall")
        seconds = sum(wall["seconds"].values()) if wall else _wall_seconds(cost)
    words = [duration(seconds)]
    tokens = cost.get("tokens", {})
    if tokens.get("policy_in"):
        words.append(f"the agent read {quantity(tokens['policy_in'], 'token')} and wrote {tokens['policy_out']:,}")
    if tokens.get("user_in"):
        words.append(f"the user model read {quantity(tokens['user_in'], 'token')} and wrote {tokens['user_out']:,}")
    if tokens.get("trained"):
        words.append(f"{quantity(tokens['trained'], 'token')} trained on")
    return "; ".join(words)


def clock(seconds: float) -> str:
    """A duration as people write it.

    >>> clock(59.6), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float | None) -> str:
    """A duration with its unit.

    >>> duration(3.64), duration(69.4), duration(3725), duration(None)
    ('3.6 s', '1:09 min', '1:02:05 h', 'time unknown')
    """
    if seconds is None:
        return "time unknown"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{clock(seconds)} {'h' if round(seconds) >= 3600 else 'min'}"


def dollars(usd: float | None) -> str:
    """An amount of money.

    >>> dollars(1234.5), dollars(0.0999), dollars(0.00123), dollars(0.00008), dollars(None)
    ('$1,234.50', '$0.10', '$0.0012', '$0.00008', 'dollars unknown')
    """
    if usd is None:
        return "dollars unknown"
    small = Decimal(f"{usd:.2g}")
    return f"${usd:,.2f}" if not usd or abs(small) >= Decimal("0.1") else f"${small:f}"


def exact(value: float, decimals: int = 0) -> str:
    """A number as somebody gave it, up to ten digits of it, with so many decimals at least.

    >>> exact(12345.678), exact(5, 2), exact(0.3 - 0.1)
    ('12,345.678', '5.00', '0.2')
    """
    whole, _, rest = f"{Decimal(f'{value:.10g}'):,f}".partition(".")  # what is left of a cap is a difference of floats
    rest = rest.ljust(decimals, "0")
    return f"{whole}.{rest}" if rest else whole


def amounts(tokens: int, usd: float | None, seconds: float | None) -> str:
    """What something takes, for people. Where no model is asked and nothing has a price, that is its time.

    >>> amounts(1200, 0.5, 90.0), amounts(7, None, None), amounts(0, 0.0, 90.0)
    ('1,200 tokens, $0.50, 1:30 min', '7 tokens, dollars unknown, time unknown', '1:30 min')
    """
    words = [quantity(tokens, "token")] if tokens else []
    words += [dollars(usd)] if tokens or usd or usd is None else []
    return ", ".join([*words, duration(seconds)])


def price_words(prices: Mapping[str, Any]) -> str:
    """Who says what tokens and hours cost, from the `prices` of a budget; empty where nobody does.

    >>> none = {"read": 0.0, "write": 0.0, "cached": 0.0, "source": "no model is asked"}
    >>> price_words({"policy": none, "user": none, "hour": 2.5}), price_words({"policy": none, "user": none, "hour": None})
    ('prices: $2.5 an hour', 'no model is asked')
    >>> price_words({"policy": {**none, "source": "in the price of an hour"}, "user": none, "hour": 0.0})
    ''
    """
    models = [prices["policy"], prices["user"]]
    sources = {price["source"] for price in models if price and (price["read"] or price["write"])}
    sources |= {f"${prices['hour']:g} an hour"} if prices["hour"] else set()
    if sources:
        return f"prices: {'; '.join(sorted(sources))}"
    return NOT_ASKED if all(price and price["source"] == NOT_ASKED for price in models) else ""


def quantity(count: int, noun: str, plural: str = "") -> str:
    """So many of a thing.

    >>> quantity(1, "run"), quantity(1200, "run"), quantity(0, "try", "tries")
    ('1 run', '1,200 runs', '0 tries')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def _wall_seconds(cost: Mapping[str, Any]) -> float | None:
    return cost.get("process", {}).get("wall_seconds")  # a backend of the user's need not measure


def _time(cost: Mapping[str, Any]) -> str:
    """Wall time with its phases, and the time of episodes."""
    seconds, wall = _wall_seconds(cost), cost.get("wall")
    words = "unknown" if seconds is None else f"{seconds:.1f} s"
    if wall:
        known: Mapping[str, float] = wall["shares"] or {}
        shares = ", ".join(f"{share:.0%} {name}" for name, share in known.items())
        words = f"{sum(wall['seconds'].values()):.1f} s ({shares})"
    return f"{words} for {cost['episode_seconds']['total']:.1f} s of episodes" if "episode_seconds" in cost else words


def _tokens(tokens: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    if tokens.get("policy_in"):
        cached = tokens["policy_cached"] / tokens["policy_in"]
        words.append(f"agent {quantity(tokens['policy_in'], 'token')} in ({cached:.0%} cached), {tokens['policy_out']:,} out")
    if tokens.get("user_in"):
        words.append(f"user simulator {quantity(tokens['user_in'], 'token')} in, {tokens['user_out']:,} out")
    if tokens.get("trained"):
        rate = tokens.get("trained_per_second")
        words.append(f"{quantity(tokens['trained'], 'token')} trained" + (f", {rate:,.0f} a second" if rate else ""))
    return words


def _cpu(cost: Mapping[str, Any]) -> list[str]:
    env: float | None = cost["env_cpu"]["seconds"] if "env_cpu" in cost else None
    words, workers = [] if env is None else [f"environments {env:.2f} s of CPU"], cost.get("workers")
    return (
        [*words, f"{workers['processes']} workers {workers['cpu_seconds']:.1f} s"]
        if workers and workers["cpu_seconds"]
        else words
    )


def _header(largest: int) -> list[str]:
    more = [f"pass@{largest}", f"pass^{largest}"] if largest > 1 else []
    return ["domain", "tasks", "pass@1 [95%]", *more, "floor"]


def _block(
    results: Mapping[str, Any], counts: Mapping[str, Any], report: Mapping[str, Any], largest: int, label: str
) -> list[list[str]]:
    floors: Mapping[str, Mapping[str, float | None]] = report["floor_by_domain"]
    rows = [
        [
            printable(f"{label}{domain}"),
            str(counts["tasks_by_domain"][domain]),
            *_numbers(section, largest),
            number(_highest(floors[domain])),
        ]
        for domain, section in results["by_domain"].items()
    ]
    if len(rows) > 1:
        rows.append([f"{label}macro", str(counts["tasks"]), *_numbers(results["macro"], largest), NONE])
    overall = [f"{label}overall", str(counts["tasks"]), *_numbers(results["overall"], largest)]
    return [*rows, [*overall, number(_highest(report["floor"]))]]


def _highest(floors: Mapping[str, float | None]) -> float | None:
    """The better of the policies that know nothing: what a result has to beat."""
    known = [value for value in floors.values() if value is not None]
    return max(known, default=None)


def _numbers(section: Mapping[str, Mapping[str, Any]], largest: int) -> list[str]:
    names = [f"pass@{largest}", f"pass^{largest}"] if largest > 1 else []
    return [interval(section.get("pass@1", {})), *(number(section.get(name, {}).get("value")) for name in names)]


def interval(estimate: Mapping[str, Any]) -> str:
    """An estimate as a table has it: `0.570 [0.472, 0.663]`."""
    ci95 = estimate.get("ci95")
    text = number(estimate.get("value"))
    return text if ci95 is None else f"{text} [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def number(value: float | None) -> str:
    """`0.570`, `-` where there is none."""
    return NONE if value is None else f"{value:.3f}"

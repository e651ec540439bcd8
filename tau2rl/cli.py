"""The command line: which commands there are, and how each kind of failure ends. No heavy library is imported here."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import tau2rl
from tau2rl import console
from tau2rl.commands import bench, config, convert, eval, grpo, machine, pipeline, results, rft, seed, select, sft, tasks
from tau2rl.commands.options import examples
from tau2rl.errors import RunIncomplete, UserError


class Boundary(TyperGroup):
    """Where exceptions end: a person's mistake exits 2, an incomplete run 1, an interruption 130, a bug 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            console.fail(error)
            code = 2
        except RunIncomplete as error:
            console.say(f"error: {error}")
            code = 1
        except KeyboardInterrupt:
            console.say("interrupted")
            code = 130
        except Exception as error:  # the last boundary: what arrives here is a bug, and people get a line, not a page
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise  # Typer's own: usage errors and exits, which carry their code
            console.crash(error, debug=bool(ctx.params.get("debug")))
            code = 1
        raise typer.Exit(code)


app = typer.Typer(
    name="tau2rl",
    cls=Boundary,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "tau2rl doctor",
        "tau2rl eval -c configs/eval/gold.yaml",
        "tau2rl eval --tokenizer DIR --url http://127.0.0.1:30000 --domains retail --num-samples 4",
        "tau2rl report outputs/eval/default",
    ),
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.", show_default=False)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="TAU2RL_DEBUG", help="Show the traceback of a bug.", show_default=False)
    ] = False,
) -> None:
    """Post-train small open models into multi-turn tool-use agents on tau2-bench."""
    if show_version:
        console.emit(f"tau2rl {tau2rl.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


DATA, TRAIN, EVALUATE, LOOK, SETUP = "Make data", "Train", "Evaluate", "Look at the benchmark", "Set up"

app.command(
    "seed",
    rich_help_panel=DATA,
    epilog=examples(
        "tau2rl seed --domains airline,retail,telecom",
        "tau2rl seed --domains mock --task-split synth-train --limit 500 --slip 0.3 --keep all",
        "tau2rl seed --domains retail --policy api --model gpt-4.1 --user-model gpt-4.1-mini --num-samples 4",
    ),
)(seed.demonstrate)
app.command(
    "rft-filter",
    rich_help_panel=DATA,
    epilog=examples(
        "tau2rl rft-filter --tokenizer DIR --url http://127.0.0.1:30000 --domains retail --num-samples 8",
        "tau2rl rft-filter --from outputs/eval/train-1 --from outputs/eval/train-2 --per-task 1 --exclude-no-op",
    ),
)(rft.rejection_sample)

app.command(
    "sft",
    rich_help_panel=TRAIN,
    epilog=examples(
        "tau2rl sft -c configs/laptop/sft.yaml",
        "tau2rl sft --model DIR --data outputs/seed/default/rows.jsonl --lr 1e-5 --steps 200 --device cuda",
        "tau2rl sft -c outputs/sft/default/config.json --resume",
    ),
)(sft.fine_tune)
app.command(
    "grpo",
    rich_help_panel=TRAIN,
    epilog=examples(
        "tau2rl grpo -c configs/laptop/grpo.yaml",
        "tau2rl grpo --model outputs/sft/default/checkpoints/final --domains retail --user-model scripted --device cuda",
    ),
)(grpo.reinforce)
app.command(
    "run",
    rich_help_panel=TRAIN,
    epilog=examples(
        "tau2rl run -c configs/laptop/pipeline.yaml",
        "tau2rl run -c configs/laptop/pipeline.yaml --limit 1",
        "tau2rl run -c configs/laptop/pipeline.yaml --seed 1 --name seed-1",
    ),
)(pipeline.run)

app.command(
    "convert",
    rich_help_panel=TRAIN,
    epilog=examples(
        "tau2rl convert --to hf outputs/grpo/default /models/trained",
        "tau2rl convert --to hf outputs/grpo/default/checkpoints/megatron/iter_0000049 /models/step-50 --origin /models/start",
        "tau2rl convert --to megatron /models/start /models/start_torch_dist --dry-run",
    ),
)(convert.convert)

app.command(
    "eval",
    rich_help_panel=EVALUATE,
    epilog=examples(
        "tau2rl eval -c configs/eval/gold.yaml",
        "tau2rl eval -c configs/eval/sglang.yaml --tokenizer DIR --domains airline,retail --num-samples 4",
        "tau2rl eval -c configs/eval/gold.yaml --limit 2 --inline --json",
        "tau2rl eval -c outputs/eval/default/config.json --resume",
    ),
)(eval.evaluate)
app.command(
    "select-checkpoint",
    rich_help_panel=EVALUATE,
    epilog=examples(
        "tau2rl select-checkpoint outputs/grpo/default",
        "tau2rl eval -c eval.yaml --set policy.checkpoint=CHECKPOINT --task-split train-select --name at-40",
        "tau2rl select-checkpoint outputs/eval/at-20 outputs/eval/at-40 --json",
    ),
)(select.choose)
app.command("report", rich_help_panel=EVALUATE, epilog=examples("tau2rl report outputs/eval/default"))(results.report)
app.command("compare", rich_help_panel=EVALUATE, epilog=examples("tau2rl compare outputs/eval/after outputs/eval/before"))(
    results.compare
)
app.add_typer(tasks.app, name="tasks", rich_help_panel=LOOK)
app.add_typer(config.app, name="config", rich_help_panel=SETUP)
app.command(
    "bench",
    rich_help_panel=SETUP,
    epilog=examples("tau2rl bench --list", "tau2rl bench env_cost rollouts_400", "tau2rl bench scale --json"),
)(bench.bench)
app.command(
    "doctor", rich_help_panel=SETUP, epilog=examples("tau2rl doctor", "tau2rl doctor --for eval -c configs/eval/sglang.yaml")
)(machine.doctor)
app.command("version", rich_help_panel=SETUP)(machine.version)


def main() -> None:
    """The `tau2rl` script."""
    app(prog_name="tau2rl")

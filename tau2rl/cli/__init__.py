"""The command line: which commands there are, and how each kind of failure ends. No heavy library is imported here."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import tau2rl
from tau2rl import console
from tau2rl.cli.lazy import Late, LateGroup, examples
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.settings import begin_in_utf8, collect_rarely

DATA, TRAIN, EVALUATE, SHARE, LOOK, SETUP = "Make data", "Train", "Evaluate", "Share", "Look at the benchmark", "Set up"
COMMANDS = {
    "seed": Late(
        where="tau2rl.cli.stages:seed",
        panel=DATA,
        summary="Write demonstrations: a policy that can solve the tasks plays them, and its conversations become dataset rows.",
        examples=(
            "tau2rl seed --domains airline,retail,telecom",
            "tau2rl seed --domains mock --task-split synth-train --limit 500 --noise-prob 0.3 --keep all",
            "tau2rl seed --domains retail --policy api --model gpt-4.1 --user-model gpt-4.1-mini --num-samples 4",
        ),
    ),
    "synth": Late(
        where="tau2rl.cli.synth:synth",
        panel=DATA,
        summary="Make tasks of a domain under its policy, and prove each of them; no model is asked.",
    ),
    "rft-filter": Late(
        where="tau2rl.cli.stages:rft_filter",
        panel=DATA,
        summary="Keep the attempts that solved their task: sampled here, or taken from earlier runs with `--from`.",
        examples=(
            "tau2rl rft-filter --tokenizer DIR --url http://127.0.0.1:30000 --domains retail --num-samples 8",
            "tau2rl rft-filter --from outputs/eval/train-1 --from outputs/eval/train-2 --per-task 1 --exclude-no-op",
        ),
    ),
    "sft": Late(
        where="tau2rl.cli.stages:sft",
        panel=TRAIN,
        summary="Train on conversations: whole ones, with a loss on what the assistant said and on nothing else.",
        examples=(
            "tau2rl sft -c configs/laptop/sft.yaml",
            "tau2rl sft --model DIR --data outputs/seed/default/rows.jsonl --lr 1e-5 --steps 200 --device cuda",
            "tau2rl sft -c outputs/sft/default/config.json --resume",
        ),
    ),
    "grpo": Late(
        where="tau2rl.cli.stages:grpo",
        panel=TRAIN,
        summary="Reinforce what works: play groups of attempts at training tasks and move the weights towards the better ones.",
        examples=(
            "tau2rl grpo -c configs/laptop/grpo.yaml",
            "tau2rl grpo --model outputs/sft/default/checkpoints/final --domains retail --user-model scripted --device cuda",
        ),
    ),
    "calibrate": Late(
        where="tau2rl.cli.calibrate:calibrate",
        panel=TRAIN,
        summary="Give each tier of turns the reward that success goes with, check it on a fifth of the tasks, "
        "and freeze it for `grpo`.",
        examples=(
            "tau2rl calibrate outputs/rft-filter/default --output recipe.json",
            "tau2rl grpo -c configs/laptop/grpo.yaml --estimator mt_gtpo --set reward.recipe=recipe.json",
        ),
    ),
    "run": Late(
        where="tau2rl.cli.stages:pipeline",
        panel=TRAIN,
        summary="Run a pipeline: each step a job, each trained model evaluated on held-out tasks, "
        "one chain of hashes from data to result.",
        examples=(
            "tau2rl run -c configs/laptop/pipeline.yaml",
            "tau2rl run -c configs/laptop/pipeline.yaml --limit 1",
            "tau2rl run -c configs/laptop/pipeline.yaml --seed 1 --name seed-1",
        ),
    ),
    "convert": Late(
        where="tau2rl.cli.convert:convert",
        panel=TRAIN,
        summary="Convert a checkpoint with slime's own tools, in slime's container. To Megatron's layout it takes a GPU.",
        examples=(
            "tau2rl convert --to hf outputs/grpo/default /models/trained",
            (
                "tau2rl convert --to hf outputs/grpo/default/checkpoints/megatron/iter_0000049 /models/step-50 "
                "--origin /models/start"
            ),
            "tau2rl convert --to megatron /models/start /models/start_torch_dist --dry-run",
        ),
    ),
    "eval": Late(
        where="tau2rl.cli.stages:evaluate",
        panel=EVALUATE,
        summary="Let a policy play tasks, and say how many it solves: pass@k and pass^k with their intervals and floors.",
        examples=(
            "tau2rl eval -c configs/eval/gold.yaml",
            "tau2rl eval -c configs/eval/sglang.yaml --tokenizer DIR --domains airline,retail --num-samples 4",
            "tau2rl eval -c configs/eval/gold.yaml --limit 2 --inline --json",
            "tau2rl eval -c outputs/eval/default/config.json --resume",
        ),
    ),
    "select-checkpoint": Late(
        where="tau2rl.cli.results:select_checkpoint",
        panel=EVALUATE,
        summary="Choose a checkpoint of one training run, by success on tasks that are neither trained on nor tested on.",
        examples=(
            "tau2rl select-checkpoint outputs/grpo/default",
            "tau2rl eval -c configs/laptop/eval.yaml --checkpoint CHECKPOINT --task-split synth-select --name at-40",
            "tau2rl select-checkpoint outputs/eval/at-20 outputs/eval/at-40 --json",
        ),
    ),
    "report": Late(
        where="tau2rl.cli.results:report",
        panel=EVALUATE,
        summary="Print the result of a run again, of whatever stage; of a pipeline, the table of its evaluations.",
        examples=(
            "tau2rl report outputs/eval/default",
            "tau2rl report outputs/pipeline/default --html report.html --md report.md",
        ),
    ),
    "compare": Late(
        where="tau2rl.cli.compare:compare",
        panel=EVALUATE,
        summary="Compare evaluations on the same tasks, task by task: each run minus each run behind it, with Holm's p-values.",
        examples=(
            "tau2rl compare outputs/eval/after outputs/eval/before",
            "tau2rl compare outputs/eval/grpo outputs/eval/rft outputs/eval/sft",
        ),
    ),
    "plan": Late(
        where="tau2rl.cli.compare:plan",
        panel=EVALUATE,
        summary="Say how many tasks, attempts and repetitions it takes to find a difference, "
        "compared task by task on the same tasks.",
        examples=(
            "tau2rl plan --effect 3",
            "tau2rl plan --effect 5 --tasks 40 --like outputs/eval/before --like outputs/eval/after",
            "tau2rl plan --effect 3 --run-sd 2 --repetitions 1,3,5",
        ),
    ),
    "select": Late(
        where="tau2rl.cli.select:select",
        panel=EVALUATE,
        summary="Choose one of k kept attempts at each task by a verifier, and say what that is worth: "
        "pass@1 < selected@k < pass@k.",
        examples=(
            "tau2rl select outputs/eval/default",
            "tau2rl select outputs/eval/default -k 4 --verifier rules --verifier my_pkg.judge:Judge",
            "tau2rl select outputs/eval/default --verifier judge --judge-model gpt-4.1",
            "tau2rl select outputs/rft-filter/default --fit verifier.json --verifier rules --verifier logprob",
            "tau2rl select outputs/eval/default --verifier rules --verifier verifier.json",
        ),
    ),
    "serve": Late(
        where="tau2rl.cli.serve:serve",
        panel=EVALUATE,
        summary="Serve a policy with best of k behind an OpenAI-compatible endpoint, until it is interrupted.",
        examples=(
            "tau2rl serve --model openai/NAME --api-base http://127.0.0.1:30000/v1 -k 4",
            "tau2rl serve --model openai/NAME --api-base http://127.0.0.1:30000/v1 --domain retail --journal commits.jsonl",
        ),
    ),
    "cost": Late(
        where="tau2rl.cli.cost:cost",
        panel=EVALUATE,
        summary="Say from how many tasks on training is cheaper than sampling more, and how that depends on the verifier.",
        examples=(
            "tau2rl cost --training-cost 16 --episode-cost 0.01 -k 4 --sampled-passes 0.29,0.60,4 --trained-success 0.36",
            "tau2rl cost --sampled outputs/eval/before --trained outputs/eval/after --training outputs/grpo/default",
        ),
    ),
    "blame": Late(
        where="tau2rl.cli.blame:blame",
        panel=EVALUATE,
        summary="Say who is to blame for every episode without success, agent, user, task or infra, "
        "and name the agent's own failures.",
        examples=("tau2rl blame outputs/eval/default", "tau2rl blame outputs/eval/default --judge-model gpt-4.1"),
    ),
    "show": Late(
        where="tau2rl.cli.show:show",
        panel=EVALUATE,
        summary="Show the episodes of a run: a list, or one conversation with its checks beside what was expected.",
        examples=(
            "tau2rl show outputs/eval/default --status truncated --sort turns --descending",
            "tau2rl show outputs/eval/default retail/17 --attempt 0 --tokens",
        ),
    ),
    "top": Late(
        where="tau2rl.cli.top:top",
        panel=EVALUATE,
        summary="Watch a run in the terminal: progress, success with its interval, servers, curves, the last conversations.",
        examples=("tau2rl top outputs/grpo/default", "tau2rl top outputs/eval/default --once"),
    ),
    "view": Late(
        where="tau2rl.cli.show:view",
        panel=EVALUATE,
        summary="Look at runs in a browser: results, conversations, tokens and curves, live while a run goes on.",
        examples=("tau2rl view", "tau2rl view outputs/eval/after outputs/eval/before"),
    ),
    "runs": Late(where="tau2rl.cli.runs:app", panel=EVALUATE, summary="List runs, and remove checkpoints that nothing needs."),
    "regrade": Late(
        where="tau2rl.cli.share:regrade",
        panel=EVALUATE,
        summary="Grade the kept conversations of an evaluation again, by other reward settings, into a new run folder.",
        examples=(
            "tau2rl regrade outputs/eval/default --exclude-quarantined",
            "tau2rl regrade outputs/eval/default --reward outcome --name default-outcome",
        ),
    ),
    "export": Late(
        where="tau2rl.cli.share:export",
        panel=SHARE,
        summary="Write the conversations of a run in the layout of another tool: tau2, trl, hf, inspect or atif.",
        examples=(
            "tau2rl export outputs/eval/default --to tau2",
            "tau2rl export outputs/seed/default --to hf --license apache-2.0 --output my-dataset",
        ),
    ),
    "import": Late(
        where="tau2rl.cli.share:import_",
        panel=SHARE,
        summary="Make a run folder of another program's results, so that `report`, `compare`, `show` and `view` open them.",
        examples=("tau2rl import data/simulations/retail.json", "tau2rl report outputs/eval/mine outputs/eval/retail"),
    ),
    "card": Late(
        where="tau2rl.cli.share:card",
        panel=SHARE,
        summary="Write a Hugging Face model card from what the runs recorded, and name what no run shows.",
        examples=(
            "tau2rl card outputs/pipeline/default --repo ORG/NAME",
            "tau2rl card outputs/grpo/default --eval outputs/eval/final --license apache-2.0",
        ),
    ),
    "push": Late(
        where="tau2rl.cli.share:push",
        panel=SHARE,
        summary="Upload a checkpoint with its card to the Hugging Face hub. "
        "By default it uploads nothing and says what it would.",
        examples=("tau2rl push outputs/pipeline/default --repo ORG/NAME",),
    ),
    "bench": Late(
        where="tau2rl.cli.bench:bench",
        panel=SETUP,
        summary="Measure what this machine gets out of the environments, the rollouts, the filter and the local trainer.",
        examples=("tau2rl bench --list", "tau2rl bench env_cost rollouts_400", "tau2rl bench scale --json"),
    ),
    "doctor": Late(
        where="tau2rl.cli.doctor:doctor",
        panel=SETUP,
        summary="Say what this machine has and lacks, with a hint for each gap.",
        examples=("tau2rl doctor", "tau2rl doctor --for eval -c configs/eval/sglang.yaml"),
    ),
    "version": Late(
        where="tau2rl.cli.doctor:version",
        panel=SETUP,
        summary="Print the versions of tau2rl, of Python and of the libraries that a result depends on.",
    ),
    "tasks": Late(where="tau2rl.cli.tasks:app", panel=LOOK, summary="Look at the benchmark's tasks."),
    "chat": Late(where="tau2rl.cli.chat:app", panel=LOOK, summary="Look at what a chat template writes."),
    "data": Late(where="tau2rl.cli.data:app", panel=LOOK, summary="Look at, check, count, mix and convert rows of datasets."),
    "config": Late(where="tau2rl.cli.config:app", panel=SETUP, summary="Look at settings."),
}


class Boundary(TyperGroup):
    """Where exceptions end: a person's mistake exits 2, an incomplete run 1, an interruption 130, a bug 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with console.plain_warnings():
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
            if hasattr(error, "possibilities"):  # Typer's own for an unknown option, whose class is not public
                console.fail(no_such_option(error))
                raise typer.Exit(2) from None
            if hasattr(error, "param_type"):  # its own for an argument that is missing
                console.fail(missing_argument(error))
                raise typer.Exit(2) from None
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise  # Typer's own: usage errors and exits, which carry their code
            console.crash(error, debug=bool(ctx.params.get("debug")))
            code = 1
        raise typer.Exit(code)


def no_such_option(error: Any) -> UserError:
    """An option that does not exist, with the nearest one: by its whole name, else by the last part of a dotted one."""
    context, name = error.ctx, str(error.option_name)
    params: list[Any] = context.command.get_params(context) if context else []
    names: list[str] = [
        opt for param in params if not getattr(param, "hidden", False) for opt in (*param.opts, *param.secondary_opts)
    ]
    keys = {opt.replace("_", "-"): opt for opt in names} | {opt.rpartition(".")[2].replace("_", "-"): opt for opt in names}
    asked = name.replace("_", "-")
    near = difflib.get_close_matches(asked, [key for key in keys if key[:2] == "--"], n=1, cutoff=0.75)
    near = near or difflib.get_close_matches(asked.lstrip("-").rpartition(".")[2], keys, n=1, cutoff=0.75)
    command = context.command_path if context else "tau2rl"
    where = "--help-all" if "--help-all" in names else "--help"
    return UserError(
        f"no such option `{name}`", hint=f"did you mean `{keys[near[0]]}`?" if near else f"`{command} {where}` has every option"
    )


def missing_argument(error: Any) -> UserError:
    """An argument that is missing: what it is, and how the command is called."""
    param, command = error.param, error.ctx.command
    name = str(param.metavar or param.name.upper()) if param.param_type_name == "argument" else str(param.opts[0])
    hints = ["`tau2rl runs` lists the runs that there are"] if name.startswith("RUN_DIR") else []
    of_it = [line for line in (command.epilog or "").splitlines() if f"{line} ".startswith(f"{error.ctx.command_path} ")]
    hints += [f"for example `{line}`" for line in of_it[:1]]
    message = f"`{error.ctx.command_path}` needs {name}" + (f": {param.help.removesuffix('.')}" if param.help else "")
    return UserError(message, hint="\n".join(hints) or f"`{error.ctx.command_path} --help` says more")


class CommandLine(Boundary, LateGroup):
    """The boundary around `COMMANDS`."""

    late = COMMANDS


app = typer.Typer(
    name="tau2rl",
    cls=CommandLine,
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


def main() -> None:
    """The `tau2rl` script."""
    begin_in_utf8()
    collect_rarely()
    app(prog_name="tau2rl")

"""The command line: subcommands, and exceptions turned into one line and an exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sercli import __version__, signals, streams
from sercli.commands import (
    bench,
    coco_detect,
    compare,
    data,
    equiv_score,
    export,
    features,
    knn,
    linear_eval,
    look,
    pretrain,
    recipe,
    report,
    reproduce,
    robustness,
    runs,
    segment,
)
from sercli.engine.processes import UNDER_AGENT, under_agent
from sercli.errors import Interrupted, Preempted, SerError, UserError, about_path, exhausted
from sercli.visible import one_line, say

# What these make stands in files; of the others standard output is all that there is.
_MAKE_FILES = frozenset(
    {
        "pretrain",
        "linear-eval",
        "knn",
        "robustness",
        "coco-detect",
        "segment",
        "equiv-score",
        "look",
        "features",
        "export",
        "reproduce",
        "report",
    }
)

# Typer raises the errors of click, in newer versions of its own copy: UsageError of either.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="ser",
    help="Does this model know where things are, and what did that cost? "
    "Pretrain, evaluate and compare self-supervised ViTs with soft equivariance regularization.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("pretrain")(pretrain.pretrain)
app.command("linear-eval")(linear_eval.linear_eval)
app.command("knn")(knn.knn)
app.command("robustness")(robustness.robustness)
app.command("coco-detect")(coco_detect.coco_detect)
app.command("segment")(segment.segment)
app.command("equiv-score")(equiv_score.equiv_score)
app.command("look")(look.look)
app.command("features")(features.features)
app.command("export")(export.export)
app.command("compare")(compare.compare)
app.add_typer(runs.app, name="runs")
app.command("reproduce")(reproduce.reproduce)
app.command("report")(report.report)
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"ser {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in the line).")
    ] = False,
) -> None:
    """Options of every command."""
    del version, debug  # --version acts in its callback; --debug is taken out in main


def main() -> NoReturn:
    """Run a command; the exit statuses are those of `sercli.errors`."""
    streams.install()
    # Threads that wait shall sleep, not spin: on a busy machine spinning halves the speed or worse.
    # OpenMP reads this when torch loads it, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Likewise: what torch's C++ warns of where another process is gone; ser says it in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments = [argument for argument in arguments if argument != "--debug"]
    else:
        _soften_warnings()
    try:
        # One that came while signals were held is raised here: it ends this like any other.
        signals.install()
        _follow_who_started_this()
        _refuse_empty(arguments)
        status = _run(arguments)
    except _UsageError as error:
        if not arguments or not error.format_message():  # no arguments: help, as an error
            error.show()
            sys.exit(error.exit_code)
        # Newer versions of Typer put the kind of error in front of what was received.
        message = error.format_message().replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        command = "ser" if context is None else context.command_path
        stop = "" if message.endswith((".", "?", "!")) else "."
        _end(f"{message}{stop} See `{command} --help`.", error.exit_code)
    except BaseException as error:
        signals.settle()
        ended = signals.as_stop(error, "stopped by a signal") or error
        if isinstance(ended, OSError | ValueError | MemoryError | RuntimeError):
            ended = (
                exhausted(ended, " ".join(["ser", *arguments[:1]]))
                or about_path(ended, arguments)
                or ended
            )
        if debug or not isinstance(ended, SerError):
            raise
        # A worker of --nproc leaves it to its parent to say that it was stopped.
        silent = under_agent() and isinstance(ended, Preempted | Interrupted)
        _end("" if silent else str(ended), ended.exit_status)
    lost = streams.lost()
    if lost is not None and not _MAKE_FILES.intersection(arguments[:1]):
        _end(f"standard output cannot be written: {lost.strerror}; what is missing is lost", 3)
    signals.ignore()
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    try:
        status = app(arguments, prog_name="ser", standalone_mode=False)
    except typer.Abort as abort:  # typer's answer to EOFError, which no key causes here
        raise abort.__cause__ or abort from None
    if status == 130:  # typer turns Ctrl-C, and what is raised like it, into this
        raise KeyboardInterrupt
    return status or 0


def _follow_who_started_this() -> None:
    """End as by SIGTERM when the parent does that started this as one of several processes."""
    parent = os.getppid()
    followed = os.environ.pop(signals.FOLLOWED, "")  # not what this process starts itself
    if under_agent():
        signals.follow(int(os.environ[UNDER_AGENT]))
    elif {"TORCHELASTIC_RUN_ID", "RANK"} <= set(os.environ):  # torchrun's own agent
        signals.follow(parent)
    elif followed.isdecimal():  # `ser reproduce`
        signals.follow(int(followed))


def _soften_warnings() -> None:
    """Warnings of libraries in one line each, and none of what they are going to change.

    Those are for us: tests fail on them. Filters of `python -W` come first.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, append=True)
    warnings.formatwarning = _short_warning


def _short_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    del line
    place = f"{category.__name__}, {Path(filename).name}:{lineno}"
    return one_line(f"warning: {message} ({place})") + "\n"


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse what a shell makes of a variable that is not set: `--data "$DATA"`.

    Raises:
        UserError: An argument, or an option's value, is empty; it would count as not given.
    """
    for place, argument in enumerate(arguments):
        if not argument or (argument.startswith("--") and argument.find("=") == len(argument) - 1):
            before = f" behind {arguments[place - 1]}" if place and not argument else ""
            raise UserError(
                f"{argument or 'an argument'}{before} is empty",
                "nothing here takes an empty text",
                "is a variable of the shell not set?",
            )


def _end(message: str, status: int) -> NoReturn:
    if message:
        say(one_line(f"ser: {message}"), err=True)
    signals.ignore()
    sys.exit(status)

"""The ``slimse`` command."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from .bench import bench
from .demo import demo
from .doctor import doctor
from .enhance import enhance
from .evaluate import evaluate
from .export import export
from .live import live
from .profile import profile
from .report import report
from .serve import serve
from .terminal import be_quiet, close_streams, end_interrupted, exit_on_signals, prepare_streams, say
from .train import train

_USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError)
"""What the package raises for bad input, with a message that says what is wrong and what was expected."""


class _Commands(TyperGroup):
    """Turns errors of the user and of the system into one line on standard error; others keep their traceback.

    Exit status: 2 for the former, 1 for the latter, 128 and the number of the signal that ended the command.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # Help, which is printed before a command runs; errors of files have a name.
            if error.filename is not None or error.strerror is None:
                raise
            say(f"standard output cannot be written: {error.strerror}")
            sys.exit(1)
        finally:
            close_streams()

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Here, as click has words and a status of its own for it.
            end_interrupted()
        except (*_USER_ERRORS, OSError) as error:
            if ctx.params["traceback"]:
                raise
            if isinstance(error, OSError) and error.filename is None and error.strerror is not None:
                say(f"standard output cannot be written: {error.strerror}")
            else:
                say(str(error))
            ctx.exit(2 if isinstance(error, _USER_ERRORS) else 1)


class _App(typer.Typer):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments ask for; a signal ends it cleanly from the first moment on."""
        with exit_on_signals():
            try:
                return super().__call__(*args, **kwargs)
            except KeyboardInterrupt:
                end_interrupted()


app = _App(
    cls=_Commands,
    help="Real-time speech enhancement with input-adaptive compute.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Rich takes as long to import as all else that a usage error needs.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slimse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors alone: no progress, no lines per file.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Real-time speech enhancement with input-adaptive compute."""
    be_quiet(quiet)


for command in (enhance, live, serve, demo, evaluate, report, profile, export, train, bench, doctor):
    app.command()(command)

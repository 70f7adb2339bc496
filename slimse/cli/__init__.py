"""The ``slimse`` command."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .bench import bench
from .demo import demo
from .doctor import doctor
from .enhance import enhance
from .evaluate import evaluate
from .profile import profile
from .report import report
from .train import train

_USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError)
"""What the package raises for bad input, with a message that says what is wrong and what was expected."""


class _Commands(TyperGroup):
    """Turns errors of the user into one line on standard error and exit status 2; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _USER_ERRORS as error:
            if ctx.params["traceback"]:
                raise
            typer.echo(f"slimse: {error}", err=True)
            ctx.exit(2)


app = typer.Typer(
    cls=_Commands,
    help="Speech enhancement whose cost follows the difficulty of the sound.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """Speech enhancement whose cost follows the difficulty of the sound."""


for command in (enhance, demo, evaluate, report, profile, train, bench, doctor):
    app.command()(command)

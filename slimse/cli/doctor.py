"""``slimse doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    recheck: Annotated[bool, typer.Option("--recheck", help="Check GPU kernels again.")] = False,
) -> None:
    """Say what runs on this machine, and why something does not.

    It also tells whether the compiled path and the kernels are ready.
    """
    from rich.console import Console
    from rich.table import Table

    from ..diagnosis import examine, forget_verdicts

    if recheck:
        forget_verdicts()
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table("what", "state", title="slimse doctor")
    for section, values in report.items():
        table.add_section()
        for name, value in values.items():
            table.add_row(f"{section}: {name}", str(value))
    Console().print(table)

"""Options of the scripts that run weights on pairs of noisy and clean files."""

from __future__ import annotations

import argparse
from pathlib import Path

from slimse.hub import DEFAULT


def pairs_parser(description: str) -> argparse.ArgumentParser:
    """A parser of both folders and the weights; ``description`` is a script's docstring, of which help shows a line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("noisy", type=Path, help="folder of noisy files")
    parser.add_argument("clean", type=Path, help="folder of clean files of the same names")
    parser.add_argument("--weights", default=DEFAULT, help="bundled weights, or a file")
    return parser

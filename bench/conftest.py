"""Options of the benchmarks."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: everything on a CPU too."""
    parser.addoption("--full", action="store_true", help="all batches and number formats, with compiled baselines")

"""Options of the benchmarks."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: everything on a CPU too."""
    parser.addoption("--full", action="store_true", help="all batches and number formats, with compiled baselines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A warning does not end a measurement: baselines are compiled and exported by others' code."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))

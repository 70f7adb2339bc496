"""What several test modules share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded() -> None:
    """The same numbers in every run; small operations are slower on several threads."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def shared() -> Path:
    """The folder beside the repository with real recordings and reference weights."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name} beside the repository: real recordings and reference weights are there")
    return SHARED


@pytest.fixture(name="relative_error")
def relative_error_fixture() -> object:
    """`slimse.testing.relative_error`, under a name that tests need not import."""
    # Not before tests of kernels have asked for Triton's interpreter.
    from slimse.testing import relative_error

    return relative_error

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


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``expected``; 0 where both are the same."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


@pytest.fixture(name="relative_error")
def relative_error_fixture() -> object:
    """`relative_error`, for modules that cannot import this one."""
    return relative_error

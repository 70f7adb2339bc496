"""Ahead-of-time builds for GPUs that need not be there; Triton's interpreter is off in the process that compiles."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """What `bench/resources.py --quick` compiled."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "bench" / "resources.py"), "--quick", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_spill_no_overflow_and_tensor_cores_where_they_are_meant(rows):
    assert [row for row in rows if row["wrong"]] == []


def test_every_kernel_compiles_for_every_target(rows):
    launched = set()
    for path in (ROOT / "kernels").glob("*.py"):
        launched |= {f"{path.stem}.{name}" for name in re.findall(r"^def _(\w+_kernel)\(", path.read_text(), re.M)}
    assert len(launched) >= 6
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert {row["kernel"] for row in rows if row["target"] == target} == launched, target
    assert {row["dtype"] for row in rows} == {"fp32", "tf32", "bf16", "fp16"}


def test_half_precision_and_tf32_use_the_instructions_of_their_chip(rows):
    families = {"sm_80": ("mma.sync",), "sm_90": ("wgmma", "mma.sync"), "sm_100": ("tcgen05", "mma.sync")}
    for target, names in families.items():
        kinds = {row["instruction"] for row in rows if row["target"] == target and row["dtype"] != "fp32"} - {"none"}
        assert all(kind.startswith(names) for kind in kinds), kinds
        assert any(kind.startswith(names[0]) for kind in kinds), kinds

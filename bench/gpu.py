"""Check every kernel against its twin and a tick of `StreamBatch` as a CUDA graph, time all, and write the report.

    python bench/gpu.py --out DIR [--tune] [--minutes 8]

needs a CUDA (or ROCm) device, Triton and this package installed. ``DIR`` gets ``checks.json``, ``times.json``,
``report.md`` and its plots, and with ``--tune`` a table of faster launch parameters of the blocks, with which it goes
on, and which the package uses once it lies in ``slimse/ops/tuned``. It exits with 1 if a kernel is further from float64
than it may be. What there was no time for is called not measured; the same command again goes on where it was stopped,
unless device, versions or code have changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import report
import torch
from cases import BLOCKS, MODEL, OPS, UFS, Case, Setup, describe
from checks import CHECKS, LIMITS, TICK, check_all, distance

from slimse.ops import tuning

KINDS = ("bf16", "tf32", "fp32")
SIMPLE, COMPILED = ("slimse", "sliced", "full", "masked"), ("compiled",)
CASES = (*MODEL, *BLOCKS, *OPS)
PASSES = (
    (SIMPLE, (64,), KINDS, CASES),
    (COMPILED, (64,), ("bf16",), BLOCKS),
    (SIMPLE, (16, 1), KINDS, CASES),
    (COMPILED, (64,), KINDS, (*BLOCKS, *OPS, *MODEL)),
    (COMPILED, (16, 1), KINDS, (*BLOCKS, *OPS, *MODEL)),
)
"""Implementations, batches, number formats and cases in the order of their turn: compiling takes longest, a network's
longest of all."""
STEPS = {"block_t": (32, 64, 128), "block_h": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3, 4)}
"""Launch parameters that are tuned, and their candidates."""


def measure(call: Callable[[], Any], rounds: int = 20) -> dict[str, float]:
    """Seconds of one call, by the GPU's clock: median and the 20th and 80th percentile.

    Slow calls have fewer rounds, down to five, so that all take a second or so.
    """
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.monotonic()
        call()
        torch.cuda.synchronize()
    rounds = max(min(rounds, int(1 / (time.monotonic() - start))), 5)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    seconds = sorted(begin.elapsed_time(end) / 1e3 for begin, end in marks)
    return {"median": statistics.median(seconds), "p20": seconds[rounds // 5], "p80": seconds[-1 - rounds // 5]}


def points(seconds: float) -> Iterator[tuple[Case, Setup, str]]:
    """Case, setup and implementation of all times, the most telling first."""
    seen = set()
    for implementations, batches, kinds, cases in PASSES:
        for batch, kind, case, uf in itertools.product(batches, kinds, cases, UFS):
            for implementation in implementations:
                point = (case.label, batch, kind, uf, implementation)
                if point not in seen:
                    seen.add(point)
                    yield case, Setup(uf, batch, seconds, kind, "cuda"), implementation


def needed(case: Case, implementation: str) -> float:
    """Seconds that must be left to begin: a compiler cannot be stopped half way."""
    if implementation != "compiled":
        return 5.0
    return 90.0 if case in MODEL else 20.0


def title(case: Case, setup: Setup, implementation: str) -> str:
    """Name of an entry."""
    return f"{case.label}, UF {setup.uf or 'mixture'}, batch {setup.batch}, {setup.kind}, {implementation}"


@torch.inference_mode()
def time_case(case: Case, setup: Setup, wanted: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Times of some implementations as pytest-benchmark writes them, and notes on what failed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setup.kind == "tf32"
    torch.manual_seed(0)
    entries, failures, calls = [], [], None
    for implementation in wanted:
        name = title(case, setup, implementation)
        try:
            if calls is None:
                calls, work = case.build(setup)
            if implementation in calls:
                info = describe(case, setup, implementation, work)
                entries.append({"name": name, "stats": measure(calls[implementation]), "extra_info": info})
        except Exception as error:  # Not enough memory, say. The report says which; the others are worth having.
            failures.append(f"- {name} failed: {type(error).__name__}: {str(error)[:200]}")
    return entries, failures


def time_all(entries: list[dict[str, Any]], deadline: float, seconds: float, save: Callable[[], None]) -> list[str]:
    """Add to ``entries`` all times that are missing; give notes on what failed, and on what is missing still.

    ``save`` is called every few seconds.
    """
    known, failures, left, saved = {entry["name"] for entry in entries}, [], 0, time.monotonic()
    for (case, setup), group in itertools.groupby(points(seconds), lambda point: point[:2]):
        wanted = [one for _, _, one in group if title(case, setup, one) not in known]
        in_time = [one for one in wanted if time.monotonic() + needed(case, one) <= deadline]
        left += len(in_time) < len(wanted)
        if in_time:
            more, failed = time_case(case, setup, in_time)
            entries += more
            failures += failed
        if time.monotonic() > saved + 10:
            save()
            saved = time.monotonic()
    notes = [f"{left} cases were not measured: the time was up. The same command again goes on."] if left else []
    return [*notes, *failures]


def tune(table: dict[str, Any], deadline: float, seconds: float, save: Callable[[], None]) -> list[str]:
    """Add to ``table``, one of `slimse.ops.tuning`, the fastest launch parameters of what it lacks; say what failed.

    One parameter after the other, for the sum of the times at UF 1 and 0.25, batch 64.
    """
    failures = []
    for case, kind in itertools.product(BLOCKS, ("bf16", "tf32")):
        module = importlib.import_module(f"slimse.kernels.{case.op}")
        select, override, seen = module.select_config, {}, {}

        def choose(shape: Any, dtype: Any, precision: str, capability: int) -> Any:
            default = select(shape, dtype, precision, capability)  # noqa: B023
            seen.update(key=tuning.key(case.op, *shape[1:], dtype, precision), default=default)  # noqa: B023
            return dataclasses.replace(default, **override)  # noqa: B023

        if time.monotonic() > deadline:
            break
        setups = [Setup(uf, 64, seconds, kind, "cuda") for uf in (1.0, 0.25)]
        calls = [case.build(setup)[0]["slimse"] for setup in setups]
        module.select_config = choose
        try:
            expected = [call() for call in calls]
            # With an entry in the table nothing is chosen; one without parameters says that none are better.
            known = not seen or seen["key"] in table
            if not known and _descend(calls, expected, override, seen["default"], LIMITS[kind], deadline):
                best = dataclasses.replace(seen["default"], **override)
                table[seen["key"]] = dataclasses.asdict(best) if override else {}
                save()
        except Exception as error:  # The other blocks are worth tuning.
            failures.append(f"- tuning {case.label} in {kind} failed: {type(error).__name__}: {str(error)[:200]}")
        finally:
            module.select_config = select
    return failures


def _descend(
    calls: list[Callable[[], Any]],
    expected: list[torch.Tensor],
    override: dict[str, int],
    default: Any,
    limit: float,
    deadline: float,
) -> bool:
    """Change ``override``, which the calls read, to what makes them fastest; whether there was time for all of it."""

    def total() -> float:
        if distance([call() for call in calls], [out.double() for out in expected]) > limit:
            raise ValueError("another result")
        return sum(measure(call, 10)["median"] for call in calls)

    best = total()
    for name, values in STEPS.items() if default.fused else ():
        kept = dict(override)
        for value in values:
            if time.monotonic() > deadline:
                return False
            override[name] = value
            try:
                now = total()
            except Exception:
                # A tile that does not compile, does not fit this GPU or gives another result is no candidate.
                continue
            if now < best:
                best, kept = now, dict(override)
        override.clear()
        override.update(kept)
    return True


def machine() -> dict[str, str]:
    """What results depend on: device, versions, and a digest of the code and its tables of launch parameters."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(file for folder in ("kernels", "slimse", "bench") for file in (root / folder).rglob("*.py"))
    files += sorted(tuning.FOLDER.glob("*.json"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    triton = importlib.import_module("triton").__version__
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton, "code": code}


def load(path: Path, **same: Any) -> dict[str, Any]:
    """What was written by `save`, or nothing if ``same`` has changed since."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return found if all(found.get(key) == value for key, value in same.items()) else {}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, all of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def run(out: Path, start: float, end: float, seconds: float, tuned: bool) -> int:
    """Check, tune, time and report; the exit status."""
    here, notes, table = machine(), [], {}
    checks = [row for row in load(out / "checks.json", machine=here).get("checks", []) if row["within"]]
    done = [(row["op"], row["kind"]) for row in checks]
    wanted = [check for check in CHECKS if done.count(check) < (1 if check == TICK or "diagonal" in check[0] else 2)]
    checks = [row for row in checks if (row["op"], row["kind"]) not in wanted]
    checks += check_all(wanted, start + 0.5 * (end - start))
    save(out / "checks.json", {"machine": here, "checks": checks})
    if tuned:
        path = out / tuning.table_name(torch.device("cuda"))
        table = load(path, machine=here) or {"machine": here}
        save(path, table)
        tuning.use(out)
        notes = tune(table, start + 0.6 * (end - start), seconds, lambda: save(path, table))
        tuning.use(out)
    kept = load(out / "times.json", machine=here, table=table, seconds=seconds)
    entries = kept.get("benchmarks", [])

    def save_times() -> None:
        content = {"benchmarks": entries, "machine": here, "table": table, "seconds": seconds}
        save(out / "times.json", content)

    try:
        notes += time_all(entries, end, seconds, save_times)
    finally:
        save_times()
    bad = [row for row in checks if not row["within"]]
    versions = f"torch {here['torch']}, triton {here['triton']}"
    summary = f"{versions}. {len(checks) - len(bad)} of {len(checks)} checks against float64 are within their limits."
    print(report.write(entries, out, [summary, *(f"- FAILED: {json.dumps(row)}" for row in bad), *notes]))
    return 1 if bad else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check and time the kernels on this machine's GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checks, times and the report")
    parser.add_argument("--tune", action="store_true", help="look for faster launch parameters of the blocks")
    parser.add_argument("--minutes", type=float, default=8.0, help="time in all")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none; nothing was measured", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed; nothing was measured", file=sys.stderr)
        return 2
    start = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return run(arguments.out, start, start + 60 * arguments.minutes - 15, arguments.seconds, arguments.tune)


if __name__ == "__main__":
    sys.exit(main())

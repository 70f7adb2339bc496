"""Check and time every kernel on this machine's GPU in a few minutes; `bench/gpu_run.sh` does it on a bare machine.

    python -m bench.gpu --out DIR [--minutes 9.5]    # checks, times and report into DIR/<device>
    python -m bench.gpu --out DIR --rehearse         # the same steps on a machine without a GPU; no time means anything

The steps, one after the other, each cut off when its share of the time is used up: ceilings of the device; checks
against float64 while all kernels are compiled, in many processes; times, in one process, in the order of `PASSES`;
profiles of five kernels and a memory check where NVIDIA's tools are there; checks that had no time. All results are
lines of JSON that are written as they come, so that none is lost: the same command again goes on where it was stopped,
and `--report` makes the report of what there is. It exits with 1 if a kernel is wrong or fails to run.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.cases import BLOCKS, MODEL, OPS, RECURRENT, UFS, Calls, Case, compiled, describe
from bench.checks import CHECKS, checks_of
from bench.device import Device, Gpu, Rehearsal, ceilings, measure
from bench.points import Setup
from bench.roofline import Ceilings, Work
from bench.scenarios import ROUTER, TICK, TRAINING
from bench.session import SHARES, Session, append, lines

ROOT = Path(__file__).resolve().parents[1]
NETWORK = (*MODEL, *BLOCKS)
PAIR, COMPILED, ALL = ("slimse", "sliced"), ("compiled",), ("slimse", "sliced", "compiled", "full", "masked")
PASSES: tuple[tuple[tuple[str, ...], tuple[Case, ...], tuple[str, ...], tuple[int, ...], tuple[Any, ...]], ...] = (
    (PAIR, NETWORK, ("bf16",), (64,), (1.0, 0.25)),
    (COMPILED, NETWORK, ("bf16",), (64,), (1.0, 0.25)),
    ((*PAIR, "masked"), NETWORK, ("bf16",), (64,), (None, 0.125, 0.5)),
    (COMPILED, NETWORK, ("bf16",), (64,), (0.125, 0.5)),
    (PAIR, tuple(RECURRENT[:2]), ("bf16", "fp16"), (64,), tuple(UFS)),
    (PAIR, tuple(RECURRENT[2:]), ("bf16", "fp16"), (32,), tuple(UFS)),
    (("slimse", "masked"), tuple(ROUTER), ("tf32",), (64,), (None,)),
    (("slimse", "masked"), tuple(TRAINING), ("bf16",), (16,), (None,)),
    (PAIR, tuple(TICK), ("tf32",), (1_000, 10_000, 100_000), (None,)),
    (PAIR, NETWORK, ("tf32", "tf32x3", "fp32"), (64,), (1.0, 0.25)),
    ((*PAIR, *COMPILED), NETWORK, ("bf16",), (1, 16), (1.0, 0.25)),
    (ALL, (*OPS, *NETWORK), ("bf16", "tf32", "fp32"), (64,), tuple(UFS)),
    (ALL, (*OPS, *NETWORK), ("bf16", "tf32", "fp32"), (1, 16), tuple(UFS)),
)
"""Implementations, cases, number formats, batches and UFs, in the order of their value."""
PROFILED = (("encoder 3", 1.0), ("encoder 4", 1.0), ("decoder 3", 1.0), ("decoder 1", 0.25), ("slim_gru", 1.0))
FEW = 4
"""Times of a short rehearsal."""


def points(setup: Setup, few: bool = False) -> Iterator[tuple[Case, Setup, str]]:
    """Case, setup and implementation of all times, the most telling first; ``setup`` has the largest batch."""
    seen = set()
    for implementations, cases, kinds, batches, ufs in PASSES:
        for batch, kind, case, uf in itertools.product(batches, kinds, cases, ufs):
            for implementation in implementations:
                at = replace(setup, uf=uf, batch=min(batch, setup.batch), kind=kind)
                point = (case.label, at, implementation)
                if point not in seen and not (few and (len(seen) == FEW or case in NETWORK[:1])):
                    seen.add(point)
                    yield case, at, implementation


def title(case: Case, setup: Setup, implementation: str) -> str:
    """Name of an entry."""
    return f"{case.label}, UF {setup.uf or 'mixture'}, batch {setup.batch}, {setup.kind}, {implementation}"


def prepare(setup: Setup) -> None:
    """Settings of torch for a number format: the baselines' fastest, and the same numbers in every process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setup.kind == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)


def several(case: Case, setup: Setup, device: Device) -> tuple[list[Calls], Work]:
    """The calls of a case on as many inputs of their own as it takes to get them out of the cache; and its work."""
    first, work = case.build(setup)
    size = work.bytes(setup.kind)
    count = min(8, -(-3 * device.cache // int(size))) if size else 1
    return [first, *(case.build(setup)[0] for _ in range(count - 1))], work


@torch.no_grad()
def time_case(
    device: Device, case: Case, setup: Setup, wanted: Iterable[str], known: Ceilings | None
) -> Iterator[dict[str, Any]]:
    """Times of some implementations, as pytest-benchmark writes them, or what failed."""
    prepare(setup)
    built = None
    for implementation in wanted:
        name = title(case, setup, implementation)
        yield {"begin": name}
        try:
            calls, work = built = built or several(case, setup, device)
            mine = [one[implementation] for one in calls if implementation in one]
            mine = compiled(case, setup, calls) if implementation == "compiled" else mine
            if mine:
                stats = measure(device, mine, captured=case.captured)
                info = describe(case, setup, implementation, work, device=device.name, ceilings=known)
                yield {"name": name, "stats": stats, "extra_info": info}
        except Exception as error:  # Not enough memory, say. The report says which; the others are worth having.
            yield {"name": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}


def time_all(device: Device, folder: Path, until: float, setup: Setup, few: bool) -> None:
    """Measure all that is missing. What was begun before and not ended broke its process, and is left out."""
    path = folder / "times.jsonl"
    known = {row.get("name", row.get("begin")) for row in lines(path)}
    limits = read_ceilings(folder)
    for (case, at), group in itertools.groupby(points(setup, few), lambda point: point[:2]):
        wanted = [one for _, _, one in group if title(case, at, one) not in known]
        if time.time() > until:
            return
        for row in time_case(device, case, at, wanted, limits):
            append(path, row)
        if wanted:
            gc.collect()
            device.release()


@torch.no_grad()
def warm(device: Device, case: Case, setup: Setup, implementations: Iterable[str]) -> None:
    """Call some implementations once, so that what they compile is on disk for the process that times them."""
    prepare(setup)
    calls, _ = case.build(setup)
    for implementation in implementations:
        for call in compiled(case, setup, [calls]) if implementation == "compiled" else [calls.get(implementation)]:
            if call is not None:
                call()
    device.synchronize()


def tasks(setup: Setup, few: bool) -> list[tuple[Any, ...]]:
    """Checks of an op in a number format, and points to warm up, as they should be begun."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for case, at, implementation in points(setup, few):
        if at.batch <= 1000 and implementation in ("slimse", "compiled"):
            groups.setdefault((case, at, implementation == "compiled"), []).append(implementation)
    points_ = [(case, at, found) for (case, at, _), found in groups.items()]
    checks = [(op, kind) for op, kind in CHECKS if not few or (op, kind) == ("slim_linear_glu", "fp32")]
    first = len(list(itertools.product(NETWORK, (1.0, 0.25))))
    by_kind = [[check for check in checks if check[1] == kind] for kind in ("bf16", "fp16", "tf32", "fp32", "tf32x3")]
    return [
        *points_[:first], *by_kind[0], *points_[first : 4 * first], *itertools.chain(*by_kind[1:]),
        *points_[4 * first :],
    ]  # fmt: skip


def work_off(device: Device, folder: Path, until: float, setup: Setup, few: bool, only_checks: bool) -> None:
    """Take one task after the other that no other process has taken."""
    claims = folder / ("claims-more" if only_checks else "claims")
    claims.mkdir(exist_ok=True)
    path = folder / "checks.jsonl"
    done = {(row["op"], row["kind"]) for row in lines(path)}
    for index, task in enumerate(tasks(setup, few)):
        if time.time() > until:
            return
        if (only_checks and len(task) == 3) or task[:2] in done:
            continue
        try:
            (claims / str(index)).touch(exist_ok=False)
        except FileExistsError:
            continue
        if len(task) == 2:
            for row in checks_of(*task, device.tensors):
                append(path, row)
            # A kernel that broke the device's context ends this process: the checks of the others go on.
            device.synchronize()
            continue
        try:
            warm(device, *task)
        except Exception as error:  # It will be measured, or fail, when its turn comes.
            print(f"warming up {title(*task[:2], '')}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        gc.collect()
        device.release()


def read_ceilings(folder: Path) -> Ceilings | None:
    """What was measured, or None."""
    path = folder / "ceilings.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return Ceilings(found["bandwidth"], found["flops"])


def profile(device: Device, setup: Setup) -> None:
    """Call five kernels once more after a warm-up, with the profiler on."""
    for (label, uf), case in itertools.product(PROFILED, (*BLOCKS, *OPS)):
        if case.label == label:
            at = replace(setup, uf=uf, batch=min(64, setup.batch), kind="bf16")
            call = case.build(at)[0]["slimse"]
            call()
            device.synchronize()
            if isinstance(device, Gpu):
                torch.cuda.profiler.start()
            call()
            device.synchronize()
            if isinstance(device, Gpu):
                torch.cuda.profiler.stop()


def machine(device: Device) -> dict[str, str]:
    """What results depend on: device, versions, and a digest of the code and its tables of launch parameters."""
    folders = [ROOT / name for name in ("kernels", "slimse", "bench")]
    files = sorted(file for folder in folders for kind in ("*.py", "tuned/*.json") for file in folder.rglob(kind))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return {"device": device.name, "torch": torch.__version__, "triton": version("triton"), "code": code}


def verdicts(folder: Path, few: bool) -> tuple[list[str], bool]:
    """Lines that say how the checks went, "wrong" and "no time" apart; and whether all that ran are right."""
    rows = lines(folder / "checks.jsonl")
    bad = [row for row in rows if row["verdict"] != "ok"]
    ran = {(row["op"], row["kind"]) for row in rows}
    missing = [f"{op} in {kind}" for op, kind in CHECKS if (op, kind) not in ran] if not few else []
    found = [f"Checks against float64: {len(rows) - len(bad)} ok, {len(bad)} not, {len(missing)} had no time."]
    found += [f"- {row['verdict'].upper()}: {json.dumps(row)}" for row in bad]
    return [*found, *([f"- no time: {', '.join(missing)}"] if missing else [])], not bad


def finish(folder: Path, few: bool = False) -> int:
    """Write the report of what there is and print a short table; the exit status."""
    about = json.loads((folder / "machine.json").read_text())
    rows = lines(folder / "times.jsonl")
    entries, failures = [row for row in rows if "stats" in row], [row for row in rows if "failed" in row]
    checked, right = verdicts(folder, few)
    notes = [f"Versions: {', '.join(f'{key} {value}' for key, value in about.items() if key != 'device')}."]
    if (folder / "ceilings.json").is_file():
        limits = json.loads((folder / "ceilings.json").read_text())
        flops = ", ".join(f"{kind} {value / 1e12:.0f}" for kind, value in limits["flops"].items())
        notes += [f"Measured: {limits['bandwidth'] / 1e12:.2f} TB/s, products in TFLOP/s: {flops}. {limits['clocks']}"]
    notes += [f"- {row['name']} failed: {row['failed']}" for row in failures]
    begun = {row["begin"] for row in rows if "begin" in row}
    notes += [f"{len(begun - {row.get('name') for row in rows})} times were begun and not ended, or are no baseline."]
    times = report.Times(entries)
    for point in times.points():
        print("\n".join(["", f"{point[0]}, batch {point[1]}, {point[2]}", *report.summary(times, point)]))
    print("\n".join(["", *checked[:12], f"{len(entries)} times, {len(failures)} failed."]), flush=True)
    # After the table, as plots take seconds that may not be left.
    print(report.write(entries, folder, [*checked, "", *notes]), flush=True)
    return 0 if right else 1


def plan(minutes: float) -> None:
    """Print the steps with their ends, and the times in the order in which they are measured."""
    for name, share in SHARES.items():
        print(f"until {60 * minutes * share:3.0f} s: {name}")
    for implementations, cases, kinds, batches, ufs in PASSES:
        labels = [case.label for case in cases]
        shown = labels if len(labels) < 4 else [labels[0], "...", labels[-1]]
        widths = ["mixture" if uf is None else f"{uf:g}" for uf in ufs]
        print(f"  {', '.join(shown)}; {', '.join(kinds)}; batch {batches}; UF {', '.join(widths)}: {implementations}")
    sys.stdout.flush()


def step(arguments: argparse.Namespace, device: Device) -> None:
    """What a process of a step does."""
    folder, until, few = arguments.out, arguments.until, arguments.few
    seconds, most = (0.04, 2) if arguments.rehearse else (4.0, 10**6)
    setup = Setup(1.0, most, seconds, "bf16", device.tensors, device.backend, device.compiler)
    if arguments.step == "ceilings":
        found = ceilings(device, 64 if arguments.rehearse else 8192)
        part = folder / "ceilings.part"
        part.write_text(json.dumps(found) + "\n")
        part.replace(folder / "ceilings.json")
    elif arguments.step == "times":
        time_all(device, folder, until, setup, few)
    elif arguments.step == "profiles":
        profile(device, setup)
    else:
        work_off(device, folder, until, setup, few, arguments.step == "more checks")


def main() -> int:
    """Command line."""
    start = time.time()
    parser = argparse.ArgumentParser(description="Check and time the kernels on this machine's GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of results, in which the device gets its own")
    parser.add_argument("--minutes", type=float, default=9.5, help="time in all")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, in Triton's interpreter")
    parser.add_argument("--few", action="store_true", help="only a few checks and times")
    parser.add_argument("--report", action="store_true", help="only write the report of the folder --out")
    parser.add_argument("--step", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report:
        return finish(arguments.out, arguments.few)
    if not arguments.rehearse and not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none; nothing was measured", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed; nothing was measured", file=sys.stderr)
        return 2
    if arguments.rehearse:
        # Before the kernels are imported: that is when Triton looks.
        os.environ["TRITON_INTERPRET"] = "1"
    device = Rehearsal() if arguments.rehearse else Gpu()
    if arguments.step:
        step(arguments, device)
        return 0
    folder = arguments.out / device.name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    about = machine(device)
    if (folder / "machine.json").is_file() and json.loads((folder / "machine.json").read_text()) != about:
        raise SystemExit(f"{folder} has results of other code, versions or another device: expected an empty folder")
    (folder / "machine.json").write_text(json.dumps(about) + "\n")
    for claims in folder.glob("claims*"):
        shutil.rmtree(claims)
    plan(arguments.minutes)
    options = [f"--{name}" for name in ("rehearse", "few") if getattr(arguments, name)]
    session = Session(folder, start, arguments.minutes, options)
    # Who stops this gets the report of what there is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        session.run()
    finally:
        session.stop()
        status = finish(folder, arguments.few)
    return status


if __name__ == "__main__":
    sys.exit(main())

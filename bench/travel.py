"""What a training run takes to a machine without a network, and what it brings back, in files of a limited size.

    python -m bench.travel parts ../shared/data parts       # here: part-00.zip and so on, of at most 44 MB each
    python -m bench.travel unpack parts data                # there: data/train and data/valid
    python -m bench.travel pack RUN OUT                     # there: state-0 and so on, of at most 15 MB each
    python -m bench.travel unite OUT RUN                    # here: the run, to be gone on with or exported

Parts hold the recordings as they are, in an order drawn by lot, so that a few of them make a smaller set of the same
kind; what is held out stays here. A packed run is its last checkpoint, with momentum in bfloat16 as nothing else in it
can do without its bits, its weights and its log.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

PART, PIECE = 44_000_000, 15_000_000
"""Bytes of a part of the data, and of a piece of a packed run."""
VALID = 10
"""Pairs to watch that travel along."""


def parts(data: Path, out: Path, size: int = PART) -> list[Path]:
    """Write ``data / "train"``, and some pairs of ``data / "valid" / "mixed"``, as zip files of at most ``size`` bytes.

    Impulse responses and the pairs come first.
    """
    from slimse.training.bank import AUDIO_SUFFIXES
    from slimse.training.held_out import held_out_noises, held_out_speakers

    left_out = held_out_noises() | held_out_speakers()
    files = sorted(p for p in (data / "train").rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    files = [path for path in files if not set(path.parts) & left_out]
    random.Random(0).shuffle(files)
    noisy = sorted((data / "valid" / "mixed" / "noisy").glob("*"))
    watched = noisy[:: max(1, len(noisy) // VALID)][:VALID]
    pairs = [folder / path.name for path in watched for folder in (path.parent, path.parent.parent / "clean")]
    responses = [path for path in files if "rir" in path.parts]
    order = [*responses, *pairs, *(path for path in files if "rir" not in path.parts)]
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    archive: zipfile.ZipFile | None = None
    filled = size
    for path in order:
        # Sounds are compressed already. 300 bytes: what a zip file says of each, twice.
        need = path.stat().st_size + 300 + 2 * len(str(path))
        if filled + need > size:
            if archive is not None:
                archive.close()
            written.append(out / f"part-{len(written):02}.zip")
            archive, filled = zipfile.ZipFile(written[-1], "w", zipfile.ZIP_STORED), 0
        assert archive is not None
        name = path.relative_to(data / "valid" / "mixed") if path in pairs else path.relative_to(data)
        archive.write(path, Path("valid") / name if path in pairs else name)
        filled += need
    if archive is not None:
        archive.close()
    return written


def unpack(folder: Path, data: Path) -> int:
    """Unpack all parts that are there; returns how many."""
    found = sorted(folder.glob("part-*.zip"))
    for path in found:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(data)
    return len(found)


def _files(run: Path) -> Iterable[tuple[str, bytes]]:
    checkpoint = run / "last.ckpt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    for optimizer in content["optimizer_states"]:
        for state in optimizer["state"].values():
            if "momentum" in state:
                state["momentum"] = state["momentum"].bfloat16()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    yield checkpoint.name, buffer.getvalue()
    for name in ("model.safetensors", "metrics.csv", "train.log"):
        if (run / name).is_file():
            yield name, (run / name).read_bytes()


def pack(run: Path, out: Path, size: int = PIECE) -> list[Path]:
    """Write a run as pieces of at most ``size`` bytes, in place of those of an earlier call."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in _files(run):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    whole = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    fresh = out / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    names = []
    for start in range(0, len(whole), size):
        names.append(f"state-{len(names)}")
        (fresh / names[-1]).write_bytes(whole[start : start + size])
    for path in out.glob("state-*"):
        path.unlink()
    for name in names:
        (fresh / name).rename(out / name)
    fresh.rmdir()
    return [out / name for name in names]


def unite(folder: Path, run: Path) -> list[str]:
    """Put the pieces of a packed run together below ``run``; returns the names of its files."""
    pieces = sorted(folder.glob("state-*"), key=lambda path: int(path.name.removeprefix("state-")))
    if not pieces:
        raise SystemExit(f"{folder} holds no state-0: expected what pack wrote")
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in pieces)), mode="r:gz") as archive:
        archive.extractall(run, filter="data")
        return archive.getnames()


def main() -> None:
    """Do one of the four and say what there is then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("parts", "unpack", "pack", "unite"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    found = {"parts": parts, "unpack": unpack, "pack": pack, "unite": unite}[options.what](
        options.source, options.target
    )
    if isinstance(found, list):
        total = sum(path.stat().st_size for path in found if isinstance(path, Path))
        print(f"{options.what}: {len(found)} files" + (f", {total / 1e6:.1f} MB" if total else ""))
    else:
        print(f"{options.what}: {found} parts")


if __name__ == "__main__":
    main()

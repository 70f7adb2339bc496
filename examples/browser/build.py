"""Make a folder that any web server can show: the page of `slimse serve`, with the network in the browser.

    pip install '.[onnx]'
    python examples/browser/build.py page
    python -m http.server --directory page --bind 127.0.0.1

It exports the bundled weights at UF 0.125 and gets onnxruntime-web by npm, which Node.js brings along.
"""

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

import slimse
from slimse.demo import bundled_clip
from slimse.export import export
from slimse.profiling import profile

HERE = Path(__file__).resolve().parent
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""ONNX Runtime for WebAssembly alone."""


def get_runtime(target: Path, archive: Path | None) -> None:
    """Unpack the files of `RUNTIME` from the package, which npm fetches unless ``archive`` is there."""
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            npm = shutil.which("npm")
            if npm is None:
                raise SystemExit(f"npm is not installed: install Node.js, or give --runtime with the file of {PACKAGE}")
            done = subprocess.run(
                [npm, "pack", "--prefer-offline", PACKAGE], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"npm pack {PACKAGE} failed: {done.stderr.strip().splitlines()[-1:]}")
            archive = next(Path(folder).glob("*.tgz"))
        with tarfile.open(archive) as package:
            for name in RUNTIME:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None
                (target / name).write_bytes(member.read())


def build(folder: Path, uf: float = 0.125, weights: str = "dynamic-v1", runtime: Path | None = None) -> None:
    """Write the page into ``folder``."""
    static = resources.files("slimse.serve") / "static"
    with resources.as_file(static) as source:
        shutil.copytree(source, folder / "static", dirs_exist_ok=True)
    (folder / "static" / "index.html").rename(folder / "index.html")
    for name in ("engine.js", "worker.js"):
        shutil.copy(HERE / name, folder / "static" / name)
    shutil.copy(bundled_clip(), folder / "static" / "noisy.flac")
    (folder / "static" / "ort").mkdir(exist_ok=True)
    get_runtime(folder / "static" / "ort", runtime)
    model = slimse.load(weights, backend="reference")
    path = folder / "static" / "model.onnx"
    print(export(model, path, uf).sentence())
    widths = profile(model).widths
    macs = next(width.macs_per_sample for width in widths if width.uf == uf)
    # JavaScript cannot read the metadata of a model.
    notes = dict(slimse.OnnxStreamer(path).metadata)
    extra = {"macs_per_sample": macs, "share": macs / widths[-1].macs_per_sample}
    (folder / "static" / "model.json").write_text(json.dumps(notes | extra), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; made if it is missing")
    parser.add_argument("--uf", type=float, default=0.125)
    parser.add_argument("--weights", default="dynamic-v1")
    parser.add_argument("--runtime", type=Path, help=f"file of npm's package {PACKAGE}, instead of fetching it")
    options = parser.parse_args()
    build(options.folder, options.uf, options.weights, options.runtime)


if __name__ == "__main__":
    main()

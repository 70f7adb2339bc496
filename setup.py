"""Packaging. The folder ``kernels`` installs as ``slimse.kernels``: a top-level name ``kernels`` is taken on PyPI."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "slimse" / "__init__.py").read_text())
KERNELS = ["slimse.kernels", *(f"slimse.kernels.{name}" for name in find_packages("kernels"))]

PLOT = ["matplotlib>=3.7"]
METRICS = [
    *("torchmetrics>=1.4", "pesq>=0.0.4", "pystoi>=0.4"),
    *("speechmos>=0.0.1", "onnxruntime>=1.17", "librosa>=0.10", "requests>=2"),
]
ONNX = ["onnx>=1.16", "onnxruntime>=1.17"]
TRAIN = [*PLOT, *METRICS, "lightning>=2.6"]
HUB = ["huggingface_hub>=0.25"]
SERVE = ["fastapi>=0.115", "uvicorn>=0.30", "websockets>=13"]
TEST = [
    *(*TRAIN, *HUB, *ONNX, *SERVE, "httpx>=0.27"),
    *("pytest>=8", "pytest-benchmark>=4", "pytest-xdist>=3.5", "hypothesis>=6"),
]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.27"]

setup(
    name="slimse",
    version=VERSION.group(1),
    description="Real-time speech enhancement with input-adaptive compute: slimmable DEMUCS, for files and live sound",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["slimse", "slimse.*"]), *KERNELS],
    package_dir={"slimse": "slimse", "slimse.kernels": "kernels"},
    package_data={
        "slimse": ["py.typed", "weights/*", "assets/*"],
        "slimse.ops": ["tuned/*.json"],
        "slimse.serve": ["static/*"],
        "slimse.training": ["recipes/*.toml", "held_out.csv"],
    },
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "einops>=0.7",
        "soundfile>=0.12",
        "soxr>=0.4",
        "safetensors>=0.4",
        "typer>=0.16",
        "rich>=13",
        "numba>=0.60",
        "triton>=3.2; platform_system == 'Linux'",
    ],
    extras_require={
        "plot": PLOT,
        "metrics": METRICS,
        "onnx": ONNX,
        "train": TRAIN,
        "hub": HUB,
        "serve": SERVE,
        "tensorboard": ["tensorboard>=2.10"],
        "test": TEST,
        "live": ["sounddevice>=0.4"],
        "livekit": ["livekit>=1.1"],
        "ray": ["ray[data]>=2.40"],
        "pipecat": ["pipecat-ai>=1.0"],
        "docs": DOCS,
        "dev": [*TEST, *DOCS, "ruff>=0.12", "mypy>=1.14"],
    },
    entry_points={"console_scripts": ["slimse=slimse.cli:app"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)

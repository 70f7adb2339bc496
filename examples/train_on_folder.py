"""Fine-tune the bundled weights on folders of speech and noise of your own, then enhance a file with the result.

    python examples/train_on_folder.py DATA RUN noisy.wav enhanced.wav [STEPS]

DATA holds ``speech`` and ``noise`` (and ``rir``, if you have room impulse responses), with audio files at any depth.
RUN keeps the log, the checkpoint and ``model.safetensors``; started again, the run goes on where it was.
"""

import sys
from pathlib import Path

import slimse
from slimse.training.config import TrainConfig
from slimse.training.run import train


def main(data: str, run: str, source: str, target: str, steps: str = "200") -> None:
    """Train all widths for some steps, then enhance at one of them."""
    config = TrainConfig(
        stage="backbone",
        init="dynamic-v1",
        steps=int(steps),
        warmup=min(20, int(steps) // 2),
        learning_rate=5e-4,
        val_interval=50,
    )
    weights = train(config, Path(data), Path(run))
    slimse.enhance_file(source, target, slimse.load(weights), 0.25)


if __name__ == "__main__":
    main(*sys.argv[1:])

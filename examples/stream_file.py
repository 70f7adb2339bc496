"""Enhance a file chunk by chunk, as live sound would be, and write what is ready at once.

    python examples/stream_file.py noisy.wav enhanced.wav

Any sample rate and number of channels. The result is as long as the input, and aligned with it. Memory does not grow
with the length of the file.
"""

import sys

import numpy as np
import soundfile

import slimse


def main(source: str, target: str) -> None:
    """Read, enhance and write blocks of 20 ms."""
    model = slimse.load()
    with soundfile.SoundFile(source) as noisy:
        rate, channels = noisy.samplerate, noisy.channels
        streamer = slimse.Streamer(model, budget=0.25, sample_rate=rate, channels=channels)
        with soundfile.SoundFile(target, "w", rate, channels) as enhanced:
            # A live stream is late by its delay: leave out so many samples; `flush` gives as many at the end.
            late = streamer.delay
            for block in noisy.blocks(rate // 50, dtype="float32", always_2d=True):
                out = streamer.feed(np.ascontiguousarray(block.T))
                enhanced.write(out[:, late:].T)
                late = max(0, late - out.shape[1])
            enhanced.write(streamer.flush()[:, late:].T)


if __name__ == "__main__":
    main(*sys.argv[1:])

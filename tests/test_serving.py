"""Streams of a batch get what streamers of their own would give them."""

import pytest
import torch

from slimse import SlimDemucs, SlimDemucsConfig, Streamer
from slimse.serving import StreamBatch

CONFIGS = {
    "small": SlimDemucs("small").config,
    "lstm": SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm", rnn_layers=2),
    "paper": SlimDemucsConfig(),
}


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("name", CONFIGS)
def test_streams_that_come_and_go_equal_streamers(name, backend, relative_error):
    if backend == "numba":
        pytest.importorskip("numba", reason="the compiled path needs numba")
    model = SlimDemucs(CONFIGS[name]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    batch = StreamBatch(model, 3, backend=backend)
    assert batch.backend == backend
    # Tick at which a stream joins, ticks that it stays: some leave before their first frame, slots are used again.
    plans = [(0, 9), (2, 14), (3, 1), (4, 3), (8, 12), (10, 7)]
    ufs = torch.tensor(model.config.ufs)[torch.randint(len(model.config.ufs), (len(plans), 30), generator=generator)]
    noisy = torch.randn(len(plans), 30, model.hop, generator=generator)
    single = [Streamer(model, backend="torch") for _ in plans]
    actual, expected = [[] for _ in plans], [[] for _ in plans]
    slots: dict[int, int] = {}
    for tick in range(24):
        for stream, (begin, stay) in enumerate(plans):
            if tick == begin + stay and stream in slots:
                actual[stream].append(batch.leave(slots.pop(stream)))
                expected[stream].append(single[stream].flush(float(ufs[stream, tick - 1])))
            if tick == begin:
                slots[stream] = batch.join()
        samples = torch.full((3, model.hop), float("nan"))
        for stream, slot in slots.items():
            samples[slot] = noisy[stream, tick]
            batch.set_uf(slot, float(ufs[stream, tick]))
            expected[stream].append(single[stream].feed(noisy[stream, tick], float(ufs[stream, tick])))
        out, ready = batch.tick(samples)
        for stream, slot in slots.items():
            actual[stream].append(out[slot, : ready[slot]].clone())
            assert len(actual[stream][-1]) == len(expected[stream][-1])
    assert batch.leave(batch.join()).shape == (0,)
    assert batch.slots == []
    for stream, (_, stay) in enumerate(plans):
        whole = torch.cat(actual[stream])
        assert len(whole) == stay * model.hop
        assert relative_error(whole, torch.cat(expected[stream])) < 1e-5


def test_mistakes_are_named():
    model = SlimDemucs("small").eval()
    with pytest.raises(ValueError, match="capacity = 0"):
        StreamBatch(model, 0)
    batch = StreamBatch(model, 1)
    with pytest.raises(ValueError, match="slot = 0"):
        batch.leave(0)
    with pytest.raises(ValueError, match=r"\(0.125, 0.25, 0.5, 1.0\)"):
        batch.join(0.3)
    assert batch.slots == []
    assert batch.join(0.25) == 0
    with pytest.raises(ValueError, match="all 1 slots are in use"):
        batch.join()
    with pytest.raises(ValueError, match=r"expected floating \[1, 32\]"):
        batch.tick(torch.zeros(1, 31))
    with pytest.raises(ValueError, match="does not normalise"):
        StreamBatch(SlimDemucs(SlimDemucsConfig(hidden=4, depth=1, rnn="lstm", normalize=True)), 1)

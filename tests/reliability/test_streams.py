"""Damaged states, bad chunks and bad ticks: refused by name, and the stream goes on."""

import numpy as np
import pytest
import torch

from slimse import SlimModel, Streamer
from slimse.serving import StreamBatch


@pytest.mark.parametrize("runtime", ["eager", "numba"])
@pytest.mark.parametrize("fed", [0, 100, 3000])
def test_a_damaged_state_is_refused_and_a_sound_one_goes_on(runtime, fed):
    model = SlimModel("small").eval()
    streamer, x = Streamer(model, 0.5, runtime=runtime), 0.1 * torch.randn(4000)
    streamer.feed(x[:fed])
    state = streamer.state
    expected = streamer.feed(x[fed:])
    streamer.state = state
    assert torch.equal(streamer.feed(x[fed:]), expected)
    inner = state.model
    damaged = [None, (), state._replace(pending=None), state._replace(pending=state.pending.double())]
    damaged += [state._replace(pending=torch.zeros(1, 9999)), state._replace(pending=torch.full((1, 3), torch.nan))]
    damaged += [state._replace(model=inner._replace(samples=value)) for value in (-1, 7, 2**70, 1.5, None)]
    for name in ("up", "encoder", "skip", "rnn", "decoder", "down"):
        parts = getattr(inner.network, name)
        for bad in ((), None, parts[:-1], (*parts[:-1], parts[-1][..., None]), (*parts[:-1], parts[-1].long()),
                    (*parts[:-1], torch.cat([parts[-1]] * 3))):  # fmt: skip
            damaged.append(state._replace(model=inner._replace(network=inner.network._replace(**{name: bad}))))
    for bad in damaged:
        with pytest.raises(ValueError, match="state"):
            streamer.state = bad
    streamer.state = state
    assert torch.equal(streamer.feed(x[fed:]), expected)


@pytest.mark.parametrize("runtime", ["eager", "numba"])
def test_bad_chunks_leave_the_stream_as_it_was(runtime, relative_error):
    streamer, x = Streamer(SlimModel("small").eval(), np.float32(0.25), runtime=runtime), 0.1 * torch.randn(3000)
    whole = streamer.feed(x)
    streamer.reset()
    first = streamer.feed(x[:1000])
    for bad in ([0.1], torch.full((100,), 3e38), torch.full((100,), -1e7), torch.full((5,), torch.nan), None):
        with pytest.raises(ValueError, match="chunk"):
            streamer.feed(bad)
    assert relative_error(torch.cat([first, streamer.feed(x[1000:])]), whole) < 1e-5


@pytest.mark.parametrize("runtime", ["eager", "numba"])
def test_a_bad_tick_names_the_slot_and_disturbs_nobody(runtime):
    model = SlimModel("small", runtime=runtime).eval()
    one, other = (StreamBatch(model, 3) for _ in range(2))
    for batch in (one, other):
        batch.join(0.5)
        batch.join(1.0)
    for tick in range(6):
        samples = 0.1 * torch.randn(3, model.geometry.hop)
        bad = samples.clone()
        bad[1, 3] = torch.nan
        with pytest.raises(ValueError, match="slot 1"):
            one.tick(bad)
        assert torch.equal(one.tick(samples)[0][:2], other.tick(samples)[0][:2]), tick

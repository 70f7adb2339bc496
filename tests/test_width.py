"""Widths, schedules, and which frame owns which position."""

import pytest
import torch

from slimse.networks.demucs.frames import FrameMap
from slimse.width import SoftWidth, WidthSet, apply_width, max_width
from slimse.width import owners as frames_of

WIDTHS = WidthSet((0.125, 0.25, 0.5, 1.0))


def test_channels_round_up():
    assert [WIDTHS.channels(uf, 32) for uf in WIDTHS] == [4, 8, 16, 32]
    assert [WIDTHS.channels(uf, 3) for uf in WIDTHS] == [1, 1, 2, 3]


def test_other_sets_are_allowed():
    assert WidthSet((0.3, 1.0)).channels(0.3, 10) == 3


@pytest.mark.parametrize("ufs", [(), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 1.5)])
def test_bad_sets_are_refused(ufs):
    with pytest.raises(ValueError, match="rising"):
        WidthSet(ufs)


@pytest.mark.parametrize("uf", [0.3, 2.0, 0, -1.0, True, "0.25", float("nan"), torch.tensor([0.25, 0.3])])
def test_a_uf_outside_the_set_names_the_set(uf):
    with pytest.raises(ValueError, match=r"\(0.125, 0.25, 0.5, 1.0\)"):
        WIDTHS.schedule(uf, 2, 5)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 5), (2, 5, 3), (2, 5, 4, 1)])
def test_a_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected a float, \[2\], \[2, 5\]"):
        WIDTHS.schedule(torch.full(shape, 0.25), 2, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_ufs_in_any_floating_type(dtype):
    ufs = torch.tensor([0.125, 1.0], dtype=dtype)
    assert WIDTHS.schedule(ufs, 2, 3).level_width(64, 3).positions(3).tolist() == [[8] * 3, [64] * 3]


def test_ragged_and_soft_widths_follow_the_frames():
    ufs = torch.tensor([[0.25, 1.0]])
    ragged = WIDTHS.schedule(ufs, 1, 2).level_width(8, 3, lead=1)
    assert ragged.positions(3).tolist() == [[2, 2, 8]]
    assert max_width(ragged, 8) == 8
    assert ragged.orders is None
    gates = torch.nn.functional.one_hot(torch.tensor([[1, 3]]), 4).float()
    soft = WIDTHS.schedule(gates, 1, 2).level_width(8, 3, lead=1)
    assert isinstance(soft, SoftWidth)
    assert soft.mask.sum(-1).tolist() == [[2, 2, 8]]


def test_masking_stops_nan_in_inactive_channels():
    hidden = torch.ones(1, 2, 4)
    hidden[0, 0, 2:] = torch.nan
    assert apply_width(hidden, torch.tensor([[2, 4]])).tolist() == [[[1, 1, 0, 0], [1, 1, 1, 1]]]


def test_gate_gradient_is_the_sum_over_its_prefix():
    gates = torch.zeros(1, 1, 4, requires_grad=True)
    hidden = torch.arange(1.0, 9.0).view(1, 1, 8)
    soft = WIDTHS.schedule(gates, 1, 1).level_width(8, 1)
    apply_width(hidden, soft).sum().backward()
    assert gates.grad.flatten().tolist() == [1.0, 3.0, 10.0, 36.0]


def test_lead_of_the_first_frame():
    assert [FrameMap(5, 8, 4).first_span(level) - 1 for level in (5, 4, 3, 2, 1)] == [0, 7, 35, 147, 595]


@pytest.mark.parametrize(("kernel_size", "stride", "depth"), [(8, 4, 5), (8, 4, 3), (4, 2, 3), (4, 4, 2), (9, 3, 2)])
def test_positions_belong_to_the_frame_that_a_streamer_computes_them_in(kernel_size, stride, depth):
    """Against a simulation that counts what each frame's new input samples make computable."""
    frame_map, frames = FrameMap(depth, kernel_size, stride), 4
    computed = [0] * (depth + 1)
    expected = [[] for _ in range(depth + 1)]
    for frame in range(frames):
        computed[0] = frame_map.first_span(0) + frame * frame_map.positions_per_frame(0)
        for level in range(1, depth + 1):
            now = (computed[level - 1] - kernel_size) // stride + 1
            expected[level] += [frame] * (now - computed[level])
            computed[level] = now
    assert computed[depth] == frames
    for level in range(1, depth + 1):
        whole = frames_of(len(expected[level]), frames, *frame_map.encoder(level, first=True))
        assert whole.tolist() == expected[level]
        first_run = frame_map.first_span(level)
        later = frames_of(len(expected[level]) - first_run, frames - 1, *frame_map.encoder(level, first=False))
        assert (later + 1).tolist() == expected[level][first_run:]


def test_the_last_frame_owns_the_tail_of_a_decoder():
    assert frames_of(8, 3, *FrameMap(2, 4, 2).decoder(1)).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_positions_and_ufs_are_inverse():
    positions = torch.tensor([[3, 0], [1, 2]])
    assert WidthSet((0.125, 0.25, 0.5, 1.0)).indices(WidthSet((0.125, 0.25, 0.5, 1.0)).at(positions)).equal(positions)

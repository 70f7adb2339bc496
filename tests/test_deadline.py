"""The width of a stream follows the time that its frames take, on a clock of the test's own."""

from itertools import pairwise

import pytest
import torch

from slimse import SlimModel, Streamer
from slimse.deadline import DeadlineController

MODEL = SlimModel("small").eval()
FRAME = MODEL.geometry.hop / MODEL.sample_rate
COST = {0.125: 0.04, 0.25: 0.06, 0.5: 0.1, 1.0: 0.19}
"""Load of each width on the idle machine."""


class SlowClock:
    """Time passes only while a frame is processed: as much as its width costs, times how slow the machine is."""

    def __init__(self):
        self.now, self.slowness, self.streamer, self.calls = 0.0, 1.0, None, 0

    def __call__(self):
        """Seconds; every second call comes after a frame."""
        self.calls += 1
        if self.calls % 2 == 0:
            self.now += FRAME * self.slowness * COST[self.streamer.limit]
        return self.now


def run(slowness, max_load, runtime="auto"):
    """One frame after another; the width of each and the load that it made."""
    clock = SlowClock()
    clock.streamer = Streamer(MODEL, max_load=max_load, clock=clock, runtime=runtime)
    clock.streamer.feed(torch.zeros(MODEL.geometry.first))
    widths, loads = [], []
    for factor in slowness:
        clock.slowness, before, width = factor, clock.now, clock.streamer.limit
        clock.calls = 0
        clock.streamer.feed(torch.zeros(MODEL.geometry.hop))
        widths.append(width)
        loads.append((clock.now - before) / FRAME)
    return widths, loads


def ramp(start, end, frames):
    return torch.linspace(start, end, frames).tolist()


@pytest.mark.parametrize("runtime", ["eager", "auto"])
def test_no_underrun_and_recovery_when_the_machine_slows_down(runtime):
    second = round(1 / FRAME)
    slow = [1.0] * second + ramp(1, 7, second) + [7.0] * second + ramp(7, 1, second) + [1.0] * 5 * second
    assert COST[1.0] * 7 > 1  # at full width frames would come too late
    widths, loads = run(slow, 0.3, runtime)
    assert set(widths[:second]) == {1.0}
    assert max(loads) < 1
    assert max(widths[2 * second + 10 : 3 * second]) == 0.125
    assert max(loads[2 * second + 10 : 3 * second]) < 0.3
    assert widths[-1] == 1.0
    # Hysteresis: the width falls on the way down and rises on the way up, a step at a time.
    turns = [b - a for a, b in pairwise(widths) if a != b]
    assert [turn > 0 for turn in turns] == [False] * 3 + [True] * 3


def test_a_steady_load_near_the_limit_does_not_swing():
    second = round(1 / FRAME)
    widths, _ = run([2.0] * 10 * second, 0.3)
    assert len([1 for a, b in pairwise(widths) if a != b]) == 1


def test_a_frame_that_came_too_late_narrows_at_once():
    controller = DeadlineController(MODEL.ufs, 0.9)
    controller.measure(1.5 * FRAME, FRAME)
    assert controller.limit == 0.125


def test_a_request_below_the_limit_stays(relative_error):
    noisy = torch.randn(1000)
    limited = Streamer(MODEL, 0.25, max_load=1.0)
    free = Streamer(MODEL, 0.25)
    assert torch.equal(limited.feed(noisy), free.feed(noisy))
    several = Streamer(MODEL, torch.tensor([0.25, 1.0]), streams=2, max_load=1.0)
    assert several.feed(noisy.expand(2, -1)).shape[0] == 2


@pytest.mark.parametrize("max_load", [0, -1, 1.5, float("nan")])
def test_a_load_out_of_range_is_refused(max_load):
    with pytest.raises(ValueError, match="max_load"):
        Streamer(MODEL, max_load=max_load)

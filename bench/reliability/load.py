"""A batch of streams under load: streams join, leave, fail and overrun for an hour of sound.

    python -m bench.reliability.load --minutes 60

Every stream that is admitted is also fed, alone and at the UFs that the batch ran it at, to a `Streamer`. What the two
give must be equal, and as long as what went in. Meanwhile others hand in samples that are not finite, or leave in the
middle. The load is simulated: a tick takes as long as a random machine says. As a server would, the trial narrows all
streams by a `DeadlineController` when ticks are late, and refuses new streams at the narrowest width. The sound of an
admitted stream must never be lost.
"""

from __future__ import annotations

import argparse
import signal
from collections import Counter

import numpy as np
import torch

import slimse
from bench.reliability.sounds import KINDS, LEVELS, RATE, make_sound
from slimse import Streamer
from slimse.deadline import DeadlineController
from slimse.serving import StreamBatch
from slimse.testing import relative_error


class Client:
    """A stream, its own streamer, and what both gave."""

    def __init__(self, model: slimse.SlimModel, slot: int, wish: float, rng: np.random.Generator) -> None:
        self.slot, self.wish, self.rng, self.hop = slot, wish, rng, model.geometry.hop
        self.alone = Streamer(model, runtime="numba")
        self.heard, self.batch, self.single = 0, list[torch.Tensor](), list[torch.Tensor]()
        self.used, self._rest = wish, np.zeros(0, np.float32)

    def samples(self) -> torch.Tensor:
        """The next hop."""
        if len(self._rest) < self.hop:
            kind, level = str(self.rng.choice(list(KINDS))), self.rng.uniform(*LEVELS)
            self._rest = make_sound(kind, int(self.rng.integers(1, 400)) * self.hop, level, self.rng)
        hop, self._rest = self._rest[: self.hop], self._rest[self.hop :]
        return torch.from_numpy(hop)


class Service:
    """What a server does with a `StreamBatch`."""

    def __init__(self, model: slimse.SlimModel, capacity: int, runtime: str, seed: int) -> None:
        self.model, self.rng = model, np.random.default_rng(seed)
        self.batch = StreamBatch(model, capacity, runtime=runtime)
        self.controller = DeadlineController(model.ufs, 0.8)
        self.clients: dict[int, Client] = {}
        self.counts: Counter[str] = Counter()
        self.worst, self.strain = 0.0, 1.0

    def run(self, ticks: int) -> None:
        """Go on for some ticks, then let everybody leave."""
        for _ in range(ticks):
            self.arrive()
            if self.clients and self.rng.random() < 0.02:
                self.leave(int(self.rng.choice(list(self.clients))))
            self.tick()
        for slot in list(self.clients):
            self.leave(slot)

    def arrive(self) -> None:
        """Let a stream ask to join; the full batch and the late one refuse it by name."""
        if self.rng.random() > 0.04:
            return
        wish = float(self.rng.choice(self.model.ufs))
        try:
            if self.controller.limit == self.model.ufs[0]:
                raise ValueError("the machine is late at the narrowest width: expected a stream to leave first")
            slot = self.batch.join(wish)
        except ValueError as error:
            self.counts["refused: full" if "slots" in str(error) else "refused: late"] += 1
            return
        self.counts["joined"] += 1
        self.clients[slot] = Client(self.model, slot, wish, np.random.default_rng(self.rng.integers(2**31)))

    def tick(self) -> None:
        """Run a frame of all; at times one hands in what is no sound, and is asked again."""
        samples = torch.full((self.batch.capacity, self.model.geometry.hop), torch.nan)
        limit = self.controller.limit
        for slot, client in self.clients.items():
            samples[slot] = client.samples()
            client.used = min(client.wish, limit)
            self.batch.set_uf(slot, client.used)
        if self.clients and self.rng.random() < 0.02:
            self.fail(samples)
        out, ready = self.batch.tick(samples)
        for slot, client in self.clients.items():
            client.batch.append(out[slot, : ready[slot]].clone())
            client.single.append(client.alone.feed(samples[slot], client.used))
            client.heard += self.model.geometry.hop
        self.counts["ticks"] += 1
        self.counts["narrowed"] += limit < 1
        self.overrun(limit)

    def fail(self, samples: torch.Tensor) -> None:
        """Hand in a bad hop of one stream: it is named, and nobody's stream moves."""
        slot = int(self.rng.choice(list(self.clients)))
        bad = samples.clone()
        bad[slot, int(self.rng.integers(self.model.geometry.hop))] = float(self.rng.choice([np.nan, np.inf, 3e38]))
        try:
            self.batch.tick(bad)
        except ValueError as error:
            assert f"slot {slot}" in str(error), error
            self.counts["failed"] += 1
        else:
            raise AssertionError("a bad hop was taken")

    def overrun(self, limit: float) -> None:
        """Tell the controller how long the tick took, on a machine that is now fast and now slow."""
        if self.rng.random() < 0.01:
            self.strain = float(self.rng.choice([0.3, 1.0, 2.0, 6.0]))
        sound = self.model.geometry.hop / RATE
        full = len(self.clients) / self.batch.capacity
        self.controller.measure(sound * self.strain * full * (0.2 + 0.8 * limit) * self.rng.uniform(0.8, 1.2), sound)

    def leave(self, slot: int) -> None:
        """End a stream, and compare all that it got."""
        client = self.clients.pop(slot)
        batch = torch.cat([*client.batch, self.batch.leave(slot)])
        single = torch.cat([*client.single, client.alone.flush(client.used)])
        assert len(batch) == client.heard == len(single), (len(batch), client.heard, len(single))
        self.worst = max(self.worst, relative_error(batch, single))
        self.counts["left"] += 1


def main() -> None:
    """Run, and print what happened and the worst error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of sound of every slot")
    parser.add_argument("--capacity", type=int, default=6)
    parser.add_argument("--runtime", choices=["numba", "eager"], default="numba")
    parser.add_argument("--light", action="store_true", help="a random network with few channels, not the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    light = slimse.SlimModel(slimse.SlimDemucsConfig(hidden=4)).eval().requires_grad_(False)
    model = light if options.light else slimse.load()
    service = Service(model, options.capacity, options.runtime, options.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        service.run(int(options.minutes * 60 * RATE / model.geometry.hop))
    except KeyboardInterrupt:
        print("interrupted: what follows is as far as it got")
    minutes = service.counts["ticks"] * model.geometry.hop / RATE / 60
    print(f"{options.runtime}, {minutes:.1f} minutes: {dict(service.counts)}, worst relative error {service.worst:.1e}")


if __name__ == "__main__":
    main()

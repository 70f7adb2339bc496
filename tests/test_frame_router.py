"""A router for networks that were slimmed."""

import pytest
import torch
from torch import nn

import slimse
from slimse import FrameRouter
from slimse.router import RouterConfig

CONFIG = RouterConfig(filters=8, kernel_size=64, stride=32, units=8, knots=3)


class Masker(nn.Module):
    """Frames of 32 samples, each scaled by what a small network makes of it."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv1d(1, 16, 32, 32, bias=False)
        self.inside = nn.Sequential(nn.Conv1d(16, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1))
        self.decoder = nn.ConvTranspose1d(16, 1, 32, 32, bias=False)

    def forward(self, noisy):
        """As many samples as come in, a multiple of 32."""
        features = self.encoder(noisy)
        return self.decoder(features * torch.sigmoid(self.inside(features)))


@torch.no_grad()
def test_every_position_of_a_slimmed_network_runs_at_the_uf_of_its_frame():
    router, noisy = FrameRouter(128, 16_000, config=CONFIG), torch.randn(2, 1, 1_000)
    network = slimse.slimmify(Masker(), noisy[:, :, :320], cuts={"inside.0": "output"})
    frames = router.route(noisy, torch.tensor([0.25, 0.5]))
    assert frames.shape == (2, 8)
    ufs = router.route(noisy, torch.tensor([0.25, 0.5]), stride=32, positions=31)
    assert torch.equal(ufs, frames.repeat_interleave(4, 1)[:, :31])
    ufs[:, ::3] = 1.0
    with slimse.at(ufs):
        mixed = network(noisy)
    for uf in router.ufs:
        with slimse.at(uf):
            alone = network(noisy)
        here = (ufs == uf).repeat_interleave(32, 1)
        torch.testing.assert_close(mixed[:, 0][here], alone[:, 0][here])
    assert len(set(ufs.flatten().tolist())) > 1


def test_decisions_are_causal():
    router, noisy = FrameRouter(128, 16_000, config=CONFIG), torch.randn(1, 1, 1_280)
    changed = noisy.clone()
    changed[..., 640:] *= 5
    torch.testing.assert_close(router(changed, 0.5)[:, :5], router(noisy, 0.5)[:, :5])
    assert not torch.allclose(router(changed, 0.5)[:, 5:], router(noisy, 0.5)[:, 5:])


def test_a_router_learns_where_width_is_worth_most():
    from slimse.training.routing import RoutingLoss, straight_through_gates

    torch.manual_seed(0)
    router = FrameRouter(64, 16_000, (0.25, 0.5, 1.0), CONFIG)
    use = RoutingLoss(router.router, beta=1.0, gamma=0.0, memory=0.8)
    optimizer = torch.optim.Adam(router.parameters(), 0.02)
    lost = torch.tensor(router.ufs).log2() / -2
    loud = (torch.arange(30) // 5 % 2).float()
    noisy = torch.randn(4, 1, 30 * 64) * (0.05 + loud).repeat_interleave(64)
    budget = torch.full((4,), 0.5)
    for _ in range(80):
        logits = router(noisy, budget)
        noise = -torch.empty_like(logits).exponential_().log()
        gates = straight_through_gates(logits, noise, 1.0)
        loss = use(gates, budget, router.router.knot_weights(budget))[0]
        loss = loss + 0.5 * (torch.softmax(logits, -1) @ lost * loud).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ufs = router.route(noisy, 0.5)
    assert ufs[:, loud > 0].mean() > 2 * ufs[:, loud == 0].mean()
    assert abs(float(ufs.mean()) - 0.5) < 0.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FrameRouter(100, 16_000), "hop = 100: expected a multiple of the router's stride, 32"),
        (lambda: FrameRouter(128, 16_000, (1.0,)), r"ufs = \(1.0,\): expected two or more"),
        (lambda: FrameRouter(128, 16_000)(torch.randn(2, 500), 0.5), r"shape \(2, 500\): expected \[B, 1, T\]"),
        (lambda: FrameRouter(128, 16_000).route(torch.randn(1, 1, 500), 0.01), "budget = 0.01: expected"),
        (lambda: FrameRouter(128, 16_000).route(torch.randn(1, 1, 500), 0.5, stride=48), "stride = 48: expected a div"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

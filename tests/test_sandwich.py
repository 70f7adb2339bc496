"""The sandwich rule in anybody's loop."""

import pytest
import torch
from torch import nn

import slimse
from slimse.training import sandwich

MSE = nn.functional.mse_loss


def make():
    return slimse.slimmify(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)), torch.randn(3, 4))


def test_the_loss_is_that_of_its_widths():
    network, x, y, seen = make(), torch.randn(5, 4), torch.randn(5, 2), {}
    loss = sandwich(network, (x, y), MSE, log=lambda name, value: seen.update({name: value}))
    drawn = next(uf for uf in (0.25, 0.5) if f"loss/{uf}" in seen)
    assert set(seen) == {"loss/1", "loss/0.125", f"loss/{drawn}"}
    outputs = {}
    for uf in (1.0, 0.125, drawn):
        with slimse.at(uf):
            outputs[uf] = network(x)
    teacher = outputs[1.0].detach()
    expected = sum(MSE(out, y) for out in outputs.values()) + sum(MSE(outputs[uf], teacher) for uf in (0.125, drawn))
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, network.parameters())
    for mine, theirs in zip(ours, torch.autograd.grad(expected, network.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_narrow_widths_learn_too():
    torch.manual_seed(1)
    network, x = make(), torch.randn(64, 4)
    y = torch.stack([x[:, 0] * 0.5, x[:, 1] - x[:, 2]], 1)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)

    def errors():
        found = []
        for uf in (0.125, 1.0):
            with slimse.at(uf), torch.no_grad():
                found.append(float(MSE(network(x), y)))
        return found

    before = errors()
    for _ in range(150):
        optimizer.zero_grad()
        sandwich(network, (x, y), MSE, distill=0.5).backward()
        optimizer.step()
    after = errors()
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.1 * before[1]


def test_networks_that_take_a_uf_and_networks_without():
    model = slimse.SlimModel("small")
    noisy = torch.randn(1, 1, 4000)
    loss = sandwich(model, (noisy, noisy), nn.functional.l1_loss, between=0, distill=0)
    narrow, wide = (nn.functional.l1_loss(model(noisy, uf), noisy) for uf in (model.ufs[0], 1.0))
    torch.testing.assert_close(loss, narrow + wide)
    with pytest.raises(ValueError, match="Linear with no UFs of its own: expected ufs"):
        sandwich(nn.Linear(2, 2), (torch.randn(1, 2), torch.randn(1, 2)), MSE)

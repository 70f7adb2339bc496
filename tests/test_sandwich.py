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


def test_narrow_widths_may_get_a_part_of_the_batch():
    network, x, y = make(), torch.arange(20.0).view(5, 4) / 20, torch.randn(5, 2)
    runs = []
    network[0].register_forward_hook(lambda layer, given, out: runs.append(given[0]))
    generator = torch.Generator().manual_seed(3)
    loss = sandwich(network, (x, y), MSE, items=2, distill=0.5, generator=generator)
    wide, *narrow = runs
    assert torch.equal(wide, x)
    assert [len(part) for part in narrow] == [2, 2]
    teacher = network(x).detach()
    generator.manual_seed(3)
    middle = (0.25, 0.5)[int(torch.randperm(2, generator=generator)[0])]
    expected = MSE(teacher, y)
    for part, uf in zip(narrow, (0.125, middle), strict=True):
        items = [int((x == row).all(1).nonzero()) for row in part]
        with slimse.at(uf):
            out = network(x[items])
        expected = expected + MSE(out, y[items]) + 0.5 * MSE(out, teacher[items])
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="items = 6: expected 1 to 5"):
        sandwich(network, (x, y), MSE, items=6)


def test_it_works_in_lightning():
    lightning = pytest.importorskip("lightning")

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make()

        def training_step(self, batch, index):
            return sandwich(self.network, batch, MSE, log=self.log)

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), 0.1)

    training = Training()
    before = training.network[0].weight.detach().clone()
    data = torch.utils.data.TensorDataset(torch.randn(4, 4), torch.randn(4, 2))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(training, torch.utils.data.DataLoader(data, 2))
    assert {"loss/1", "loss/0.125"} <= set(trainer.logged_metrics)
    assert (training.network[0].weight - before).abs().min(1).values.gt(0).all()


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

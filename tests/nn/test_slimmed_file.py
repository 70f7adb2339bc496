"""Slimmed networks in files, and what one width of them can be exported to."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import slimse
from bench.networks import EveryLayer, TfNetwork


class Heads(nn.Module):
    """Attention that counts its heads, and a parameter that no layer has."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.scale = 4, nn.Parameter(torch.rand(16))
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        """Attend, and scale."""
        q, k, v = (layer(x).view(*x.shape[:2], self.num_heads, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.o(h * self.scale)


CASES = {
    "every layer": (EveryLayer, lambda: torch.randint(20, (2, 8))),
    "2-D network": (lambda: TfNetwork(8, 8, 12), lambda: torch.randn(2, 8, 6, dtype=torch.complex64)),
    "heads": (Heads, lambda: torch.randn(2, 5, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_comes_back_as_it_was_saved(name, tmp_path):
    make, sample = CASES[name]
    x = sample()
    slim = slimse.slimmify(make(), x)
    if name == "2-D network":
        slimse.calibrate(slim, [sample()])
    slimse.save_slimmed(slim.eval(), tmp_path / "net.safetensors")
    loaded = slimse.load_slimmed(make().eval(), tmp_path / "net.safetensors")
    assert str(loaded.slimming) == str(slim.slimming)
    for uf in (0.125, 0.5, 1.0):
        with slimse.at(uf), torch.no_grad():
            assert torch.equal(loaded(x), slim(x))
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert [width["uf"] for width in json.loads(file.metadata()["slimming"])["widths"]] == [0.125, 0.25, 0.5, 1]


def make_linear(hidden=16, inputs=4):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 4))


def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match="Sequential: expected one that slimmify returned"):
        slimse.save_slimmed(make_linear(), path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        slimse.load_slimmed(make_linear(), path)
    slim = slimse.slimmify(make_linear(), torch.randn(1, 4))
    slimse.save_slimmed(slim, path)
    with pytest.raises(ValueError, match="not slimmed yet"):
        slimse.load_slimmed(slim, path)
    other = make_linear(hidden=8)
    with pytest.raises(ValueError, match=r"0\.bias has shape \(16,\): expected \(8,\), as in the network; 2 more"):
        slimse.load_slimmed(other, path)
    assert type(other[0]) is nn.Linear
    with pytest.raises(ValueError, match="it cuts 0, which is ReLU in the network"):
        slimse.load_slimmed(nn.Sequential(nn.ReLU()), path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no slimming in the header"):
        slimse.load_slimmed(make_linear(), path)
    save_file({"a": torch.zeros(1)}, path, {"slimming": '{"groups": 3}'})
    with pytest.raises(ValueError, match="the slimming in the header is damaged"):
        slimse.load_slimmed(make_linear(), path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        slimse.load_slimmed(make_linear(), path)


@torch.no_grad()
def test_one_width_is_exported():
    make, sample = CASES["2-D network"]
    x = sample()
    slim = slimse.slimmify(make().eval(), x)
    exported = torch.export.export(slimse.extract(slim, 0.25), (x,)).module()
    with slimse.at(0.25):
        torch.testing.assert_close(exported(x), slim(x))


@torch.no_grad()
def test_half_precision_keeps_the_width():
    slim = slimse.slimmify(make_linear().eval(), torch.randn(1, 4))
    x = torch.randn(3, 4)
    with slimse.at(0.25):
        expected = slim(x)
        halved = slim.half()(x.half())
    torch.testing.assert_close(halved.float(), expected, atol=5e-3, rtol=5e-3)
    assert slimse.extract(slim, 0.25)[0].weight.dtype == torch.float16

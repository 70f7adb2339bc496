"""Networks wired in ways that break what follows channels: right at every width, or refused by name."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import slimse

UFS = (0.125, 0.25, 0.5, 1.0)


class Wired(nn.Module):
    """Layers by name, and a function of them and of the input."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        """What the function gives."""
        return self.run(self, x)


def u_net(net, x):
    h = net.down(x)
    deep = net.deep(F.max_pool2d(h, 2).relu())
    return net.last(torch.cat([net.up(deep), h], 1))


def grouped_queries(net, x):
    q = net.q(x).view(*x.shape[:2], -1, 8).transpose(1, 2)
    k, v = (layer(x).view(*x.shape[:2], -1, 8).transpose(1, 2).repeat_interleave(2, 1) for layer in (net.k, net.v))
    return net.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def excite(net, x):
    h = net.i(x).relu()
    return net.o(h * net.b(net.a(h.mean(2)).relu()).sigmoid().unsqueeze(2))


def complex_pair(net, x):
    real, imag = net.i(x).chunk(2, 1)
    real, imag = net.r(real) - net.m(imag), net.r(imag) + net.m(real)
    return net.o(torch.cat([real, imag], 1))


def dense(net, x):
    for layer in (net.a, net.b, net.c):
        x = torch.cat([x, layer(x).relu()], 1)
    return net.o(x)


def conv(inputs, outputs, size=1, **options):
    return nn.Conv1d(inputs, outputs, size, padding=size // 2, **options)


FOLLOWED = {
    "U-Net with concatenated skips": (
        lambda: Wired(
            u_net,
            down=nn.Conv2d(3, 8, 3, padding=1),
            deep=nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GroupNorm(4, 16)),
            up=nn.ConvTranspose2d(16, 8, 2, 2),
            last=nn.Conv2d(16, 3, 1),
        ),
        (2, 3, 8, 8),
        {"down", "deep.0", "up"},
    ),
    "a module that runs twice": (
        lambda: Wired(
            lambda net, x: net.o(net.m(net.m(net.i(x)).relu()).relu()),
            i=nn.Linear(8, 16),
            m=nn.Linear(16, 16),
            o=nn.Linear(16, 8),
        ),
        (2, 8),
        {"i", "m"},
    ),
    "squeeze and excite": (
        lambda: Wired(excite, i=conv(8, 32), a=nn.Linear(32, 8), b=nn.Linear(8, 32), o=conv(32, 8)),
        (2, 8, 10),
        {"i", "a", "b"},
    ),
    "grouped-query attention": (
        lambda: Wired(grouped_queries, q=nn.Linear(8, 32), k=nn.Linear(8, 16), v=nn.Linear(8, 16), o=nn.Linear(32, 8)),
        (2, 6, 8),
        {"q", "k", "v"},
    ),
    "channels folded into features": (
        lambda: Wired(
            lambda net, x: net.o(net.f(net.c(x).flatten(1)).relu()),
            c=nn.Conv2d(1, 8, 3, padding=1),
            f=nn.Linear(128, 16),
            o=nn.Linear(16, 4),
        ),
        (2, 1, 4, 4),
        {"c", "f"},
    ),
    "complex pairs": (
        lambda: Wired(complex_pair, i=conv(2, 32), r=conv(16, 16), m=conv(16, 16), o=conv(32, 2)),
        (2, 2, 10),
        {"i"},
    ),
    "dense skips": (
        lambda: Wired(dense, a=conv(4, 8, 3), b=conv(12, 8, 3), c=conv(20, 8, 3), o=conv(28, 4)),
        (2, 4, 10),
        {"a", "b", "c"},
    ),
    "weights of a functional call stay full": (
        lambda: Wired(
            lambda net, x: net.last(F.conv1d(net.i(x), net.w, padding=1, groups=8)),
            i=conv(4, 8),
            w=nn.Parameter(torch.randn(8, 1, 3)),
            last=nn.Sequential(conv(8, 16), nn.ReLU(), conv(16, 4)),
        ),
        (2, 4, 10),
        {"last.0"},
    ),
    "normalized weights stay full": (
        lambda: Wired(
            lambda net, x: net.last(net.i(x)),
            i=nn.utils.parametrizations.weight_norm(conv(4, 8)),
            last=nn.Sequential(conv(8, 16), nn.ReLU(), conv(16, 4)),
        ),
        (2, 4, 10),
        {"last.0"},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FOLLOWED)
def test_wiring_is_followed(name):
    make, shape, layers = FOLLOWED[name]
    network = make().eval()
    slim = slimse.slimmify(copy.deepcopy(network), torch.randn(shape))
    assert {layer for group in slim.slimming.groups if not group.full for layer in group.layers} == layers
    x = torch.randn(shape)
    torch.testing.assert_close(slim(x), network(x))
    for uf in UFS:
        with slimse.at(uf):
            torch.testing.assert_close(slim(x), slimse.extract(slim, uf)(x))


def test_channels_in_another_order_stay_full():
    def shuffled(net, x):
        h = F.channel_shuffle(net.i(x).unsqueeze(3), 4).squeeze(3)
        return net.last(net.o(h))

    network = Wired(shuffled, i=conv(4, 16), o=conv(16, 4), last=nn.Sequential(conv(4, 16), nn.ReLU(), conv(16, 4)))
    slim = slimse.slimmify(network, torch.randn(1, 4, 6))
    full = {group.layers: group.full for group in slim.slimming.groups if group.full}
    assert full["i",] == "o reads a part of them, or in another order"


def test_tied_weights_stay_tied():
    network = Wired(
        lambda net, x: net.o(net.f(net.e(x))),
        e=nn.Embedding(30, 16),
        f=nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)),
        o=nn.Linear(16, 30, bias=False),
    )
    network.o.weight = network.e.weight
    slim = slimse.slimmify(network, torch.randint(30, (1, 5)))
    small = slimse.extract(slim, 0.5)
    assert small.o.weight is small.e.weight
    assert small.e.weight.shape == (30, 8)
    assert slim.slimming.widths[2].parameters == sum(p.numel() for p in small.parameters())


def test_weights_computed_by_hooks_are_refused_by_name():
    with pytest.warns(FutureWarning, match="deprecated"):
        layer = nn.utils.weight_norm(conv(4, 8))
    network = nn.Sequential(layer, nn.ReLU(), conv(8, 4))
    network(torch.randn(1, 4, 6))
    with pytest.raises(ValueError, match=r"^0\.weight is computed before each call"):
        slimse.slimmify(network, torch.randn(1, 4, 6))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_that_would_lose_the_width_is_refused(reentrant):
    block = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    network = Wired(lambda net, x: checkpoint(net.block, x, use_reentrant=reentrant), block=block)
    x = torch.randn(2, 4, requires_grad=True)
    network(x).sum().backward()
    slim = slimse.slimmify(network, torch.randn(2, 4))
    slim(x).sum().backward()
    with slimse.at(0.25):
        loss = slim(x).sum()
    with pytest.raises(ValueError, match=r"block\.0 runs again in a backward pass"):
        loss.backward()

    def inside(x):
        with slimse.at(0.25):
            return slim.block(x)

    slim.zero_grad()
    checkpoint(inside, x, use_reentrant=reentrant).sum().backward()
    assert not slim.block[0].weight.grad[4:].any()


def test_threads_of_data_parallel_are_refused():
    slim = slimse.slimmify(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 4)), torch.randn(2, 4))
    with pytest.raises(ValueError, match="DataParallel runs a network in threads that know no UF"):
        slim[0]._replicate_for_data_parallel()

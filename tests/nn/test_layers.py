"""Layers that stand in for those of `torch.nn`: the same at full width, and the plain small layer at every other."""

import pickle

import pytest
import torch
from torch import nn

from slimse.nn import SlimConv1d, SlimConvTranspose1d, SlimGRU, SlimLinear, SlimLSTM

UFS = (0.1, 0.25, 0.5, 1.0)
CONV1D = [
    {"kernel_size": 1},
    {"kernel_size": 8, "stride": 4, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "dtype": torch.float64},
    {"kernel_size": 4, "padding": "same", "dilation": 3},
    {"kernel_size": 5, "padding": "valid"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "stride": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
]
TRANSPOSED = [
    {"kernel_size": 8, "stride": 4},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "bias": False},
    {"kernel_size": 3, "dilation": 2},
]
LAYERS = [
    *((SlimConv1d, nn.Conv1d, options) for options in CONV1D),
    *((SlimConvTranspose1d, nn.ConvTranspose1d, options) for options in TRANSPOSED),
    (SlimLinear, nn.Linear, {}),
    (SlimLinear, nn.Linear, {"bias": False}),
]


def sample(options, *shape):
    return torch.randn(shape, dtype=options.get("dtype", torch.float32))


def as_layer(kind, x):
    """Channels last for linear layers."""
    return x.mT if kind is SlimLinear else x


@pytest.mark.parametrize(("slim", "plain", "options"), LAYERS)
def test_full_width_is_torchs_layer(slim, plain, options):
    torch.manual_seed(1)
    theirs = plain(6, 10, **options)
    torch.manual_seed(1)
    ours = slim(6, 10, **options)
    assert isinstance(ours, plain)
    state = theirs.state_dict()
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {k: t.shape for k, t in state.items()}
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    ours.load_state_dict(plain(6, 10, **options).state_dict())
    theirs.load_state_dict(ours.state_dict())
    for shape in ((3, 6, 21), (6, 21)):
        x = as_layer(slim, sample(options, *shape))
        torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x), ours(x))


@pytest.mark.parametrize("cut", ["output", "input", "both"])
@pytest.mark.parametrize(("slim", "plain", "options"), LAYERS)
def test_every_width_is_a_small_plain_layer(slim, plain, options, cut):
    layer = slim(6, 10, cut=cut, **options)
    x = as_layer(slim, sample(options, 3, 6, 21))
    for uf in UFS:
        small = layer.extract(uf)
        assert type(small) is plain
        channels = small.weight.shape[0 if slim is SlimConvTranspose1d else 1]
        narrow = x[..., :channels] if slim is SlimLinear else x[:, :channels]
        torch.testing.assert_close(layer(x, uf=uf), small(narrow))
        torch.testing.assert_close(layer(narrow, uf=uf), small(narrow))


@pytest.mark.parametrize(("slim", "plain", "options"), LAYERS)
def test_every_item_at_its_own_width(slim, plain, options):
    for cut in ("output", "both"):
        layer = slim(6, 10, cut=cut, **options)
        x = as_layer(slim, sample(options, 4, 6, 21))
        mixed = layer(x, uf=torch.tensor(UFS))
        for item, uf in enumerate(UFS):
            alone = layer(x[item : item + 1], uf=uf)
            axis = 2 if slim is SlimLinear else 1
            active, rest = mixed[item : item + 1].split([alone.shape[axis], 10 - alone.shape[axis]], axis)
            torch.testing.assert_close(active, alone)
            assert not rest.any()


def test_a_width_per_position():
    layer = SlimConv1d(4, 8, 3)
    x, uf = torch.randn(2, 4, 12), torch.tensor([0.25, 1.0]).repeat(2, 5)
    out, full = layer(x, uf=uf), layer(x)
    assert torch.equal(out[..., 1::2], full[..., 1::2])
    torch.testing.assert_close(out[:, :2, ::2], full[:, :2, ::2])
    assert not out[:, 2:, ::2].any()


def test_a_row_of_a_linear_layer_is_an_item():
    layer, x, uf = SlimLinear(6, 8, cut="both"), torch.randn(4, 6), torch.tensor(UFS)
    torch.testing.assert_close(layer(x, uf=uf), layer(x.unsqueeze(1), uf=uf).squeeze(1))


def test_output_size_of_a_transposed_convolution():
    ours, theirs = (kind(3, 4, 3, stride=2, padding=1) for kind in (SlimConvTranspose1d, nn.ConvTranspose1d))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 7)
    for size in (13, 14):
        torch.testing.assert_close(ours(x, [size]), theirs(x, [size]))
    with pytest.raises(ValueError, match="output size"):
        ours(x, [99])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SlimConv1d(4, 8, 3, groups=4), "cut = 'output' with groups = 4: expected 'both'"),
        (lambda: SlimLinear(4, 8, cut="outputs"), "cut = 'outputs': expected one of"),
        (lambda: SlimConv1d(4, 8, 3, backend="cudnn"), "backend = 'cudnn'"),
        (lambda: SlimLSTM(4, 8, precision="fp8"), "precision = 'fp8'"),
        (lambda: SlimLSTM(4, 8, proj_size=2), "proj_size = 2: expected 0"),
        (lambda: SlimConv1d(4, 8, 3)(torch.randn(1, 3, 9), uf=0.5), "the input has 3 channels: expected 4"),
        (lambda: SlimConv1d(4, 8, 3)(torch.randn(1, 4, 9), uf=0), r"uf = 0: expected a number in \(0, 1\]"),
        (lambda: SlimConv1d(4, 8, 3)(torch.randn(1, 4, 9), uf=torch.tensor([1.5])), "values from 1.5 to 1.5"),
        (
            lambda: SlimConv1d(4, 8, 3)(torch.randn(1, 4, 9), uf=torch.ones(1, 9)),
            r"expected a number or \[1\] or \[1, 7\]",
        ),
        (lambda: SlimGRU(4, 8)(torch.randn(5, 2, 4), uf=torch.ones(3)), r"expected a number, \[2\] or \[2, 5\]"),
        (lambda: SlimGRU(4, 8)(nn.utils.rnn.pack_sequence([torch.randn(3, 4)]), uf=0.5), "expected a padded tensor"),
        (
            lambda: SlimLSTM(4, 8)(torch.randn(5, 2, 3), uf=0.5),
            "the input has 3 channels: expected 4",
        ),
        (lambda: SlimGRU(4, 8)(torch.randn(4), uf=0.5), r"input has shape \(4,\): expected 2 or 3 axes"),
        (lambda: SlimLSTM(4, 8)(torch.randn(5, 2, 4), torch.zeros(1, 2, 8), uf=0.5), r"expected 2 of \(1, 2, 8\)"),
        (lambda: SlimGRU(4, 8, 2)(torch.randn(5, 2, 4), torch.zeros(1, 2, 8), uf=0.5), r"expected 1 of \(2, 2, 8\)"),
        (lambda: SlimLinear(4, 8)(torch.randn(4), uf=torch.ones(1)), r"shape \(4,\): expected \[B, ..., C_in\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


RECURRENT = [
    {},
    {"num_layers": 3, "batch_first": True},
    {"bidirectional": True, "num_layers": 2, "dtype": torch.float64},
    {"bias": False, "num_layers": 2},
]


def states(kind, layers, batch, units, dtype):
    parts = tuple(torch.randn(layers, batch, units, dtype=dtype) for _ in range(2 if kind is SlimLSTM else 1))
    return parts if kind is SlimLSTM else parts[0]


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize(("slim", "plain"), [(SlimLSTM, nn.LSTM), (SlimGRU, nn.GRU)])
def test_full_width_is_torchs_recurrent_layer(slim, plain, options):
    torch.manual_seed(1)
    theirs = plain(5, 7, **options)
    torch.manual_seed(1)
    ours = slim(5, 7, **options)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    ours.flatten_parameters()
    assert ours.proj_size == theirs.proj_size
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    layers = ours.num_layers * ours.directions
    x, state = sample(options, 4, 4, 5), states(slim, layers, 4, 7, options.get("dtype", torch.float32))
    first = tuple(part[:, 0] for part in as_tuple(state))
    calls = [(x, None), (x, state), (x[:, 0], first if slim is SlimLSTM else first[0])]
    for given, start in calls:
        (mine, last), (expected, end) = ours(given, start), theirs(given, start)
        torch.testing.assert_close(mine, expected)
        torch.testing.assert_close(last, end)


@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize("slim", [SlimLSTM, SlimGRU])
def test_every_width_is_a_small_plain_recurrent_layer(slim, options):
    layer = slim(5, 7, **options)
    count = layer.num_layers * layer.directions
    x, state = sample(options, 6, 6, 5), states(slim, count, 6, 7, options.get("dtype", torch.float32))
    for uf in UFS:
        small = layer.extract(uf)
        k = small.hidden_size
        cut = tuple(part[..., :k].contiguous() for part in as_tuple(state))
        (out, last), (expected, end) = layer(x, state, uf=uf), small(x, cut if slim is SlimLSTM else cut[0])
        torch.testing.assert_close(out, expected)
        for whole, part, before in zip(as_tuple(last), as_tuple(end), as_tuple(state), strict=True):
            torch.testing.assert_close(whole[..., :k], part)
            assert torch.equal(whole[..., k:], before[..., k:])


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("slim", [SlimLSTM, SlimGRU])
def test_every_item_of_a_recurrent_layer_at_its_own_width(slim, directions):
    layer = slim(5, 8, 2, batch_first=True, bidirectional=directions == 2)
    x = torch.randn(4, 6, 5)
    mixed, _ = layer(x, uf=torch.tensor(UFS))
    for item, uf in enumerate(UFS):
        alone, _ = layer(x[item : item + 1], uf=uf)
        active = mixed[item : item + 1].unflatten(-1, (directions, 8))
        k = alone.shape[2] // directions
        torch.testing.assert_close(active[..., :k].flatten(2), alone)
        assert not active[..., k:].any()


def test_dropout_between_recurrent_layers():
    layer = SlimLSTM(4, 6, 2, dropout=1.0)
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        dropped = layer(x)[0]
        layer.weight_ih_l1.zero_()
        assert torch.equal(layer(x)[0], dropped)
        assert torch.equal(layer.eval()(x)[0], dropped)


@pytest.mark.parametrize("layer", [SlimLinear(8, 8, cut="both"), SlimLSTM(8, 8, 2, bidirectional=True)])
def test_weights_that_change_between_calls_are_seen(layer):
    x, plain = torch.randn(2, 3, 8), type(layer)

    def check():
        first, expected = (out if isinstance(out, torch.Tensor) else out[0] for out in (layer(y, uf=0.5), plain_call()))
        torch.testing.assert_close(first, expected)

    def plain_call():
        return layer.extract(0.5)(y if plain is SlimLSTM else y[..., :4])

    with torch.no_grad():
        y = x
        check()
        for parameter in layer.parameters():
            parameter.data.mul_(2)
        check()
        for parameter in layer.parameters():
            parameter.data = torch.randn_like(parameter)
        check()
        layer.load_state_dict({name: torch.randn_like(p) for name, p in layer.state_dict().items()}, assign=True)
        check()
        layer.double()
        y = x.double()
        check()
        other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
        found, expected = (
            out if isinstance(out, torch.Tensor) else out[0]
            for out in (
                torch.func.functional_call(layer, other, (y,), {"uf": 0.5}),
                (layer.load_state_dict(other), layer(y, uf=0.5))[1],
            )
        )
        torch.testing.assert_close(found, expected)
    assert "_kept" not in pickle.loads(pickle.dumps(layer)).__dict__


@pytest.mark.parametrize(("uf", "size"), [(0.14, 50), (0.07, 100), (0.1, 30), (0.3, 10)])
def test_a_number_and_a_tensor_give_the_same_channels(uf, size):
    layer, x = SlimLinear(4, size), torch.randn(1, 4)
    alone = layer(x, uf=uf)
    assert alone.shape[1] == round(uf * size)
    mixed = layer(x, uf=torch.tensor([uf]))
    torch.testing.assert_close(mixed[:, : alone.shape[1]], alone)
    assert not mixed[:, alone.shape[1] :].any()

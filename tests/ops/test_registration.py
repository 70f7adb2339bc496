"""Every op as registered with PyTorch: on the CPU, under its checker, gradcheck, compiler and exporter."""

import os
import subprocess
import sys

import pytest
import torch
from slimse.kernels.rows import FrameWidths, frame_orders

from slimse import SlimModel, ops
from slimse.ops.arguments import width_parts
from slimse.width import SoftWidth


def double(*shape):
    return (0.5 * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def cases():
    """Per op: its arguments, with the places of widths and the shapes (and limits) that they have as tensors."""
    torch.manual_seed(0)
    return {
        "encoder_block": ([double(2, 14, 2), double(5, 8), double(5), double(5, 10), double(10), 3, 2], {5: (6, 5)}),
        "decoder_block": (
            [double(2, 4, 3), double(3, 2, 3), double(3, 2), double(3, 8), 2, 2, 2, double(2, 4, 3), double(2), True],
            {4: (4, 3)},
        ),
        "slim_conv1d": ([double(2, 11, 4), double(5, 3, 4), double(5), 3, 2, 2, 1, 2], {3: (11, 4), 4: (5, 5)}),
        "slim_conv_transpose1d": (
            [double(2, 5, 4), double(4, 3, 5), None, 3, 2, 2, 1, 1, 1, True],
            {3: (5, 4), 4: (10, 5)},
        ),
        "slim_linear_glu": (
            [double(2, 5, 4), double(3, 2, 4), double(3, 2), 2, "output", double(2, 5, 4)],
            {3: (5, 3)},
        ),
        "diagonal_gru": ([double(2, 4, 3, 3), double(3, 3), double(3, 3), double(2, 3)], {}),
        "slim_gru": (
            [
                double(2, 3, 4),
                double(2, 3, 3, 2),
                double(2, 3, 3, 3),
                *(double(2, 3, 3) for _ in "ab"),
                2,
                double(2, 2, 3),
            ],
            {5: (3, 3)},
        ),
        "slim_lstm": (
            [double(2, 3, 4), double(3, 4, 4), double(3, 4, 3), double(3, 4), 2, (double(2, 3), double(2, 3))],
            {4: (3, 3)},
        ),
    }


BLOCKS = ("encoder_block", "decoder_block")
KINDS = [
    *(
        (name, kind)
        for name, (_, widths) in cases().items()
        for kind in (("uniform", "ragged") if widths else ("uniform",))
    ),
    *((name, "frames") for name in BLOCKS),
]


@pytest.fixture(autouse=True)
def _no_graphs_left():
    """The functions of all ops share one code, of which the compiler keeps a few graphs."""
    torch.compiler.reset()


@pytest.fixture(params=KINDS, ids="-".join)
def case(request):
    """An op's name and its arguments."""
    return build(*request.param)


@pytest.fixture(params=cases())
def widest_case(request):
    """The same, only with as many tensors as the op takes."""
    return build(request.param, "frames" if request.param in BLOCKS else "ragged")


def build(name, kind):
    arguments, widths = cases()[name]
    for place, (positions, limit) in widths.items() if kind != "uniform" else ():
        if kind == "frames":
            choice = torch.randint(0, 2, (2, positions // 2), dtype=torch.int32)
            counts = torch.tensor([1, limit], dtype=torch.int32)
            arguments[place] = FrameWidths(choice, counts, 2, 1, frame_orders(choice, 2))
        else:
            arguments[place] = torch.randint(0, limit + 1, (2, positions))
    return name, arguments


def registered(name, arguments):
    """Name, and the arguments of ``torch.ops.slimse.<name>``."""
    _, widths = cases()[name]
    flat = []
    for place, value in enumerate(arguments):
        if place in widths:
            flat += width_parts(value)[: 7 if name in BLOCKS else 2]
        elif isinstance(value, tuple):
            flat += value
        else:
            flat.append(value)
    schema = getattr(torch.ops.slimse, name).default._schema
    rest = {"stride": 1, "padding": 0, "dilation": 1, "relu": False, "skip": None, "backend": "reference"}
    names = [argument.name for argument in schema.arguments[len(flat) :]]
    return getattr(torch.ops.slimse, name).default, [*flat, *(({**rest, "precision": "ieee"})[n] for n in names)]


def tensors(arguments):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]


def flat_result(value):
    return torch.utils._pytree.tree_leaves(value)


def test_opcheck(case):
    op, flat = registered(*case)
    assert set(torch.library.opcheck(op, flat).values()) == {"SUCCESS"}


def test_gradcheck(case):
    op, flat = registered(*case)
    assert torch.autograd.gradcheck(op, flat, fast_mode=True)


def test_the_op_gives_what_the_twin_gives(case):
    name, arguments = case
    op, flat = registered(name, arguments)
    leaves = [leaf for leaf in tensors(arguments) if leaf.requires_grad]
    results = []
    for outputs in (flat_result(op(*flat)), flat_result(getattr(ops, name)(*arguments))):
        grads = torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)
        results.append([*outputs, *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compiled_in_one_graph(widest_case):
    name, arguments = widest_case
    leaves = [leaf for leaf in tensors(arguments) if leaf.requires_grad]
    plain = flat_result(getattr(ops, name)(*arguments))
    compiled = torch.compile(getattr(ops, name), fullgraph=True, backend="aot_eager")
    outputs = flat_result(compiled(*arguments))
    for ours, theirs in zip(outputs, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        torch.autograd.grad(outputs[0].sum(), leaves, allow_unused=True),
        torch.autograd.grad(plain[0].sum(), leaves, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


def test_export_and_run_again(widest_case):
    name, arguments = widest_case

    class Layer(torch.nn.Module):
        def forward(self, *given):
            it = iter(given)
            full = torch.utils._pytree.tree_map(
                lambda leaf: next(it) if isinstance(leaf, torch.Tensor) else leaf, arguments
            )
            return getattr(ops, name)(*full)

    given = tuple(leaf.detach() for leaf in tensors(arguments))
    program = torch.export.export(Layer(), given)
    assert f"slimse.{name}" in str(program.graph)
    for ours, theirs in zip(flat_result(program.module()(*given)), flat_result(Layer()(*given)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_graph_serves_every_width_and_length():
    _, *weights, _, stride = cases()["encoder_block"][0]
    compiled = torch.compile(ops.encoder_block, fullgraph=True, backend="aot_eager", dynamic=True)
    for time in (14, 23, 40):
        for width in (1, 2, 3, 4):
            longer = torch.randn(2, time, 2, dtype=torch.float64)
            torch.testing.assert_close(
                compiled(longer, *weights, width, stride), ops.encoder_block(longer, *weights, width, stride)
            )


def test_soft_widths_run_on_the_twin_and_learn():
    x, *weights, _, stride = cases()["encoder_block"][0]
    mask = torch.rand(2, 6, 5, dtype=torch.float64, requires_grad=True)
    ops.encoder_block(x, *weights, SoftWidth(mask), stride).sum().backward()
    assert mask.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="with a soft width"):
        ops.encoder_block(x.float(), *(w.float() for w in weights), SoftWidth(mask), stride, backend="triton")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "backend = 'cuda': expected one of"),
        ({"precision": "half"}, "precision = 'half': expected one of"),
        ({"backend": "triton"}, "with torch.float64: expected"),
    ],
)
def test_a_choice_that_cannot_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ops.encoder_block(*cases()["encoder_block"][0], **options)
    with pytest.raises(TypeError, match="encoder_block takes"):
        ops.encoder_block(*cases()["encoder_block"][0], 1, 2, backend="triton")
    op, flat = registered("encoder_block", cases()["encoder_block"][0])
    with pytest.raises(ValueError, match="backend = 'cuda': expected one of"):
        op(*flat[:-2], "cuda", "ieee")


def test_autocast_reaches_products_but_not_states():
    x, *weights, _, stride = [
        t.detach().float() if isinstance(t, torch.Tensor) else t for t in cases()["encoder_block"][0]
    ]
    plain = ops.encoder_block(x, *weights, 3, stride)
    arguments = [t.detach().float() if isinstance(t, torch.Tensor) else t for t in cases()["slim_gru"][0]]
    compiled = torch.compile(ops.encoder_block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        for block in (ops.encoder_block, compiled):
            rounded = block(x, *weights, 3, stride)
            assert rounded.dtype == torch.bfloat16
            assert 0 < float((rounded - plain).norm() / plain.norm()) < 0.02
        out, state = ops.slim_gru(arguments[0].bfloat16(), *arguments[1:])
    assert out.dtype == state.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("ragged", [False, True])
def test_the_whole_network_exports_and_compiles(ragged):
    model, noisy = SlimModel("small").eval(), torch.randn(2, 1, 400)
    uf = torch.tensor([0.25, 1.0]) if ragged else 0.25
    expected = model(noisy, uf)
    program = torch.export.export(model, (noisy, uf))
    torch.testing.assert_close(program.module()(noisy, uf), expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(noisy, uf), expected)
    # Nothing of the tracers stays behind.
    assert torch.equal(model(noisy, uf), expected)


REFUSED = """
import importlib.util, sys
import torch
if sys.argv[1] == "missing":
    importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "triton" else find(name)
import slimse
try:
    slimse.SlimModel("small", backend="triton")(torch.randn(1, 1, 100))
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("case", "message"),
    [("missing", "Triton is not installed; expected 'auto' or 'reference'"), ("cpu", "the tensors are on the CPU")],
)
def test_kernels_that_cannot_run_say_so(case, message):
    if case == "cpu":
        pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", REFUSED, case]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert message in done.stdout

"""First use of a kernel with backend "auto": checked against the reference, left out where it differs or fails."""

import warnings
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels import launching, recurrence

from bench import checks
from slimse import ops
from slimse.ops import launchers, registration, verdicts
from slimse.ops.registry import SPECS

OPS = launchers.KERNELS


@pytest.fixture(autouse=True)
def _auto_means_kernels(monkeypatch, tmp_path):
    """As on a GPU, with an empty folder of verdicts."""
    monkeypatch.setattr(registration, "_on_gpu", lambda x: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    verdicts.forget()
    yield
    verdicts.forget()


@pytest.fixture
def launches(monkeypatch):
    """Names of the ops whose kernels were launched."""
    found = []
    forward = launchers.forward
    monkeypatch.setattr(launchers, "forward", lambda spec, *rest: found.append(spec.name) or forward(spec, *rest))
    return found


def run(name, ragged=False, grad=False, **choice):
    torch.manual_seed(0)
    width = torch.randint(0, 49, (2, checks.STEPS)) if ragged else 12
    given = checks.arguments_of(name, width, torch.float32, "cpu")
    if grad:
        return checks.run(name, given, torch.float32, **choice)
    return torch.utils._pytree.tree_leaves(getattr(ops, name)(*given, **choice))


def same(ours, theirs):
    for mine, true in zip(*map(torch.utils._pytree.tree_leaves, (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "ragged"),
    [
        # Two minutes each in the interpreter: a step is a launch there.
        pytest.param(name, ragged, marks=pytest.mark.exhaustive if ragged and name in ("slim_gru", "slim_lstm") else ())
        for name in OPS
        for ragged in (False, True)
    ],
)
def test_right_kernel_is_checked_once_and_runs(name, ragged, launches, recwarn):
    expected = run(name, ragged, grad=True, backend="reference")
    same(run(name, ragged, grad=True), expected)
    # Once for the check, once for the call.
    assert launches == [name] * 2
    run(name, ragged)
    assert launches == [name] * 3
    told = verdicts.summary(torch.device("cpu"))
    assert told == {name: "2 of 2 kernels as the reference"}
    # A later process reads what this one found.
    verdicts.forget()
    run(name, ragged)
    assert launches == [name] * 4
    assert not [warning for warning in recwarn if "slimse.ops" in str(warning.message)]


@pytest.mark.parametrize("fault", ["differs", "NaN", "raises"])
def test_failing_forward_kernel_falls_back_with_one_warning(fault, monkeypatch):
    expected = run("slim_linear_glu", backend="reference")
    forward = launchers.forward

    def broken(spec, values, precision):
        if fault == "raises":
            raise RuntimeError("out of resource: shared memory, Required: 106496, Hardware limit: 101376")
        out = forward(spec, values, precision)
        out.view(-1)[3] = {"differs": out.view(-1)[3] + 1, "NaN": float("nan")}[fault]
        return out

    monkeypatch.setattr(launchers, "forward", broken)
    with pytest.warns(RuntimeWarning, match="slim_linear_glu runs in plain PyTorch") as caught:
        for ragged in (False, False, True):
            run("slim_linear_glu", ragged)
        same(run("slim_linear_glu"), expected)
    assert len(caught) == 1
    assert {"differs": "is off by", "NaN": "nan", "raises": "shared memory"}[fault] in str(caught[0].message)
    # Asked for by name it runs or raises.
    if fault == "raises":
        with pytest.raises(RuntimeError, match="shared memory"):
            run("slim_linear_glu", backend="triton")
    # A later process warns as well, and does not try again.
    verdicts.forget()
    monkeypatch.setattr(launchers, "forward", lambda *_: pytest.fail("launched"))
    with pytest.warns(RuntimeWarning, match="slim_linear_glu"):
        same(run("slim_linear_glu"), expected)
    assert "plain PyTorch" in verdicts.summary(torch.device("cpu"))["slim_linear_glu"]


def test_kernel_that_fails_after_its_check_falls_back(monkeypatch):
    run("encoder_block")
    monkeypatch.setattr(launchers, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("launch failed")))
    with pytest.warns(RuntimeWarning, match="encoder_block runs in plain PyTorch.*launch failed"):
        same(run("encoder_block"), run("encoder_block", backend="reference"))


@pytest.fixture
def spread_gru(monkeypatch):
    """Calls a GRU whose units are spread over three programs; and what it is to give."""
    shapes = ((2, 3, 4), (1, 40, 3, 4), (1, 40, 3, 40), (1, 40, 3), (1, 40, 3), (1, 2, 40))
    *weights, state = (0.3 * torch.randn(shape) for shape in shapes)
    flag = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(launching, "gave_up_flag", lambda device: flag)
    monkeypatch.setattr(recurrence, "POLLS", 2)
    call = partial(ops.slim_gru, *weights, 40, state)
    return call, call(backend="reference")


def check_fallback(call, expected, message):
    with pytest.warns(RuntimeWarning, match=f"slim_gru runs in plain PyTorch.*{message}") as caught:
        for _ in range(2):
            same(call(), expected)
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match=message):
        call(backend="triton")


def test_programs_that_the_driver_does_not_put_on_the_chip_together(spread_gru, monkeypatch):
    launch = launching.launch

    def refuse(*args, launch_cooperative_grid=False, **options):
        if launch_cooperative_grid:
            raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")
        launch(*args, **options)

    monkeypatch.setattr(launching, "resident_programs", lambda device: 132)
    monkeypatch.setattr(launching, "launch", refuse)
    check_fallback(*spread_gru, "too many blocks")


def test_wait_in_vain_after_the_check_shows_at_the_next_call(spread_gru, monkeypatch):
    call, expected = spread_gru
    # The interpreter runs a launch a step.
    same(call(), expected)
    # Now one program after the other, so that the first waits for the others in vain.
    monkeypatch.setattr(launching, "resident_programs", lambda device: 132)
    assert call()[0].isnan().any()
    check_fallback(call, expected, "waited in vain")


def test_out_of_memory_is_no_verdict(monkeypatch):
    run("encoder_block")
    monkeypatch.setattr(launchers, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        run("encoder_block")


@pytest.mark.parametrize("name", ["decoder_block", "slim_gru"])
def test_wrong_gradient_falls_back(name, monkeypatch):
    expected = run(name, grad=True, backend="reference")
    backward = launchers.backward

    def wrong(*args):
        return [None if grad is None else grad * 2 for grad in backward(*args)]

    monkeypatch.setattr(launchers, "backward", wrong)
    with pytest.warns(RuntimeWarning, match=f"{name} runs in plain PyTorch"):
        same(run(name, grad=True), expected)


def test_first_use_inside_of_a_graph_runs_the_reference(monkeypatch, launches):
    """And is checked the next time."""
    expected = run("slim_linear_glu", backend="reference")
    monkeypatch.setattr(verdicts, "_capturing", lambda device: True)
    with pytest.warns(RuntimeWarning, match="inside of a CUDA graph"):
        same(run("slim_linear_glu"), expected)
    assert launches == []
    monkeypatch.setattr(verdicts, "_capturing", lambda device: False)
    run("slim_linear_glu")
    assert launches == ["slim_linear_glu"] * 2
    monkeypatch.setattr(verdicts, "_capturing", lambda device: True)
    run("slim_linear_glu")
    assert launches == ["slim_linear_glu"] * 3


def test_compiled_calls_are_checked_where_they_run(launches):
    given = checks.arguments_of("encoder_block", 12, torch.float32, "cpu")
    compiled = torch.compile(ops.encoder_block, fullgraph=True, backend="aot_eager")
    same(compiled(*given), ops.encoder_block(*given, backend="reference"))
    assert launches == ["encoder_block"] * 2


def test_number_of_keys_does_not_grow_with_length_or_batch():
    spec = SPECS["encoder_block"]
    keys = set()
    for batch, time in ((2, 600), (3, 700), (64, 64_000)):
        for width in (33, 48, 64):
            values = {"x": torch.empty(batch, time, 3, device="meta"), "conv_weight": torch.empty(64, 24)}
            values |= {"conv_bias": torch.empty(64), "glu_weight": torch.empty(64, 128), "glu_bias": torch.empty(128)}
            keys.add(verdicts.key_of(spec, "forward", {**values, "width": width, "stride": 4}, "ieee"))
    assert len(keys) == 1


def test_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verdicts.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run("diagonal_gru")

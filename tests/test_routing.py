"""Training with a router: gates, losses, stages, several processes, interruption."""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from causal_conv import ConvConfig

import slimse
from slimse import PRESETS, ModelConfig, SlimModel
from slimse.router import Router, RouterConfig

pytest.importorskip("lightning", reason="training needs the extra slimse[train]")

from slimse.profiling import profile
from slimse.training.config import TrainConfig
from slimse.training.losses import EnhancementLoss
from slimse.training.module import SlimmableTraining
from slimse.training.optimizer import MuonAdamW
from slimse.training.routing import (
    RoutingLoss,
    calibrate,
    frame_benefit,
    max_entropy_shares,
    measured,
    router_overhead_uf,
    straight_through_gates,
)
from slimse.training.run import prepare

MODEL_CONFIG = replace(PRESETS["small"], router=RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4))
CONFIG = TrainConfig(stage="joint", preset="small", batch=4, narrow_batch=4, steps=100, warmup=1, precision="32-true")


def module_of(config=CONFIG, model=None):
    torch.manual_seed(0)
    module = SlimmableTraining(config, model or SlimModel(MODEL_CONFIG))
    module.log = module.log_dict = lambda *_, **__: None
    return module


def some_pairs(count=4, samples=4000):
    generator = torch.Generator().manual_seed(1)
    clean = 0.05 * torch.sin(2 * torch.pi * 200 * torch.arange(samples) / 16_000).expand(count, 1, -1)
    noise = 0.05 * torch.randn(count, 1, samples, generator=generator)
    return clean + noise * torch.logspace(-1, 0.5, count)[:, None, None], clean


def loss_of(beta=1.0, gamma=0.1):
    return RoutingLoss(Router(RouterConfig(knots=4), PRESETS["small"].network.ufs, 256, 16_000), beta, gamma)


def use(loss, logits, budget):
    """Value and gradient of the loss for softmax gates ``[B, frames, 4]``."""
    logits = torch.as_tensor(logits, dtype=torch.float32).requires_grad_()
    budget = torch.as_tensor(budget, dtype=torch.float32)
    router = Router(RouterConfig(knots=4), PRESETS["small"].network.ufs, 256, 16_000)
    value, parts = loss(torch.softmax(logits, -1), budget, router.knot_weights(budget))
    value.backward()
    return float(value.detach()), logits.grad, parts


def test_gates_are_one_hot_with_the_gradient_of_the_softmax():
    logits = torch.randn(2, 5, 4, requires_grad=True)
    noise = -torch.log(-torch.log(torch.rand(2, 5, 4)))
    gates = straight_through_gates(logits, noise, 0.5)
    assert torch.equal(gates.detach(), torch.nn.functional.one_hot((logits / 0.5 + noise).argmax(-1), 4).float())
    weights = torch.randn(4)
    (hard,) = torch.autograd.grad((gates * weights).sum(), logits)
    (soft,) = torch.autograd.grad((torch.softmax(logits / 0.5 + noise, -1) * weights).sum(), logits)
    assert torch.allclose(hard, soft)


def test_cold_gates_are_the_argmax_of_inference():
    logits, noise = torch.randn(100, 4), torch.randn(100, 4)
    assert torch.equal(straight_through_gates(logits, noise, 1e-4).argmax(-1), logits.argmax(-1))


def test_use_above_the_budget_is_pulled_down_and_below_it_up():
    for budget, sign in ((0.2, 1), (0.9, -1)):
        value, gradient, parts = use(loss_of(gamma=0.0), torch.zeros(2, 3, 4), [budget, budget])
        assert value == pytest.approx(float(parts["efficiency"]))
        assert value > 0
        # Descent lowers the logit of the widest where too much is used.
        assert (sign * gradient[..., -1] > 0).all()


def test_the_running_average_counts_and_every_clip_pays_the_same():
    loss = loss_of(gamma=0.0)
    wide = torch.tensor([0.0, 0.0, 0.0, 20.0]).expand(2, 3, 4)
    for _ in range(20):
        use(loss, wide, [0.3, 0.3])
    # One clip uses little, one everything: the average is above the budget, so both are asked for less.
    mixed = torch.stack([torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])])[:, None].repeat(
        1, 3, 1
    )
    _, gradient, _ = use(loss, mixed, [0.3, 0.3])
    assert (gradient[..., -1] > 0).all()
    price = loss_of(gamma=0.0)
    logits = torch.zeros(2, 3, 4)
    _, gradient, _ = use(price, logits, [0.3, 0.3])
    assert torch.allclose(gradient[0], gradient[1])


def test_balance_pulls_towards_widths_that_are_not_used():
    logits = torch.tensor([0.0, 4.0, 0.0, 0.0]).expand(2, 3, 4)
    loss = loss_of(beta=0.0, gamma=1.0)
    for _ in range(50):
        value, gradient, parts = use(loss, logits, [0.3, 0.3])
    assert value == pytest.approx(float(parts["balance"]))
    assert (gradient[..., 1] > 0).all()
    assert (gradient[..., [0, 2]] < 0).all()


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.7])
def test_descent_meets_the_budget_on_average_only(budget):
    """Two kinds of clips, one of which gains by width: their mean is the budget, and they differ."""
    loss = loss_of()
    logits = torch.zeros(2, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.02)
    router = Router(RouterConfig(knots=4), PRESETS["small"].network.ufs, 256, 16_000)
    budgets, ufs = torch.full((2,), budget), torch.tensor(PRESETS["small"].network.ufs)
    for _ in range(300):
        shares = torch.softmax(logits, -1)
        value, _ = loss(shares[:, None].expand(2, 5, 4), budgets, router.knot_weights(budgets))
        gain = 0.02 * (shares[1] @ ufs.log2())
        optimizer.zero_grad()
        (value - gain).backward()
        optimizer.step()
    easy, hard = (torch.softmax(logits, -1) @ ufs).tolist()
    assert (easy + hard) / 2 == pytest.approx(budget, abs=0.03)
    assert hard > easy + 0.001


@pytest.mark.parametrize(
    "config", [MODEL_CONFIG, ModelConfig(ConvConfig(channels=400), router=MODEL_CONFIG.router)], ids=["demucs", "conv"]
)
def test_calibration_makes_the_mean_use_what_is_asked(config):
    torch.manual_seed(0)
    model = SlimModel(config).requires_grad_(False)
    model.router.output.weight.normal_(std=2.0)
    noisy = 0.05 * torch.randn(20, 1, 8000) * torch.logspace(-1.5, 0.5, 20)[:, None, None]
    calibrate(model, noisy)
    costs, own = profile(model), router_overhead_uf(model)
    assert own > 0.01
    for budget in model.router.budgets[1:-1]:
        ufs = model.route(noisy, float(budget))
        assert float(ufs.mean()) + own == pytest.approx(0.97 * float(budget), abs=0.06)
        # What a fixed UF of that number would cost, if there were one.
        per_uf = costs.router_macs_per_sample / own
        fixed = costs.widths[0].macs_per_sample + per_uf * (0.97 * float(budget) - costs.widths[0].uf)
        assert costs.macs_per_sample(ufs) == pytest.approx(fixed, abs=0.06 * per_uf)
    assert (model.router.calibrated_budgets.diff() >= 0).all()
    assert (model.route(noisy, model.ufs[0]) == model.ufs[0]).all()


def test_benefit_is_where_the_wide_output_is_better():
    noisy, clean = some_pairs(2)
    narrow = clean.clone()
    narrow[0, 0, 2000:] += 0.02
    loss = EnhancementLoss(error_level=0.3)
    benefit = frame_benefit(loss, noisy, clean, clean, narrow, 32, 125)
    assert benefit.shape == (2, 125)
    assert (benefit[0, 62:] > 0).all()
    # The windows of the STFT reach 512 samples beyond their middle.
    assert (benefit[0, :44] == 0).all()
    assert (benefit[1] == 0).all()
    assert frame_benefit(loss, noisy, clean, narrow, clean, 32, 125).equal(-benefit)
    # Without them, it is exact to the frame.
    waveform = frame_benefit(EnhancementLoss(spectral=0.0), noisy, clean, clean, narrow, 32, 125)
    assert (waveform[0, 62:] > 0).all()
    assert (waveform[0, :60] == 0).all()


def test_frames_share_what_is_saved_of_the_loss():
    noisy, clean = some_pairs(3)
    wide, narrow = clean + 0.1 * (noisy - clean), clean + 0.11 * (noisy - clean)
    loss = EnhancementLoss(error_level=0.3, pesq=0.0)
    saved = loss.saved_per_frame(narrow, wide, clean, noisy, 32, 125)
    whole = loss.per_item(narrow, clean, noisy) - loss.per_item(wide, clean, noisy)
    assert saved.mean(1).tolist() == pytest.approx(whole.tolist(), rel=0.03)


def test_max_entropy_shares_have_the_mean_that_is_asked():
    ufs = PRESETS["small"].network.ufs
    shares = max_entropy_shares(ufs, torch.tensor([0.125, 0.25, 0.6, 1.0]))
    assert (shares > 0).all()
    assert (shares @ torch.tensor(ufs))[1:3].tolist() == pytest.approx([0.25, 0.6], abs=1e-5)


def measured_pairs(module):
    """A batch of stage ``router``."""
    pairs = list(zip(*some_pairs(), strict=True))
    return measured(module.model, module.loss, pairs, len(pairs), torch.device("cpu")).tensors


def test_stages_train_what_they_should():
    batch = some_pairs()
    for stage, backbone, router in (
        ("backbone", True, False),
        ("router", False, True),
        ("joint", True, True),
        ("fixed", True, False),
    ):
        module = module_of(replace(CONFIG, stage=stage, fixed_uf=1.0))
        module.training_step(measured_pairs(module) if stage == "router" else batch, 0).backward()
        gradients = {name: p.grad is not None and bool(p.grad.any()) for name, p in module.model.named_parameters()}
        assert {ok for name, ok in gradients.items() if not name.startswith("router.")} == {backbone}, stage
        assert {ok for name, ok in gradients.items() if name.startswith("router.")} == {router}, stage
    # Without a gradient through the gates, the router still learns from measured benefits, and the backbone from it.
    module = module_of(replace(CONFIG, stage="joint", straight_through=0.0))
    routed = []
    module.model.register_forward_pre_hook(lambda _, args: routed.append(args[1]))
    module.training_step(batch, 0).backward()
    assert all(p.grad.any() for p in module.model.router.parameters())
    (gates,) = (uf for uf in routed if isinstance(uf, torch.Tensor))
    assert not gates.requires_grad
    with pytest.raises(ValueError, match="a model with a router"):
        SlimmableTraining(CONFIG, SlimModel("small"))


def test_the_router_stage_weighs_every_width_at_several_budgets(monkeypatch):
    module = module_of(replace(CONFIG, stage="router", budgets_per_item=3))
    model, (noisy, clean) = module.model, some_pairs()
    # Widths that differ, and a deaf router, so that its shares are those of the budgets.
    with torch.no_grad():
        for parameter in model.network.decoder.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
        model.router.output.weight.zero_()
    pairs = list(zip(noisy, clean, strict=True))
    sounds, costs = measured(model, module.loss, pairs, 3, torch.device("cpu")).tensors
    frames, hop = model.geometry.frames(4000), model.geometry.hop
    assert sounds.equal(noisy[:3]) and costs.shape == (3, frames, 4)
    outputs = [model(sounds, uf) for uf in model.ufs]
    for column, output in zip(costs.unbind(2), outputs, strict=True):
        worth = frame_benefit(module.loss, sounds, clean[:3], outputs[-1], output, hop, frames)
        torch.testing.assert_close(column, worth, rtol=1e-4, atol=1e-6)
    asked, logits = [], model.router_logits
    monkeypatch.setattr(model, "router_logits", lambda x, s, f, b: asked.append(b) or logits(x, s, f, b))
    logged = {}
    module.log_dict = logged.update
    module.training_step((sounds, costs), 0)
    assert len(asked[0]) == 9 and len(asked[0].unique()) == 9
    wanted = model.router.knot_weights(asked[0]) @ model.router.bias_width
    octaves = torch.tensor(model.ufs).log2()
    shares = (-2 * (wanted[:, None] - octaves).square()).softmax(-1).unflatten(0, (3, 3)).mean(0)
    assert float(logged["train/benefit"]) == pytest.approx((shares * costs.mean(1)).sum(1).mean().item(), rel=1e-3)
    with pytest.raises(ValueError, match="budgets_per_item = 2"):
        replace(CONFIG, budgets_per_item=2)
    with pytest.raises(ValueError, match="measured = 1: expected at least batch"):
        replace(CONFIG, stage="router", measured=1)


def test_the_router_decides_alike_under_autocast():
    """Validation during a run in bf16 routes as inference does."""
    model = module_of().model.eval()
    noisy = torch.randn(2, 1, 4000)
    with torch.no_grad():
        expected = model.route(noisy, 0.25)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.route(noisy, 0.25).equal(expected)


def test_fixed_trains_its_width_alone():
    module = module_of(replace(CONFIG, stage="fixed", fixed_uf=0.25))
    module.training_step(some_pairs(), 0).backward()
    gradient = module.model.network.encoder[0].conv_weight.grad
    assert gradient[:2].any()
    assert not gradient[2:].any()


def test_steps_draw_alike_again_and_differently_later():
    module, batch = module_of(), some_pairs()
    module._trainer = types.SimpleNamespace(global_step=3, global_rank=0, world_size=1)
    rng = {}
    for name, step in (("first", 3), ("again", 3), ("later", 4)):
        module.routing = RoutingLoss(module.model.router)
        module._trainer.global_step = step
        rng[name] = float(module._joined(*batch, batch[1], []).detach())
    assert rng["first"] == rng["again"] != rng["later"]


def test_a_router_learns_which_sound_is_worth_width():
    """White clips gain by width and dull ones do not: measured benefits tell the router so."""
    torch.manual_seed(0)
    model = SlimModel(MODEL_CONFIG)
    router, loss = model.router, RoutingLoss(model.router)
    optimizer = MuonAdamW(router.named_parameters(), 0.01)
    white = torch.tensor([True, False] * 3)[:, None]

    def sound(samples):
        noise = torch.from_numpy(rng.standard_normal((6, samples + 31)).astype(np.float32))
        dull = torch.nn.functional.avg_pool1d(noise.unsqueeze(1), 32, 1)[:, 0] * 32**0.5
        return torch.where(white, noise[:, 31:], dull)

    budget, ufs = torch.full((6,), 0.3), torch.tensor(model.ufs)
    rng = np.random.default_rng(0)
    for step in range(200):
        temperature = max(0.3, 0.3 ** (step / 140))
        noisy = sound(1920)
        logits, _ = router(noisy, budget, router.initial_state(6))
        noise = torch.from_numpy(rng.gumbel(size=logits.shape)).float()
        value, _ = loss(straight_through_gates(logits, noise, temperature), budget, router.knot_weights(budget))
        worth = (torch.softmax(logits / temperature, -1) @ ufs.log2() * white).mean()
        optimizer.zero_grad()
        (value - 0.3 * worth).backward()
        optimizer.step()
    used = model.route(0.05 * sound(4000)[:, None], 0.3).mean(1)
    assert used[::2].min() > used[1::2].max() + 0.2


def test_prepare_adds_a_router_and_keeps_the_weights(tmp_path):
    torch.manual_seed(3)
    bare = SlimModel("small")
    slimse.save(bare, tmp_path / "bare.safetensors")
    for model in (prepare(CONFIG, bare), prepare(replace(CONFIG, init=str(tmp_path / "bare.safetensors")))):
        assert model.router is not None
        for name, tensor in bare.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
    again = prepare(CONFIG, model)
    assert again.router is model.router
    assert prepare(replace(CONFIG, stage="backbone"), bare).router is None


def test_recipes_of_all_stages_are_read(tmp_path):
    stages = {name: TrainConfig.read(name).stage for name in ("backbone", "router", "joint", "scratch", "fixed")}
    assert stages == {
        "backbone": "backbone",
        "router": "router",
        "joint": "joint",
        "scratch": "joint",
        "fixed": "fixed",
    }
    for text, message in (
        ('stage = "all"', "stage = 'all'"),
        ("budget_low = 0.5\nbudget_high = 0.25", "budget_low = 0.5"),
        ("temperature = 0.0", "temperature = 0.0"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            TrainConfig.read(tmp_path / "bad.toml")

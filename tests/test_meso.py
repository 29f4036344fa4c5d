"""MesoNet: published size, layout against plain functions, its two losses by hand, sizes, batch norm's memory."""

from functools import partial

import conftest
import pytest
import torch
import torch.nn.functional as F
from conftest import randomise_batch_norm
from torch import nn

from prle.detectors import meso
from prle.detectors.meso import meso4, squared_error
from prle.detectors.registry import cam_grids, card, cross_entropy, parameter_count


tiny = partial(conftest.small, "meso4")


def used(size=64, **options):
    "A network whose batch norms are no longer the identity."
    return randomise_batch_norm(meso4(size=size, **options))


# ---- the network


def test_published_size():
    row = card("meso4")
    assert row["parameters"] == 27_977 and row["parameters"] + 17 == 27_994  # one output, two
    assert row["gmacs"] == pytest.approx(0.0600, rel=0.005) and row["grid"] == 32


@pytest.mark.parametrize("size, cells", [(32, 1), (64, 2), (128, 4), (224, 7), (256, 8), (299, 10)])
def test_the_linear_layer_fits_the_face(size, cells):
    with torch.device("meta"):
        model = meso4(size=size)
    assert model.hidden.in_features == 16 * cells**2 and model(
        torch.rand(2, 3, size, size, device="meta")
    ).shape == (2,)
    assert parameter_count(model) == 27_977 + 16 * 16 * (cells**2 - 64)


def test_every_convolution_has_its_own_batch_norm_and_a_bias():
    norms = [m for m in meso4().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 and all((m.eps, m.momentum) == (1e-3, 0.01) for m in norms)
    assert all(m.bias is not None for m in meso4().modules() if isinstance(m, nn.Conv2d))


def keras_pool(x, pool):
    'Max-pooling with "same" as Keras describes it: in rows, then in columns; the first may begin before the face.'
    for axis in (2, 3):
        n = x.shape[axis]
        before = (-(-n // pool) * pool - n) // 2
        x = torch.stack(
            [
                x.narrow(
                    axis, max(k - before, 0), min(k - before + pool, n) - max(k - before, 0)
                ).amax(axis)
                for k in range(0, n, pool)
            ],
            axis,
        )
    return x


@pytest.mark.parametrize("size", [64, 299, 100])
def test_logit_step_by_step(size):
    "Convolution, ReLU, batch norm, pooling, in this order, on RGB as it is, with nothing but functions."
    model, x = used(size), torch.rand(2, 3, size, size)
    w, h = model.state_dict(), x
    for i, pool in ((1, 2), (2, 2), (3, 2), (4, 4)):
        kernel = w[f"block{i}.conv.weight"]
        h = F.conv2d(h, kernel, w[f"block{i}.conv.bias"], padding=kernel.shape[-1] // 2).relu()
        h = F.batch_norm(
            h,
            *(w[f"block{i}.norm.{n}"] for n in ("running_mean", "running_var", "weight", "bias")),
            eps=1e-3,
        )
        h = keras_pool(h, pool)
    h = F.leaky_relu(F.linear(h.flatten(1), w["hidden.weight"], w["hidden.bias"]), 0.1)
    expected = F.linear(h, w["head.weight"], w["head.bias"]).squeeze(1)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-6)
    assert not torch.allclose(expected, torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("size", [299, 225])
def test_odd_faces_lose_no_cell_at_the_edge(size):
    model, x = used(size), torch.zeros(1, 3, size, size)
    x[..., -1] = torch.linspace(0, 1, size)[:, None].expand(size, 3).T
    with torch.no_grad():
        assert model(x) != model(torch.zeros_like(x))


def test_keras_initialization():
    torch.manual_seed(0)
    model = meso4()
    limit = (
        6 / (16 * 25 + 16 * 25)
    ) ** 0.5  # Glorot: fan-in and fan-out of a 5x5 convolution from 16 to 16
    top = model.block4.conv.weight.abs().max().item()
    assert 0.95 * limit < top <= limit and not model.block4.conv.bias.any()
    assert model.head.weight.abs().max() < 0.05 and not model.head.bias.any()


@pytest.mark.parametrize("width", [1 / 8, 1 / 4, 1 / 2])
def test_no_width_goes_below_eight_channels(width):
    assert parameter_count(meso4(width=width, size=64)) == parameter_count(tiny())


# ---- losses


def test_squared_error_by_hand():
    logit, batch = torch.tensor([0.0, 2.0, -1.0]), dict(label=torch.tensor([1, 0, 1]))
    p = [0.5, 0.880797, 0.268941]
    each = [(p[0] - 1) ** 2, p[1] ** 2, (p[2] - 1) ** 2]
    assert squared_error(logit, batch).item() == pytest.approx(sum(each) / 3, abs=1e-6)
    batch["weight"] = torch.tensor([1.0, 0.5, 0.0])
    assert squared_error(logit, batch).item() == pytest.approx(
        (each[0] + each[1] / 2) / 3, abs=1e-6
    )


def test_squared_error_pulls_as_derived():
    z, y = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True), torch.arange(13) % 2
    (gradient,) = torch.autograd.grad(13 * squared_error(z, dict(label=y)), z)
    p = z.detach().sigmoid()
    assert torch.allclose(gradient, 2 * (p - y) * p * (1 - p))


def test_the_original_loss_is_the_default_and_the_papers_an_option():
    out, batch = (
        dict(logit=torch.tensor([0.3, -2.0])),
        dict(label=torch.tensor([1, 1]), weight=torch.tensor([1.0, 0.25])),
    )
    assert (
        tiny().loss(out, batch)
        == tiny(loss="mse").loss(out, batch)
        == squared_error(out["logit"], batch)
    )
    assert (
        tiny(loss="bce").loss(out, batch)
        == cross_entropy(out["logit"], batch)
        != squared_error(out["logit"], batch)
    )


# ---- training


def test_both_dropouts_are_there():
    model, shapes = tiny().train(), []
    model.drop.register_forward_hook(lambda m, args, out: shapes.append(out.shape))
    model(torch.rand(2, 3, 64, 64))
    assert shapes == [(2, 8 * 4), (2, 8)] and model.drop.p == 0.5


@pytest.mark.parametrize("options, momentum", [({}, 0.01), (dict(momentum=0.1), 0.1)])
def test_momentum_decides_how_fast_statistics_follow(options, momentum):
    model = tiny(**options).train()
    with torch.no_grad():
        model(torch.zeros(2, 3, 64, 64))
    assert all(m.momentum == momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.allclose(model.block1.norm.running_var, torch.tensor(1 - momentum))


def test_gradients_reach_every_parameter_with_binary_cross_entropy():
    model = tiny(loss="bce").train()
    batch = dict(label=torch.arange(8) % 2)
    model.loss(model.outputs(torch.rand(8, 3, 64, 64)), batch).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_blank_faces_and_a_batch_of_one_are_finite(level):
    model = tiny().train()
    loss = model.loss(
        model.outputs(torch.full((1, 3, 64, 64), level)), dict(label=torch.tensor([1]))
    )
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


# ---- bad calls, Grad-CAM


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(loss="mae"), "unknown loss 'mae'.*mse, bce"),
        (dict(size=16), "at least 32 pixels, not 16"),
        (dict(pretrained=True), "no pretrained weights"),
    ],
)
def test_bad_calls_stop_before_work(options, says, monkeypatch):
    monkeypatch.setattr(meso, "block", lambda *a: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=says):
        meso4(**options)
    if "pretrained" not in options:
        with pytest.raises(ValueError, match=says):
            meso.Meso4(**options)


@pytest.mark.parametrize(
    "size, layer, cells", [(256, "block4.relu", 32), (64, "block4.relu", 8), (32, "block3.relu", 8)]
)
def test_cam_layer(size, layer, cells):
    model = tiny(size)
    assert model.cam_name(size) == layer and cam_grids(model, size)[layer] == cells

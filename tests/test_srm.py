"""SRM: fixed filters, noise maps, attention over places, margin loss, sizes, published counts."""

import re
from functools import partial

import conftest
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise_batch_norm
from torch import nn

from prle.detectors import create_detector, srm, xception
from prle.detectors.registry import cam_grids, fake_minus_real, macs, parameter_count


small, meta = partial(conftest.small, "srm"), partial(conftest.meta, "srm")


def open_gates(model):
    "As after some training: the attention lets something through."
    for block in (model.cross1, model.cross2):
        for gate in (block.gamma_x, block.gamma_y):
            nn.init.constant_(gate, 0.5)
        for m in block.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=0.1)
    return model


# ---- published size


def test_published_size():
    model = meta()
    assert parameter_count(model) == 53_238_380
    assert macs(model, 256) == pytest.approx(14.0165e9, rel=0.005)


@pytest.mark.parametrize("size, tokens", [(64, 16), (128, 64), (224, 196), (299, 361)])
def test_only_the_attention_depends_on_the_size(size, tokens):
    def linear(t):
        return 2 * 2 * (t * t + t)  # two modules with two layers

    assert parameter_count(meta(size=size)) == 53_238_380 - linear(256) + linear(tokens)


def test_parts_of_the_count():
    model = meta()

    def count(*parts):
        return sum(parameter_count(p) for p in parts)

    assert count(model.cross1) == count(model.cross2) == 1_334_060
    assert count(model.fusion) == 8_916_992 and count(model.fc) == 4098
    assert count(model.rgb) == count(model.noise) == 20_806_952


@pytest.mark.parametrize("size", [64, 128, 224, 256, 299])
def test_every_size_runs_and_has_a_fine_grid(size):
    model = meta(size=size, width=1 / 8)
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2,)
    assert max(cam_grids(model, size).values()) >= 8


@pytest.mark.parametrize("size", [-1, 0, 5, 22])
def test_size_without_a_map_is_refused_before_building(size, monkeypatch):
    monkeypatch.setattr(srm, "XceptionBody", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match="fewer than 2x2"):
        create_detector("srm", size=size)


def test_smallest_size_runs():
    assert meta(size=23, width=1 / 8)(torch.empty(2, 3, 23, 23, device="meta")).shape == (2,)


# ---- filters


def test_filters_measure_second_differences():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    response = srm.HighPass(1)(x)[0]
    assert response[:, 4, 4].tolist() == [-1, -1, -1]  # centre weights -4/4, -12/12, -2/2
    assert (
        response[2, 4].tolist() == [0, 0, 0, 0.5, -1, 0.5, 0, 0, 0]
        and response[2, 3].abs().max() == 0
    )
    assert response[0, 3, 3:6].tolist() == [-0.25, 0.5, -0.25]
    assert response[1, 2, 2:7].tolist() == pytest.approx(
        [-1 / 12, 2 / 12, -2 / 12, 2 / 12, -1 / 12]
    )


def test_filters_are_clipped():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 100
    response = srm.HighPass(1)(x)
    assert response.min() == -3 and response.max() == 3


def test_image_noise_is_the_sum_over_colours():
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    taps = srm.srm_kernels()[:, None].expand(3, 3, 5, 5)  # every filter over all colours
    assert torch.allclose(
        srm.HighPass(1)(x.sum(1, keepdim=True)),
        F.conv2d(x, taps, padding=2).clamp(-3, 3),
        atol=1e-5,
    )


@pytest.mark.parametrize("order", ["channel", "released"])
def test_order_of_the_filters(order):
    c, kernels = 8, srm.srm_kernels()
    bank = [
        (k, channel) for k in range(3) for channel in range(c)
    ]  # as the released code stacks it
    x = torch.rand(1, c, 12, 12)
    got = srm.HighPass(c, order)(x)[0]
    for place in range(3 * c):
        kernel = kernels[place % 3] if order == "channel" else kernels[bank[place][0]]
        alone = F.conv2d(x[:, place // 3, None], kernel[None, None], padding=2)[0, 0]
        assert torch.allclose(got[place], alone, atol=1e-6)


def test_order_is_an_option_and_changes_the_logit_only_through_the_features():
    channel, released = small(), small(order="released")
    assert channel.state_dict().keys() == released.state_dict().keys()
    assert torch.equal(channel.high_pass.taps, released.high_pass.taps)
    assert not torch.equal(channel.noise1[0].taps, released.noise1[0].taps)
    with pytest.raises(ValueError, match="order of the SRM filters"):
        small(order="chanel")


def test_filters_are_neither_trained_nor_stored():
    model = small()
    assert not any("taps" in name for name in model.state_dict())
    assert {name for name, _ in model.named_buffers() if "taps" in name} == {
        "high_pass.taps",
        "noise1.0.taps",
        "noise2.0.taps",
    }


def test_noise_is_measured_in_single_precision():
    x, layer = torch.rand(1, 1, 32, 32) * 2 - 1, srm.HighPass(1)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.float32 and torch.equal(low, layer(x))


# ---- attention and fusion


def test_cross_attention_by_hand():
    torch.manual_seed(0)
    block = srm.CrossAttention(8, 4)
    for p in block.parameters():
        nn.init.normal_(p)
    x, y = torch.randn(2, 1, 8, 2, 2)
    with torch.no_grad():
        new_x, new_y = block(x, y)

        def at(conv, v):
            return conv.weight[:, :, 0, 0] @ v + conv.bias

        places = [(i, j) for i in range(2) for j in range(2)]
        key_x = [at(block.key, at(block.key_x, x[0, :, i, j])) for i, j in places]
        key_y = [at(block.key, at(block.key_y, y[0, :, i, j])) for i, j in places]
        for p, (i, j) in enumerate(places):
            of_x = block.mix_x(torch.stack([(key_x[p] * k).sum() for k in key_y])).softmax(0)
            of_y = block.mix_y(torch.stack([(key_y[p] * k).sum() for k in key_x])).softmax(0)
            from_y = sum(a * at(block.value_y, y[0, :, m, n]) for a, (m, n) in zip(of_x, places))
            from_x = sum(a * at(block.value_x, x[0, :, m, n]) for a, (m, n) in zip(of_y, places))
            assert torch.allclose(
                new_x[0, :, i, j], x[0, :, i, j] + block.gamma_x * from_y, atol=1e-4
            )
            assert torch.allclose(
                new_y[0, :, i, j], y[0, :, i, j] + block.gamma_y * from_x, atol=1e-4
            )


def test_residual_attention_is_a_weight_a_place():
    noise = torch.randn(2, 3, 64, 64)
    weights = srm.ResidualAttention(8, 8)(noise)
    assert weights.shape == (2, 1, 29, 29) and 0 < weights.min() and weights.max() < 1


def test_fusion_adds_its_weighted_self():
    fusion = srm.Fusion(16).eval()
    x, y = torch.randn(2, 2, 16, 3, 3)
    with torch.no_grad():
        f, out = fusion.fuse(torch.cat([x, y], 1)), fusion(x, y)
    share = (out / f - 1)[f > 0.01]
    assert 0 < share.min() and share.max() < 1
    weight = (out.sum((2, 3)) / f.sum((2, 3)).clamp(min=1e-6))[..., None, None]  # one a channel
    assert torch.allclose(out, f * weight, atol=1e-5)


@pytest.mark.parametrize("size", [64, 256])
def test_attention_starts_even(size):
    "The original's weights of the attention: Xavier's times 0.02, so that nothing is switched off at the start."
    torch.manual_seed(0)
    model, seen = create_detector("srm", width=1 / 8, size=size), []
    model.fusion.weigh.register_forward_hook(lambda m, a, out: seen.append(out))
    for cross in (model.cross1, model.cross2):
        cross.attend = lambda energy, mix, values: (
            seen.append(mix(energy).softmax(-1)) or torch.zeros_like(values)
        )
    with torch.no_grad():
        model.features(torch.rand(4, 3, size, size) * 2 - 1)
    *places, mean, largest = seen
    assert (torch.sigmoid(mean + largest) - 0.5).abs().max() < 0.01
    assert len(places) == 4 and all((p * p.shape[-1] - 1).abs().max() < 0.01 for p in places)
    weights = {
        name: p
        for name, p in model.named_parameters()
        if re.match(r"cross\d.*weight|fusion.weigh", name)
    }
    stds = {
        name: p.std().item() / (2 / sum(torch.nn.init._calculate_fan_in_and_fan_out(p))) ** 0.5
        for name, p in weights.items()
    }
    assert len(stds) == 16 and all(std == pytest.approx(0.02, rel=0.3) for std in stds.values()), (
        stds
    )


def test_the_noises_convolutions_start_by_their_fan_in():
    "The original's `kaiming_normal_(a=1)`, in the attention's 7x7 convolution too: variance 1 / fan-in."
    model = small()
    convolutions = {
        name: m.weight
        for part in ("noise1", "noise2", "attention")
        for name, m in model.get_submodule(part).named_modules(prefix=part)
        if isinstance(m, nn.Conv2d)
    }
    stds = {name: w.std().item() * w[0].numel() ** 0.5 for name, w in convolutions.items()}
    assert len(stds) == 5 and all(std == pytest.approx(1, rel=0.2) for std in stds.values()), stds


def test_both_streams_count():
    model, x = open_gates(small()).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model.features((x - 0.5) / 0.5)
        for stream in (model.rgb, model.noise):
            kept = stream.block9.rep[1].pointwise.weight.clone()
            stream.block9.rep[1].pointwise.weight.mul_(-1)
            assert not torch.allclose(model.features((x - 0.5) / 0.5), before, atol=1e-4)
            stream.block9.rep[1].pointwise.weight.copy_(kept)
        assert torch.equal(model.features((x - 0.5) / 0.5), before)


# ---- the network


@torch.no_grad()
def test_features_step_by_step():
    "The original's order of noise, attention and streams, written out; its parts have tests of their own."
    model, z = randomise_batch_norm(open_gates(small())), torch.rand(2, 3, 64, 64) * 2 - 1

    def filtered(v):
        return F.conv2d(v, srm.srm_kernels()[:, None].expand(3, 3, 5, 5), padding=2).clamp(-3, 3)

    a, b, noise = model.rgb, model.noise, filtered(z)
    x = a.bn1(a.conv1(z)).relu()
    y = (b.bn1(b.conv1(noise)).relu() + model.noise1(x)).relu()
    x = a.bn2(a.conv2(x)).relu()
    y = (b.bn2(b.conv2(y)).relu() + model.noise2(x)).relu()
    x = model.after(x * model.attention(filtered(noise)) + x)
    for i in range(1, 13):
        x, y = a.get_submodule(f"block{i}")(x), b.get_submodule(f"block{i}")(y)
        if i == 3:
            x, y = model.cross1(x, y)
        if i == 7:
            x, y = model.cross2(x, y)
    x, y = (body.bn4(body.conv4(body.bn3(body.conv3(v)).relu())) for body, v in ((a, x), (b, y)))
    expected, two = model.fusion(x, y), model.fc(model.fusion(x, y).mean((2, 3)))
    assert (model.features(z) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.allclose(model.logit(z), two[:, 1] - two[:, 0], rtol=1e-4)


# ---- loss


def test_am_softmax_by_hand():
    logit, label = torch.tensor([0.5, -0.2]), torch.tensor([1, 0])
    fake, real = 30 * (0.5 - 0.45), 30 * (-0.2 + 0.45)
    expected = (F.softplus(torch.tensor(-fake)) + F.softplus(torch.tensor(real))) / 2
    assert torch.isclose(srm.am_softmax(logit, dict(label=label)), expected)


def test_am_softmax_is_the_two_way_definition():
    two, label = torch.randn(8, 2), torch.arange(8) % 2
    lowered = 30 * (two - 0.45 * F.one_hot(label, 2))
    assert torch.isclose(
        srm.am_softmax(fake_minus_real(two), dict(label=label)), F.cross_entropy(lowered, label)
    )


def test_am_softmax_wants_the_margin_and_heeds_weights():
    batch = dict(label=torch.tensor([1, 0]), weight=torch.tensor([1.0, 0.0]))
    assert (
        srm.am_softmax(torch.tensor([0.1, 9.0]), batch) > 4
    )  # right, but within the margin; the other does not count
    assert srm.am_softmax(torch.tensor([1.0, -1.0]), dict(label=batch["label"])) < 1e-6


def test_loss_of_the_detector_and_its_unscaled_logit():
    model = small().eval()
    x, batch = torch.rand(4, 3, 64, 64), dict(label=torch.tensor([0, 1, 1, 0]))
    with torch.no_grad():
        out = model.outputs(x)
        two = model.fc(model.features((x - 0.5) / 0.5).mean((2, 3)))
    assert torch.allclose(out["logit"].sigmoid(), two.softmax(1)[:, 1], atol=1e-6)
    assert torch.equal(model.loss(out, batch), srm.am_softmax(out["logit"], batch))


# ---- training


def _gradients(model, x, label):
    model.zero_grad()
    model.loss(model.outputs(x), dict(label=label)).backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_what_is_behind_the_gates_learns_from_the_second_step():
    model, x, label = small(), torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    behind = {n for n, _ in model.named_parameters() if n.startswith("cross") and "gamma" not in n}
    assert _gradients(model, x, label) == behind
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
    assert _gradients(model, x, label) == set()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_blank_faces_are_finite(value):
    model, x = open_gates(small()), torch.full((2, 3, 64, 64), value, requires_grad=True)
    loss = model.loss(model.outputs(x), dict(label=torch.tensor([0, 1])))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_imagenet_weights_go_into_both_streams(monkeypatch):
    torch.manual_seed(1)
    state = timm.create_model("legacy_xception", num_classes=1).state_dict()
    monkeypatch.setattr(xception, "imagenet_state", lambda source: state)
    model = create_detector("srm", pretrained=True, size=64)
    for stream in (model.rgb, model.noise):
        own = stream.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in state.items() if not k.startswith("fc."))

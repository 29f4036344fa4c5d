"""MAT: sizes, attention and its border, textures, pooling, region independence, AGDA, both stages."""
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from prle.detectors import create_detector
from prle.detectors.mat import (
    Attention, DenseBlock, Mat, TextureV1, TextureV2, agda, attention_mean, attention_pool, border_mask, degrade,
    mat, match_loss, moved_centres, region_independence, resize, soft_threshold, split_texture, taps,
)
from prle.detectors.registry import Detector, Weights, cross_entropy, macs, parameter_count

LABEL = torch.tensor([0, 1, 0, 1])


def small(seed=0, **options):
    torch.manual_seed(seed)
    return mat(width=1 / 8, **options)


def noise_free(**options): return small(map_dropout=0.0, dropout=0.0, drop_path=0.0, **options)


@pytest.fixture(scope="module")
def faces():
    torch.manual_seed(7)
    return torch.rand(4, 3, 64, 64)


# ---- published sizes (meta device)

def pad_for_380(x, kernel_size, stride, dilation=(1, 1), value=0):
    "What the released code's copy of EfficientNet does: every layer pads as if its input were 380 pixels wide."
    k, s = kernel_size[0], stride[0]
    total = max((-(-380 // s) - 1) * s + k - 380, 0)
    return F.pad(x, (total // 2, total - total // 2) * 2, value=value)


@pytest.mark.parametrize("texture, parameters, at_256, at_380", [("v2", 18_822_482, 3.4515, 7.2603), ("v1", 18_641_970, 2.3207, 4.7686)])
def test_published_size(texture, parameters, at_256, at_380, monkeypatch):
    with torch.device("meta"): model = mat(texture=texture).eval()
    assert parameter_count(model) == parameters
    assert macs(model, 256) / 1e9 == pytest.approx(at_256, rel=0.005)
    assert macs(model, 380) / 1e9 > 1.05 * at_380  # timm's grids are a cell wider
    monkeypatch.setattr(import_module("timm.layers.conv2d_same"), "pad_same", pad_for_380)
    assert macs(model, 380) / 1e9 == pytest.approx(at_380, rel=0.005)


def test_body_is_the_plain_b4():
    with torch.device("meta"): body, plain = mat().net.state_dict(), create_detector("efficientnet_b4").net.state_dict()
    assert body.keys() == {k for k in plain if not k.startswith("classifier.")}
    assert all(body[k].shape == plain[k].shape for k in body)


def test_taps_are_what_the_plain_b4_computes(faces):
    model = small().eval()
    plain = model.stage_one().eval()
    seen = {}
    for name in ("blocks.1", "blocks.4", "bn2"):
        plain.net.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        plain(faces)
        for got, name in zip(taps(model.net, faces * 2 - 1), seen): assert torch.allclose(got, seen[name], atol=1e-5), name


@pytest.mark.parametrize("options, says", [(dict(texture="v3"), "texture"), (dict(maps=0), "at least 1")])
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says): small(**options)


@pytest.mark.parametrize("texture", ["v1", "v2"])
@pytest.mark.parametrize("size", [64, 96, 128, 150, 224])
def test_sizes(texture, size):
    model = small(texture=texture).eval()
    with torch.no_grad(): out = model.outputs(torch.rand(1, 3, size, size))
    grid = -(-size // 16)
    assert out["maps"].shape == (1, 4, grid, grid) and out["logit"].isfinite().all()


def test_runs_in_both_modes_on_meta_and_through_functional_call(faces):
    with torch.device("meta"): model = small()
    batch = dict(label=torch.empty(4, dtype=torch.long, device="meta"))
    for mode in (True, False):
        out = model.train(mode).outputs(faces.to("meta"))
        assert model.loss(out, batch).shape == ()
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v.clone() for k, v in before.items()}
    assert functional_call(model, state, (faces,)).isfinite().all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- attention

@pytest.mark.parametrize("grid, live", [(24, 20 * 20), (16, 13 * 13), (8, 7 * 7), (4, 3 * 3), (19, 16 * 16)])
def test_border_is_dead_and_the_rest_positive(grid, live):
    torch.manual_seed(0)
    maps = Attention(8, 3)(torch.randn(2, 8, grid, grid))
    assert (maps >= 0).all() and (maps[:, :, 0] == 0).all() and (maps[..., 0] == 0).all()
    assert ((maps > 0).sum((2, 3)) == live).all()


def test_border_of_24_is_two_cells():
    assert border_mask()[0, 0, 2:-2, 2:-2].all() and border_mask().sum() == 400


def test_resize_keeps_the_corners():
    maps = torch.rand(2, 3, 4, 4)
    up = resize(maps, torch.empty(2, 1, 9, 9))
    assert torch.allclose(up[..., ::8, ::8], maps[..., ::3, ::3]) and resize(maps, maps) is maps


# ---- texture

def test_texture_has_no_mean_in_a_cell():
    x = torch.randn(2, 3, 12, 12)
    texture, coarse = split_texture(x, (4, 4))
    assert F.avg_pool2d(texture, 3).abs().max() < 1e-6 and torch.allclose(coarse, F.avg_pool2d(x, 3), atol=1e-6)


@pytest.mark.parametrize("height", [16, 19])
def test_texture_shapes(height):
    x, maps = torch.randn(2, 8, height, height), torch.rand(2, 3, 5, 5)
    assert TextureV2(8, 3)(x, maps)[0].shape == (2, 3, 8, height, height)
    texture, coarse = TextureV1(8)(x, maps)
    assert texture.shape == (2, 32, height, height) and coarse.shape == (2, 8, 5, 5)


def test_released_texture_sees_its_own_map_only_and_does_not_train_it():
    torch.manual_seed(0)
    enhance, x = TextureV2(4, 3).eval(), torch.randn(1, 4, 16, 16)
    maps = torch.rand(1, 3, 4, 4, requires_grad=True)
    texture, coarse = enhance(x, maps)
    other = maps.detach().clone(); other[:, 1] = 0
    changed = (enhance(x, other)[0] != texture).flatten(2).any(2)[0]
    assert changed.tolist() == [False, True, False]
    (texture.sum() + coarse.sum()).backward()
    assert maps.grad is None


def test_one_group_is_a_plain_dense_block():
    torch.manual_seed(0)
    block, x = DenseBlock(4, groups=1, kernel=1, outputs=16).eval(), torch.randn(2, 4, 5, 5)
    seen = [block.first(x)]
    for unit in block.grow: seen.append(unit(torch.cat(seen, 1)))
    assert torch.allclose(block.last(torch.cat(seen, 1)), block(x), atol=1e-5)


def test_groups_are_separate_dense_blocks():
    torch.manual_seed(0)
    both, one = DenseBlock(4, groups=2, kernel=5, outputs=4).eval(), DenseBlock(4, groups=1, kernel=5, outputs=4).eval()
    state = {k: v.chunk(2)[1] if v.ndim else v for k, v in both.state_dict().items()}
    one.load_state_dict(state)
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(one(x[:, 4:]), both(x)[:, 4:], atol=1e-5)


# ---- pooling

def test_pool_by_hand():
    features = torch.tensor([[[[1., 0.]], [[0., 2.]]]])  # two channels on a grid of 1x2
    maps = torch.tensor([[[[3., 2.]]]])
    assert torch.allclose(attention_pool(features, maps), torch.tensor([[[0.6, 0.8]]]))
    assert torch.allclose(attention_mean(features, maps), torch.tensor([[3 / 5, 4 / 5]]))


def test_pool_own_features_a_map():
    features, maps = torch.randn(2, 3, 5, 4, 4), torch.rand(2, 3, 4, 4)
    each = torch.stack([attention_pool(features[:, m], maps[:, m:m + 1])[:, 0] for m in range(3)], 1)
    assert torch.allclose(attention_pool(features, maps), each, atol=1e-6)


def test_empty_pool_is_finite():
    features, maps = torch.zeros(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 2, 4, 4, requires_grad=True)
    (attention_pool(features, maps).sum() + attention_mean(features, maps).sum()).backward()
    assert features.grad.isfinite().all() and maps.grad.isfinite().all()


# ---- region independence

def test_centres_follow_real_faces():
    parts, old = torch.tensor([[[1., 0.]], [[5., 5.]], [[0., 3.]], [[7., 7.]]]), torch.tensor([[1., 1.]])
    # deviations of the real ones (0, -1) and (-1, 2), over four faces
    assert torch.allclose(moved_centres(parts, LABEL, old, 0.2), old + 0.2 * torch.tensor([[-1., 1.]]) / 4)


@pytest.mark.parametrize("label, distance, share", [(0, 0.1, 0), (0, 0.5, 0.3), (1, 0.5, 0.3), (1, 0.9, 0)])
def test_margins(label, distance, share):
    centres = torch.tensor([[0., 0.], [3., 0.]])
    parts = (centres + torch.tensor([[0.6, 0.], [0., 0.8]]) * distance)[None]
    assert region_independence(parts, torch.tensor([label]), centres, 0.05).item() == pytest.approx(share, abs=1e-6)


def test_centres_push_each_other_by_hand():
    centres = torch.tensor([[0., 0.], [0.3, 0.4], [9., 9.]])
    assert region_independence(centres[None], torch.tensor([0]), centres, 0.05).item() == pytest.approx(0.3 / (3 * 0.05), rel=1e-5)


def test_gradient_flows_through_the_moved_centres():
    parts = torch.tensor([[[1., 0.], [0.9, 0.]]], requires_grad=True)
    label, alpha = torch.tensor([0]), 0.05
    centres = moved_centres(parts, label, torch.zeros(2, 2), alpha)
    (0.8 - F.pdist(centres)).relu().sum().div(2 * alpha).backward()
    # d/dV of -alpha |V_0 - V_1| / (2 alpha)
    assert torch.allclose(parts.grad, torch.tensor([[[-0.5, 0.], [0.5, 0.]]]), atol=1e-6)


def test_equal_centres_have_finite_gradients():
    parts = torch.zeros(2, 3, 4, requires_grad=True)
    centres = moved_centres(parts, torch.tensor([0, 1]), torch.zeros(3, 4), 0.05)
    region_independence(parts, torch.tensor([0, 1]), centres, 0.05).backward()
    assert parts.grad.isfinite().all()


def test_alpha_shrinks_by_a_tenth_an_epoch():
    model = small()
    alphas = []
    for epoch in range(3): model.begin_epoch(epoch); alphas.append(model.alpha)
    assert alphas == pytest.approx([0.05, 0.045, 0.0405])


def test_loss_moves_the_centres_once_a_call_in_training_only(faces):
    model = noise_free(agda=False)
    out = model.outputs(faces)
    expected = moved_centres(out["regions"], LABEL, model.centres, 0.05).detach()
    loss, buffer = model.loss(out, dict(label=LABEL)), model.centres
    assert torch.equal(model.centres, expected) and expected.any() and not model.centres.requires_grad
    model.loss(model.outputs(faces), dict(label=LABEL))  # moves them again, before the first loss is differentiated
    assert model.centres is buffer and not torch.equal(buffer, expected)
    loss.backward()
    after = buffer.clone()
    model.eval().loss(model.outputs(faces), dict(label=LABEL))
    assert torch.equal(buffer, after) and "centres" in model.state_dict()


# ---- AGDA

def test_soft_threshold():
    zero, one, t, g = torch.zeros(1), torch.ones(1), torch.tensor([0.5]), torch.tensor([4.0])
    assert soft_threshold(zero, t, g) == 0
    bottom = torch.tensor(-2.0).sigmoid()
    assert torch.allclose(soft_threshold(one, t, g), (torch.tensor(2.0).sigmoid() - bottom) / (1 - bottom))
    assert (soft_threshold(torch.linspace(0, 1, 50), t, g).diff() > 0).all()


def test_degraded_statistics():
    torch.manual_seed(0)
    flat = degrade(torch.full((2, 3, 128, 128), 0.3))
    # bilinear interpolation between noisy pixels keeps about (2/3)^2 of the variance
    assert flat.mean().item() == pytest.approx(0.3, abs=0.005) and flat.std().item() == pytest.approx(0.1 * 2 / 3, rel=0.1)
    stripes = (torch.arange(128) % 8 < 4).float().expand(1, 3, 128, 128)
    assert degrade(stripes)[..., 20:-20].mean((0, 1, 2)).std() < 0.1 * stripes.std()


def test_agda_degrades_under_the_picked_map(faces):
    maps = torch.zeros(4, 2, 64, 64)
    maps[:, 0, :, :20], maps[:, 1, :, 44:] = 1, 5
    torch.manual_seed(0)
    hard, picked = agda(faces, maps)
    for face, was, m in zip(hard, faces, picked):
        inside = slice(0, 20) if m == 0 else slice(44, 64)
        assert (face[..., inside] != was[..., inside]).all()
        face, was = face.clone(), was.clone()
        face[..., inside] = was[..., inside] = 0
        assert torch.equal(face, was)


def test_agda_picks_in_proportion_to_the_root():
    torch.manual_seed(0)
    maps = torch.tensor([0., 3., 8.]).view(1, 3, 1, 1).expand(3000, 3, 1, 1)  # sums; roots of 1 more: 1, 2, 3
    picked = agda(torch.zeros(3000, 3, 16, 16), maps)[1]
    assert (picked.bincount() / 3000).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)


def test_agda_takes_no_gradient_and_one_face():
    x, maps = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 4, 4, 4, requires_grad=True)
    assert not agda(x, maps)[0].requires_grad


def test_second_pass_in_training_only(faces):
    model = small()
    assert {"picked", "hard_logit", "hard_regions"} <= model.outputs(faces).keys()
    assert set(model.eval().outputs(faces)) == {"logit", "maps", "regions"}
    assert set(small(agda=False).outputs(faces)) == {"logit", "maps", "regions"}


def test_same_seed_same_outputs(faces):
    def once(seed):
        model = small()
        torch.manual_seed(seed)
        return model.outputs(faces)
    a, b, c = once(3), once(3), once(4)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["hard_logit"], c["hard_logit"])


def test_match_leaves_out_the_picked_map():
    a, b = torch.zeros(2, 3, 2), torch.tensor([[[3., 4.], [6., 8.], [99., 0.]], [[99., 0.], [0., 1.], [0., 2.]]])
    assert match_loss(a, b, torch.tensor([2, 0])).item() == pytest.approx((5 + 10 + 1 + 2) / 4)
    assert match_loss(a[:, :1], b[:, :1], torch.tensor([0, 0])) == 0


# ---- the whole loss

def test_total_loss_by_hand(faces):
    model = noise_free()
    batch = dict(label=LABEL, weight=torch.tensor([1., 0.5, 0., 2.]))
    out = model.outputs(faces)
    centres = moved_centres(out["regions"], LABEL, model.centres, model.alpha)
    expected = (cross_entropy(out["logit"], batch) + 0.5 * region_independence(out["regions"], LABEL, centres, model.alpha)
                + cross_entropy(out["hard_logit"], batch) + 0.1 * match_loss(out["regions"], out["hard_regions"], out["picked"]))
    assert torch.allclose(model.loss(out, batch), expected)


def test_weights_reach_the_cross_entropies_only(faces):
    model = noise_free()
    out = model.outputs(faces)
    losses = []
    for weight in (0.0, 1.0):
        model.centres.zero_()
        losses.append(model.loss(out, dict(label=LABEL, weight=torch.full((4,), weight))))
    both = cross_entropy(out["logit"], dict(label=LABEL)) + cross_entropy(out["hard_logit"], dict(label=LABEL))
    assert torch.allclose(losses[1] - losses[0], both, atol=1e-4)


@pytest.mark.parametrize("texture", ["v1", "v2"])
@pytest.mark.parametrize("maps", [1, 4])
def test_gradients_reach_everything(faces, texture, maps):
    model = noise_free(texture=texture, maps=maps)
    model.loss(model.outputs(faces), dict(label=LABEL)).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_whole_maps_are_dropped(faces):
    model, seen = small(map_dropout=0.5, agda=False), []
    model.parts.local[0].register_forward_hook(lambda m, a, out: seen.append((a[0], out)))
    for _ in range(8): model.outputs(faces)
    before, after = (torch.cat(s).flatten(0, 1) for s in zip(*seen))
    kept = after.any(1)
    assert torch.allclose(after[kept], 2 * before[kept]) and 0.3 < kept.float().mean() < 0.7


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (0.5, 0.0)])
def test_blank_faces(values):
    model = small()
    x = torch.tensor(values).view(2, 1, 1, 1).expand(2, 3, 64, 64)
    loss = model.loss(model.outputs(x), dict(label=torch.tensor([0, 1])))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_half_precision(faces):
    model = small()
    with torch.autocast("cpu", torch.bfloat16): loss = model.loss(model.outputs(faces), dict(label=LABEL))
    loss.backward()
    assert loss.isfinite() and model.centres.dtype == torch.float32 and model.centres.isfinite().all()


# ---- two stages

def test_stages_hand_the_body_over_and_back(faces):
    model = small()
    plain = model.stage_one()
    assert isinstance(plain, Detector) and not isinstance(plain, Mat) and plain.config["name"] == "efficientnet_b4"
    assert torch.equal(plain.mean, model.mean) and torch.equal(plain.std, model.std)
    own, attention = model.net.state_dict(), model.parts.attention.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in plain.net.state_dict().items() if k in own)
    before = model.net.conv_stem.weight.clone()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain.loss(plain.outputs(faces), dict(label=LABEL)).backward()
    optimizer.step()
    assert torch.equal(model.net.conv_stem.weight, before)  # the stages share no memory
    model.load_stage_one(plain)
    own = model.net.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in plain.net.state_dict().items() if k in own)
    assert not torch.equal(own["conv_stem.weight"], before)
    assert all(torch.equal(v, attention[k]) for k, v in model.parts.attention.state_dict().items())


def test_stage_one_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"): small().load_stage_one(create_detector("efficientnet_b4", width=1 / 4))


def test_pretrained_loads_the_adversarial_weights(monkeypatch):
    from prle.detectors import mat as module
    asked, body = [], mat().net.state_dict()
    state = {k: torch.full_like(v, 2) for k, v in body.items()} | {"classifier.weight": torch.zeros(1000, 1792), "classifier.bias": torch.zeros(1000)}
    monkeypatch.setattr(module, "imagenet_state", lambda source: asked.append(source) or state)
    model = mat(pretrained=True)
    assert asked == ["tf_efficientnet_b4.ap_in1k"] and (model.net.conv_stem.weight == 2).all()
    assert model.weights == Weights("tf_efficientnet_b4.ap_in1k", "Apache-2.0", 380, (0.5,) * 3, (0.5,) * 3)

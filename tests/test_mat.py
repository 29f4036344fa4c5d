"""MAT: sizes, attention and its border, textures, pooling, region independence, AGDA, both stages."""

import math
from functools import partial
from importlib import import_module

import conftest
import pytest
import torch
import torch.nn.functional as F
from conftest import randomise_batch_norm
from torch.func import functional_call

from prle.detectors import create_detector
from prle.detectors.mat import (
    Attention,
    DenseBlock,
    Mat,
    TextureV1,
    TextureV2,
    agda,
    attention_mean,
    attention_pool,
    border_mask,
    degrade,
    mat,
    match_loss,
    moved_centres,
    over_processes,
    region_independence,
    resize,
    soft_threshold,
    split_texture,
    taps,
    train_stages,
)
from prle.detectors.registry import Detector, Weights, cross_entropy, macs, parameter_count

LABEL = torch.tensor([0, 1, 0, 1])


small = partial(conftest.small, "mat")


def noise_free(**options):
    return small(map_dropout=0.0, dropout=0.0, drop_path=0.0, **options)


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


@pytest.mark.parametrize(
    "texture, parameters, at_256, at_380",
    [("v2", 18_822_482, 3.4515, 7.2603), ("v1", 18_641_970, 2.3207, 4.7686)],
)
def test_published_size(texture, parameters, at_256, at_380, monkeypatch):
    with torch.device("meta"):
        model = mat(texture=texture).eval()
    assert parameter_count(model) == parameters
    assert macs(model, 256) / 1e9 == pytest.approx(at_256, rel=0.005)
    assert macs(model, 380) / 1e9 > 1.05 * at_380  # timm's grids are a cell wider
    monkeypatch.setattr(import_module("timm.layers.conv2d_same"), "pad_same", pad_for_380)
    assert macs(model, 380) / 1e9 == pytest.approx(at_380, rel=0.005)


def test_body_is_the_plain_b4():
    with torch.device("meta"):
        body, plain = mat().net.state_dict(), create_detector("efficientnet_b4").net.state_dict()
    assert body.keys() == {k for k in plain if not k.startswith("classifier.")}
    assert all(body[k].shape == plain[k].shape for k in body)


def test_taps_are_what_the_plain_b4_computes(faces):
    model = small().eval()
    plain = model.stage_one().eval()
    seen = {}
    for name in ("blocks.1", "blocks.4", "bn2"):
        plain.net.get_submodule(name).register_forward_hook(
            lambda m, a, out, name=name: seen.__setitem__(name, out)
        )
    with torch.no_grad():
        plain(faces)
        for got, name in zip(taps(model.net, faces * 2 - 1), seen):
            assert torch.allclose(got, seen[name], atol=1e-5), name


@pytest.mark.parametrize(
    "options, says", [(dict(texture="v3"), "texture"), (dict(maps=0), "at least 1")]
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        small(**options)


@pytest.mark.parametrize("texture", ["v1", "v2"])
@pytest.mark.parametrize("size", [64, 96, 128, 150, 224])
def test_sizes(texture, size):
    model = small(texture=texture).eval()
    with torch.no_grad():
        out = model.outputs(torch.rand(1, 3, size, size))
    grid = -(-size // 16)
    assert out["maps"].shape == (1, 4, grid, grid) and out["logit"].isfinite().all()


def test_runs_in_both_modes_on_meta_and_through_functional_call(faces):
    with torch.device("meta"):
        model = small()
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


@pytest.mark.parametrize(
    "grid, live", [(24, 20 * 20), (16, 13 * 13), (8, 7 * 7), (4, 3 * 3), (19, 16 * 16)]
)
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
    assert F.avg_pool2d(texture, 3).abs().max() < 1e-6 and torch.allclose(
        coarse, F.avg_pool2d(x, 3), atol=1e-6
    )


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
    other = maps.detach().clone()
    other[:, 1] = 0
    changed = (enhance(x, other)[0] != texture).flatten(2).any(2)[0]
    assert changed.tolist() == [False, True, False]
    (texture.sum() + coarse.sum()).backward()
    assert maps.grad is None


def test_released_texture_is_damped_by_tanh_of_the_upsampled_map():
    torch.manual_seed(0)
    enhance, x, maps, seen = (
        TextureV2(1, 1),
        torch.randn(1, 1, 5, 5),
        torch.tensor([[[[0.0, 3.0], [0.0, 3.0]]]]),
        [],
    )
    enhance.block.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    enhance(x, maps)
    texture, _ = split_texture(enhance.conv(x), (2, 2))
    assert torch.allclose(
        seen[0], texture * torch.tensor([0.0, 0.75, 1.5, 2.25, 3.0]).tanh(), atol=1e-6
    )


def test_one_group_is_a_plain_dense_block():
    torch.manual_seed(0)
    block, x = DenseBlock(4, groups=1, kernel=1, outputs=16).eval(), torch.randn(2, 4, 5, 5)
    seen = [block.first(x)]
    for unit in block.grow:
        seen.append(unit(torch.cat(seen, 1)))
    assert torch.allclose(block.last(torch.cat(seen, 1)), block(x), atol=1e-5)


def test_groups_are_separate_dense_blocks():
    torch.manual_seed(0)
    both, one = (
        DenseBlock(4, groups=2, kernel=5, outputs=4).eval(),
        DenseBlock(4, groups=1, kernel=5, outputs=4).eval(),
    )
    state = {k: v.chunk(2)[1] if v.ndim else v for k, v in both.state_dict().items()}
    one.load_state_dict(state)
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(one(x[:, 4:]), both(x)[:, 4:], atol=1e-5)


# ---- pooling


def test_pool_by_hand():
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # two channels on a grid of 1x2
    maps = torch.tensor([[[[3.0, 2.0]]]])
    assert torch.allclose(attention_pool(features, maps), torch.tensor([[[0.6, 0.8]]]))
    assert torch.allclose(attention_mean(features, maps), torch.tensor([[3 / 5, 4 / 5]]))


def test_pool_own_features_a_map():
    features, maps = torch.randn(2, 3, 5, 4, 4), torch.rand(2, 3, 4, 4)
    each = torch.stack(
        [attention_pool(features[:, m], maps[:, m : m + 1])[:, 0] for m in range(3)], 1
    )
    assert torch.allclose(attention_pool(features, maps), each, atol=1e-6)


def test_empty_pool_is_finite():
    features, maps = (
        torch.zeros(1, 3, 4, 4, requires_grad=True),
        torch.zeros(1, 2, 4, 4, requires_grad=True),
    )
    (attention_pool(features, maps).sum() + attention_mean(features, maps).sum()).backward()
    assert features.grad.isfinite().all() and maps.grad.isfinite().all()


def test_mean_without_attention_is_plain():
    features = torch.randn(2, 3, 4, 4)
    assert torch.allclose(
        attention_mean(features, torch.zeros(2, 2, 4, 4)), features.mean((2, 3)), atol=1e-6
    )


def test_pool_keeps_double_precision():
    assert (
        attention_pool(
            torch.rand(1, 3, 4, 4, dtype=torch.float64), torch.rand(1, 2, 4, 4, dtype=torch.float64)
        ).dtype
        == torch.float64
    )
    assert (
        attention_pool(torch.rand(1, 3, 4, 4).bfloat16(), torch.rand(1, 2, 4, 4).bfloat16()).dtype
        == torch.float32
    )


# ---- region independence


def test_centres_follow_real_faces():
    parts, old = (
        torch.tensor([[[1.0, 0.0]], [[5.0, 5.0]], [[0.0, 3.0]], [[7.0, 7.0]]]),
        torch.tensor([[1.0, 1.0]]),
    )
    # deviations of the real ones (0, -1) and (-1, 2), over four faces
    assert torch.allclose(
        moved_centres(parts, LABEL, old, 0.2), old + 0.2 * torch.tensor([[-1.0, 1.0]]) / 4
    )


@pytest.mark.parametrize(
    "label, distance, share", [(0, 0.1, 0), (0, 0.5, 0.3), (1, 0.5, 0.3), (1, 0.9, 0)]
)
def test_margins(label, distance, share):
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    parts = (centres + torch.tensor([[0.6, 0.0], [0.0, 0.8]]) * distance)[None]
    assert region_independence(parts, torch.tensor([label]), centres, 0.05).item() == pytest.approx(
        share, abs=1e-6
    )


def test_centres_push_each_other_by_hand():
    centres = torch.tensor([[0.0, 0.0], [0.3, 0.4], [9.0, 9.0]])
    assert region_independence(
        centres[None], torch.tensor([0]), centres, 0.05
    ).item() == pytest.approx(0.3 / (3 * 0.05), rel=1e-5)


def test_gradient_flows_through_the_moved_centres():
    parts = torch.tensor([[[1.0, 0.0], [0.9, 0.0]]], requires_grad=True)
    label, alpha = torch.tensor([0]), 0.05
    centres = moved_centres(parts, label, torch.zeros(2, 2), alpha)
    (0.8 - F.pdist(centres)).relu().sum().div(2 * alpha).backward()
    # d/dV of -alpha |V_0 - V_1| / (2 alpha)
    assert torch.allclose(parts.grad, torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]]), atol=1e-6)


def test_equal_centres_have_finite_gradients():
    parts = torch.zeros(2, 3, 4, requires_grad=True)
    centres = moved_centres(parts, torch.tensor([0, 1]), torch.zeros(3, 4), 0.05)
    region_independence(parts, torch.tensor([0, 1]), centres, 0.05).backward()
    assert parts.grad.isfinite().all()


def test_alpha_shrinks_by_a_tenth_an_epoch():
    model = small()
    alphas = []
    for epoch in range(3):
        model.begin_epoch(epoch)
        alphas.append(model.alpha)
    assert alphas == pytest.approx([0.05, 0.045, 0.0405])


def test_centres_move_by_both_passes(faces):
    model = noise_free()
    out, alpha, real = model.outputs(faces), 0.05, (LABEL == 0).float()[:, None, None]
    model.loss(out, dict(label=LABEL))
    centres = torch.zeros(4, 8)
    for regions in (out["regions"], out["hard_regions"]):
        centres = centres + alpha * (real * (regions - centres)).mean(0)
    assert (
        torch.allclose(model.centres, centres, atol=1e-7)
        and (out["regions"] != out["hard_regions"]).any()
    )


def test_centres_are_common_to_all_processes(faces, monkeypatch):
    "Another process has centres one higher: half of it comes into buffer and loss; the gradient stays this process's."

    def once(model):
        out = model.outputs(faces)
        parts = out["regions"].detach().requires_grad_()
        loss = model.loss(out | dict(regions=parts), dict(label=LABEL))
        return loss, torch.autograd.grad(loss, parts)[0]

    alone, shared = noise_free(agda=False), noise_free(agda=False)
    once(alone)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(x + 1))
    assert torch.equal(over_processes(torch.ones(3)), torch.full((3,), 1.5))
    loss, gradient = once(shared)
    assert torch.allclose(shared.centres, alone.centres + 0.5) and gradient.any()
    out, label = shared.outputs(faces), dict(label=LABEL)
    expected = cross_entropy(out["logit"], label) + 0.5 * region_independence(
        out["regions"], LABEL, shared.centres, 0.05
    )
    assert torch.allclose(loss, expected, rtol=1e-4)


def test_loss_moves_the_centres_in_training_only(faces):
    model = noise_free(agda=False)
    out = model.outputs(faces)
    expected = moved_centres(out["regions"], LABEL, model.centres, 0.05).detach()
    loss, buffer = model.loss(out, dict(label=LABEL)), model.centres
    assert (
        torch.equal(model.centres, expected) and expected.any() and not model.centres.requires_grad
    )
    model.loss(
        model.outputs(faces), dict(label=LABEL)
    )  # moves them again, before the first loss is differentiated
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
    assert torch.allclose(
        soft_threshold(one, t, g), (torch.tensor(2.0).sigmoid() - bottom) / (1 - bottom)
    )
    assert (soft_threshold(torch.linspace(0, 1, 50), t, g).diff() > 0).all()


def test_degraded_statistics():
    torch.manual_seed(0)
    flat = degrade(torch.full((2, 3, 128, 128), 0.3))
    # bilinear interpolation between noisy pixels keeps about (2/3)^2 of the variance
    assert flat.mean().item() == pytest.approx(
        0.3, abs=0.005
    ) and flat.std().item() == pytest.approx(0.1 * 2 / 3, rel=0.1)
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


def test_agda_divides_by_the_maximum_on_the_faces_grid():
    "A peak between the cells of the enlarged grid: there the largest value is less than the map's own."
    maps = torch.zeros(1, 1, 3, 3)
    maps[..., 1, 1] = 2
    big = resize(maps, torch.empty(1, 1, 64, 64))
    assert big.max() < 1.99
    torch.manual_seed(0)
    hard, _ = agda(torch.zeros(1, 3, 64, 64), maps)
    torch.manual_seed(0)
    assert torch.equal(hard, agda(torch.zeros(1, 3, 64, 64), big)[0])


def test_agda_picks_in_proportion_to_the_root():
    torch.manual_seed(0)
    maps = (
        torch.tensor([0.0, 3.0, 8.0]).view(1, 3, 1, 1).expand(3000, 3, 1, 1)
    )  # sums; roots of 1 more: 1, 2, 3
    picked = agda(torch.zeros(3000, 3, 16, 16), maps)[1]
    assert (picked.bincount() / 3000).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)


def test_agda_takes_no_gradient_and_one_face():
    x, maps = (
        torch.rand(1, 3, 64, 64, requires_grad=True),
        torch.rand(1, 4, 4, 4, requires_grad=True),
    )
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
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(
        a["hard_logit"], c["hard_logit"]
    )


def test_match_leaves_out_the_picked_map():
    a, b = (
        torch.zeros(2, 3, 2),
        torch.tensor(
            [[[3.0, 4.0], [6.0, 8.0], [99.0, 0.0]], [[99.0, 0.0], [0.0, 1.0], [0.0, 2.0]]]
        ),
    )
    assert match_loss(a, b, torch.tensor([2, 0])).item() == pytest.approx(
        (5 + 10 + 0 + 0 + 1 + 2) / 6
    )
    assert match_loss(a[:, :1], b[:, :1], torch.tensor([0, 0])) == 0


# ---- the whole loss


def test_total_loss_by_hand(faces):
    "In loops and numbers, from the released code's constants."
    model, weight = noise_free(), [1.0, 0.5, 0.0, 2.0]
    out = model.outputs(faces)
    parts, again = out["regions"].detach().double(), out["hard_regions"].detach().double()
    centres = 0.05 * sum(parts[i] for i in (0, 2)) / 4  # reals only, over all four; they were zero
    entropy = (
        sum(
            w * math.log1p(math.exp(-z if y else z))
            for key in ("logit", "hard_logit")
            for w, y, z in zip(weight, LABEL.tolist(), out[key].tolist())
        )
        / 4
    )

    def length(v):
        return math.sqrt(sum(x * x for x in v.flatten().tolist()))

    within = (
        sum(
            max(0, 0.8 - length(p - centres) if y else length(p - centres) - 0.2)
            for p, y in zip(parts, LABEL)
        )
        / 4
    )
    apart = sum(
        max(0, 0.8 - length(centres[i] - centres[j])) for i in range(4) for j in range(i)
    ) / (4 * 0.05)
    match = (
        sum(
            length(parts[i, m] - again[i, m])
            for i in range(4)
            for m in range(4)
            if m != out["picked"][i]
        )
        / 16
    )
    assert model.loss(out, dict(label=LABEL, weight=torch.tensor(weight))).item() == pytest.approx(
        entropy + 0.5 * (within + apart) + 0.1 * match, rel=1e-5
    )


def test_weights_reach_the_cross_entropies_only(faces):
    model = noise_free()
    out = model.outputs(faces)
    losses = []
    for weight in (0.0, 1.0):
        model.centres.zero_()
        losses.append(model.loss(out, dict(label=LABEL, weight=torch.full((4,), weight))))
    both = cross_entropy(out["logit"], dict(label=LABEL)) + cross_entropy(
        out["hard_logit"], dict(label=LABEL)
    )
    assert torch.allclose(losses[1] - losses[0], both, atol=1e-4)


@pytest.mark.parametrize("texture", ["v1", "v2"])
@pytest.mark.parametrize("maps", [1, 4])
def test_gradients_reach_everything(faces, texture, maps):
    model = noise_free(texture=texture, maps=maps)
    model.loss(model.outputs(faces), dict(label=LABEL)).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@torch.no_grad()
@pytest.mark.parametrize("texture", ["v1", "v2"])
def test_parts_step_by_step(texture):
    "Maps from b5; local vectors from b2's textures, a map at a time; the global one from the head; regions from b2."
    parts = randomise_batch_norm(small(texture=texture)).parts
    shallow, middle, deep = (
        torch.randn(2, channels, cells, cells) for channels, cells in zip((8, 24, 224), (64, 16, 8))
    )
    seen = []
    for part in (parts.local, parts.whole):
        part.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    out, A = parts(shallow, middle, deep), parts.attention(middle)
    textures, coarse = parts.texture(shallow, A)

    def row(features, m):
        return F.normalize((features * resize(A[:, m, None], features)).sum((2, 3)), dim=1)

    V = torch.stack([row(textures if texture == "v1" else textures[:, m], m) for m in range(4)], 1)
    whole = resize(A.sum(1, keepdim=True), deep)
    v = (deep * whole).sum((2, 3)) / whole.sum((2, 3))
    assert (
        torch.equal(out["maps"], A)
        and torch.allclose(seen[0], V, atol=1e-5)
        and torch.allclose(seen[1], v, atol=1e-5)
    )
    two = parts.joint(torch.cat([parts.local(V), parts.whole(v)], 1))
    assert torch.allclose(out["logit"], two[:, 1] - two[:, 0], rtol=1e-3, atol=1e-6)
    plain = (coarse - coarse.mean((2, 3), keepdim=True)) / (
        coarse.var((2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    assert torch.allclose(
        out["regions"], torch.stack([row(plain, m) for m in range(4)], 1), atol=1e-5
    )


def test_whole_maps_are_dropped(faces):
    "One draw for both vectors: a dropped map has no row in the local one and no part in the sum for the global one."
    model, seen, parts = (
        small(map_dropout=0.5, dropout=0.0, drop_path=0.0, agda=False),
        [],
        import_module("prle.detectors.mat"),
    )
    shallow, middle, deep = (
        torch.randn(4, like.shape[1], cells, cells)
        for like, cells in zip(taps(model.net, faces), (64, 16, 8))
    )
    model.parts.drop_maps.register_forward_hook(lambda m, a, out: seen.append(out))
    model.parts.local.register_forward_hook(lambda m, a, out: seen.append(a[0]))
    model.parts.whole.register_forward_hook(lambda m, a, out: seen.append(a[0]))
    with torch.no_grad():
        for _ in range(8):
            out = model.parts(shallow, middle, deep)
    drawn, local, whole = (torch.stack(s) for s in (seen[::3], seen[1::3], seen[2::3]))
    assert set(drawn.unique().tolist()) == {0.0, 2.0} and 0.3 < (drawn > 0).float().mean() < 0.7
    assert torch.equal(local.any(-1), drawn[..., 0] > 0)
    up, kept = parts.resize(out["maps"], deep), drawn[-1, ..., None] > 0
    weights = (up * kept).sum(1, keepdim=True) + 1e-8
    assert torch.allclose(whole[-1], (deep * weights).sum((2, 3)) / weights.sum((2, 3)), atol=1e-5)


def test_batch_norms_of_the_body_are_the_originals():
    with torch.device("meta"):
        model, plain = mat(), mat(momentum=0.1).stage_one()

    def kinds(net):
        return {(m.eps, m.momentum) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert (
        kinds(model.net) == {(1e-3, 0.01)}
        and kinds(model.parts) == {(1e-5, 0.1)}
        and kinds(plain) == {(1e-3, 0.1)}
    )


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (0.5, 0.0)])
def test_blank_faces(values):
    model = small()
    x = torch.tensor(values).view(2, 1, 1, 1).expand(2, 3, 64, 64)
    loss = model.loss(model.outputs(x), dict(label=torch.tensor([0, 1])))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_half_precision(faces):
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(model.outputs(faces), dict(label=LABEL))
    loss.backward()
    assert (
        loss.isfinite() and model.centres.dtype == torch.float32 and model.centres.isfinite().all()
    )


# ---- two stages


def test_stages_hand_the_body_over_and_back(faces):
    model = small()
    plain = model.stage_one()
    assert (
        isinstance(plain, Detector)
        and not isinstance(plain, Mat)
        and plain.config["name"] == "efficientnet_b4"
    )
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


def test_both_stages_through_the_trainer(toy):
    from prle.data.manifest import select
    from prle.trainer import TrainConfig, train

    rows = [select(toy, split, ["real", "A"]) for split in ("train", "val")]
    model, configs = small(), []

    def by_recipe(detector):
        configs.append(TrainConfig.of(detector.recipe, epochs=1, batch_size=4))
        return train(detector, *rows, configs[-1])

    before = model.net.conv_stem.weight.clone()
    one, two = train_stages(model, by_recipe)
    assert (
        len(one) == len(two) == 1
        and model.centres.any()
        and not torch.equal(model.net.conv_stem.weight, before)
    )
    assert all(
        (c.optimizer, c.lr, c.schedule, c.flip, c.balance)
        == ("AdamW", 1e-4, "step 5 0.5", True, True)
        for c in configs
    )
    assert (
        TrainConfig.of(model.stage_one().recipe).epochs,
        TrainConfig.of(model.recipe).batch_size,
    ) == (20, 15)


def test_stage_one_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        small().load_stage_one(create_detector("efficientnet_b4", width=1 / 4))


def test_pretrained_loads_the_adversarial_weights(monkeypatch):
    from prle.detectors import mat as module

    asked, body = [], mat().net.state_dict()
    state = {k: torch.full_like(v, 2) for k, v in body.items()} | {
        "classifier.weight": torch.zeros(1000, 1792),
        "classifier.bias": torch.zeros(1000),
    }
    monkeypatch.setattr(module, "imagenet_state", lambda source: asked.append(source) or state)
    model = mat(pretrained=True)
    assert asked == ["tf_efficientnet_b4.ap_in1k"] and (model.net.conv_stem.weight == 2).all()
    assert model.weights == Weights(
        "tf_efficientnet_b4.ap_in1k", "Apache-2.0", 380, (0.5,) * 3, (0.5,) * 3
    )

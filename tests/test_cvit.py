"""CViT: the two-token transformer against a plain reference, published counts, sizes, and what its one patch means."""

from functools import partial

import conftest
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prle.detectors.cvit import Attention, CViT, Layer, cvit, feature_learner, stage
from prle.detectors.registry import (
    cam_grids,
    card,
    create_detector,
    list_detectors,
    macs,
    parameter_count,
    size_option,
)


small, meta = partial(conftest.small, "cvit"), partial(conftest.meta, "cvit")


# ---- sizes


def test_is_registered_and_built_for_one_size():
    assert list_detectors("cvit") == ["cvit"] and size_option("cvit", 128) == dict(size=128)
    assert create_detector("cvit", width=1 / 8, size=64).config == dict(
        name="cvit", width=1 / 8, size=64
    )


def test_published_counts():
    model = meta()

    def count(*parts):
        return sum(p.numel() for part in parts for p in part.parameters())

    assert parameter_count(model) == 88_991_554 and parameter_count(model) - 2049 == 88_989_505
    assert count(model.features) == 10_813_248 and count(model.embed) == 25_691_136
    assert count(model.layers) == 50_380_800 and count(model.head) == 2_103_298
    assert model.position.shape == (1, 2, 1024) and model.token.shape == (1, 1, 1024)
    assert macs(model, 224) == pytest.approx(6.6458e9, rel=0.005)


def test_attention_is_counted():
    "Queries times keys and shares times values: 2 x 2 pairs of tokens, 1024 numbers each, in both."
    with torch.device("meta"):
        attention = Attention(1024)
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        attention(torch.empty(1, 2, 1024, device="meta"))
    assert counter.get_total_flops() // 2 == 2 * 4 * 1024 * 1024 + 2 * (2 * 2 * 1024)


@pytest.mark.parametrize("size", [32, 64, 128, 224, 256, 288])
def test_multiples_of_32_change_the_embedding_only(size):
    model = meta(size=size)
    assert model(torch.empty(1, 3, size, size, device="meta")).shape == (1,)
    assert model.embed.in_features == 512 * (size // 32) ** 2
    assert parameter_count(model) == 88_991_554 + 1024 * 512 * ((size // 32) ** 2 - 49)


@pytest.mark.parametrize(
    "size, near", [(299, 288), (380, 384), (100, 96), (16, 32), (0, 32), (-64, 32)]
)
def test_other_sizes_are_refused_before_building(size, near, monkeypatch):
    monkeypatch.setattr(
        "prle.detectors.cvit.feature_learner", lambda width: pytest.fail("work was begun")
    )
    with pytest.raises(ValueError, match=f"multiple of 32, not {size}: try {near}"):
        cvit(size=size)


@pytest.mark.parametrize("width", [1 / 100, 1 / 8, 1 / 4, 1 / 3, 2])
def test_heads_divide_every_width(width):
    model = meta(width=width, size=32)
    dim = model.token.shape[2]
    assert all(
        layer.attention.heads == 8 and dim % 8 == 0 and layer.attention.scale == dim**-0.5
        for layer in model.layers
    )


def test_there_is_nothing_to_load():
    with pytest.raises(ValueError, match="no pretrained weights"):
        create_detector("cvit", pretrained=True)


def test_grids_of_the_cam_layers():
    assert cam_grids(meta(), 224) == {"features.stage5.conv4": 14, "features.stage4.conv4": 28}
    assert card("cvit", 64, width=1 / 8)["cam_layer"] == "features.stage4.conv4"


# ---- the network against plain references


def attention_by_hand(attention, z, scale):
    "One face, one head and one token after the other."
    out = torch.empty_like(z)
    width = z.shape[2]
    head = width // attention.heads
    for n in range(len(z)):
        q, k, v = (z[n] @ attention.qkv.weight.T).split(width, 1)
        for h in range(attention.heads):
            s = slice(h * head, (h + 1) * head)
            for t in range(z.shape[1]):
                shares = torch.softmax(
                    torch.stack([q[t, s] @ k[u, s] for u in range(z.shape[1])]) * scale, 0
                )
                out[n, t, s] = sum(a * v[u, s] for u, a in enumerate(shares))
    return attention.out(out)


@torch.no_grad()
def test_attention_scale_is_the_models_width():
    torch.manual_seed(0)
    attention, z = Attention(64), 4 * torch.randn(3, 2, 64)
    assert torch.allclose(attention(z), attention_by_hand(attention, z, 64**-0.5), atol=1e-5)
    assert not torch.allclose(attention(z), attention_by_hand(attention, z, 8**-0.5), atol=1e-2)


@torch.no_grad()
def test_layer_norms_stand_in_front_and_shortcuts_beside():
    torch.manual_seed(0)
    layer, z = Layer(32, 64), torch.randn(2, 2, 32)
    for norm in (layer.norm1, layer.norm2):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)

    def normed(norm, z):
        return F.layer_norm(z, (32,), norm.weight, norm.bias)

    first, _, second = layer.mlp
    y = z + attention_by_hand(layer.attention, normed(layer.norm1, z), 32**-0.5)
    expected = y + second(0.5 * (h := first(normed(layer.norm2, y))) * (1 + torch.erf(h / 2**0.5)))
    assert torch.allclose(layer(z), expected, atol=1e-5)


def test_seventeen_convolutions_each_with_bias_norm_and_relu():
    model = meta()
    parts = [m for s in model.features for m in s]
    convs = [m for m in parts if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [32] * 3 + [64] * 3 + [128] * 3 + [256] * 4 + [
        512
    ] * 4
    assert all(c.kernel_size == (3, 3) and c.bias is not None for c in convs)
    kinds = [type(m).__name__ for m in stage(3, 8, 2)]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]


@torch.no_grad()
def test_tokens_are_class_and_patch_in_row_column_channel_order():
    model, x = small(128).eval(), torch.randn(3, 3, 128, 128)
    tokens, M = model.tokens(x), model.features(x)
    numbers = torch.stack([M[:, :, r, c] for r in range(4) for c in range(4)], 1).flatten(
        1
    )  # rows, then columns; channels inside
    assert torch.allclose(tokens[:, 0], (model.token + model.position)[0, 0].expand(3, -1))
    assert torch.allclose(tokens[:, 1], model.embed(numbers) + model.position[0, 1], atol=1e-5)


@torch.no_grad()
def test_the_head_reads_the_class_token_without_a_last_norm():
    model, x = small().eval(), torch.rand(2, 3, 64, 64)
    seen = {}
    model.layers.register_forward_hook(lambda m, a, out: seen.update(z=out))
    logit = model(x)
    first, _, second = model.head
    two = second(F.relu(first(seen["z"][:, 0])))
    assert torch.allclose(logit, two[:, 1] - two[:, 0], atol=1e-6)


@torch.no_grad()
def test_a_score_does_not_depend_on_the_place_in_the_batch():
    "The original's older file indexes positions by it, and fails beyond 32 faces."
    model, x = small().eval(), torch.rand(40, 3, 64, 64)
    assert torch.allclose(model(x)[33:], model(x[33:]), atol=1e-5)


@torch.no_grad()
def test_the_patch_knows_places():
    "The embedding has weights of its own for each cell: mirrored cells are another token."
    model, M = small().eval(), torch.rand(1, 64, 2, 2)
    model.features = nn.Identity()
    assert not torch.allclose(model.tokens(M)[:, 1], model.tokens(M.flip(3))[:, 1], atol=1e-2)


# ---- training


def test_starts_near_one_half_and_alike_from_one_seed():
    a, b = small(), small()
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    with torch.no_grad():
        assert a(torch.rand(8, 3, 64, 64)).abs().max() < 0.5


def test_loss_is_the_two_way_cross_entropy_with_weights():
    model = small()
    two, label, weight = (
        torch.randn(5, 2),
        torch.tensor([0, 1, 1, 0, 1]),
        torch.tensor([1, 0.5, 0, 1, 2]),
    )
    batch = dict(label=label, weight=weight)
    expected = (F.cross_entropy(two, label, reduction="none") * weight).mean()
    assert torch.isclose(model.loss(dict(logit=two[:, 1] - two[:, 0]), batch), expected)


def test_recipe_and_statistics_are_the_originals():
    model = meta()
    r = model.recipe
    assert (r.optimizer, r.lr, r.weight_decay, r.schedule, r.batch_size, r.epochs, r.size) == (
        "Adam",
        1e-4,
        1e-7,
        "step 15 0.1",
        32,
        50,
        224,
    )
    assert model.weights.source == "none" and model.weights.mean == (0.485, 0.456, 0.406)


def test_channels_last_and_one_face():
    model, x = small().eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(x), model(x.to(memory_format=torch.channels_last)), atol=1e-5)


def test_feature_learner_halves_five_times():
    assert feature_learner(1 / 8).eval()(torch.rand(1, 3, 96, 64)).shape == (1, 64, 3, 2)
    assert isinstance(small(), CViT)

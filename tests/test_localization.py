"prle.localization against pytorch_grad_cam, and what it must not touch."

import copy
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from prle.localization import (
    CAM_METHODS,
    EXPLAINED,
    attention_maps,
    fake_logit,
    localize,
    tapped,
    upsample_maps,
)

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")

# The layer to explain, and the sign of the score: with random weights the other gives empty maps.
NETWORKS = {
    "legacy_xception": ("conv4", 1),
    "tf_efficientnet_b4": ("conv_head", 1),
    "vgg16": ("features.30", 1),
    "resnet50": ("layer4", -1),
}


SEED = 3  # of a Small whose maps are not empty


class Small(nn.Module):
    "What can go wrong: in-place activations, a frozen batch norm, a branch, a layer nobody calls."

    def __init__(self, outputs=1, inplace=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace))
        self.middle = nn.Conv2d(8, 12, 3, 2, 1)
        self.last = nn.Conv2d(12, 6, 3, 1, 1)
        self.act, self.drop, self.head = nn.ReLU(inplace), nn.Dropout(0.5), nn.Linear(6, outputs)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.act(self.middle(self.stem(x)))
        y = self.last(x)
        return self.head(self.drop(self.act(y).mean((2, 3)))).squeeze(1)


@pytest.fixture
def net():
    torch.manual_seed(SEED)
    net = Small().train()
    net.stem[1].eval()
    return net


@pytest.fixture
def x():
    return torch.rand(3, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def oracle(model, layers, x, score=lambda out: out, method="GradCAM", **options):
    "Return pytorch_grad_cam's maps; the model is left in evaluation mode and with gradients."
    modules = [model.get_submodule(name) for name in layers]
    with getattr(pytorch_grad_cam, method)(model, modules, **options) as cam:
        return torch.from_numpy(cam(x, [lambda out: score(out[None])[0]] * len(x)))


def state(model):
    "Everything of a model that localization must not change."
    return dict(
        tensors={k: v.clone() for k, v in model.state_dict().items()},
        modes=[m.training for m in model.modules()],
        grads=[(w.grad, None if w.grad is None else w.grad.clone()) for w in model.parameters()],
        requires=[w.requires_grad for w in model.parameters()],
        hooks=[
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
    )


def assert_same_state(model, before):
    after = state(model)
    assert all(torch.equal(v, after["tensors"][k]) for k, v in before["tensors"].items())
    assert all(before[k] == after[k] for k in ("modes", "requires", "hooks"))
    for (was, value), (now, _) in zip(before["grads"], after["grads"]):
        assert was is now and (was is None or torch.equal(now, value))


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_pytorch_grad_cam_on_the_four_networks(name):
    torch.manual_seed(0)
    path, sign = NETWORKS[name]
    model = timm.create_model(name, num_classes=2).eval().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 256, 256).to(memory_format=torch.channels_last)

    def score(out):
        return sign * fake_logit(out)

    maps = attention_maps(model, model.get_submodule(path), x, score)
    model.requires_grad_(False)  # the oracle's maps need no gradients of the weights
    expected = oracle(model, [path], x.requires_grad_(), score)
    assert maps.shape == (2, 256, 256) and maps.dtype == torch.float32
    assert expected.amax((1, 2)).min() > 0.9, "an oracle with empty maps would say nothing"
    assert (maps - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    "layers", [["last"], ["middle"], ["stem.0"], ["stem", "last"], ["last", "middle"]]
)
def test_equals_pytorch_grad_cam_with_in_place_activations(net, x, layers):
    "The oracle, which an in-place activation behind the layer would spoil, explains the same weights without any."
    twin = Small(inplace=False)
    twin.load_state_dict(net.state_dict())
    maps = attention_maps(net, [net.get_submodule(name) for name in layers], x)
    expected = oracle(twin, layers, x)
    assert expected.amax((1, 2)).min() > 0.9
    assert (maps - expected).abs().max() < 1e-5


def test_flat_and_empty_maps_are_zero(x):
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 32 * 24, 1))
    nn.init.zeros_(net[0].weight), nn.init.ones_(net[0].bias)
    for sign in (1, -1):
        nn.init.constant_(net[2].weight, sign)
        assert torch.equal(attention_maps(net, net[0], x), torch.zeros(3, 32, 24))


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "scorecam"])
def test_leaves_the_model_as_it_was(net, x, method):
    net(x).sum().backward()
    net.middle.weight.requires_grad_(False)
    net.last.weight.grad = None
    handle = net.last.register_forward_hook(lambda *_: None)
    before = state(net)
    with torch.no_grad():
        attention_maps(net, net.last, x, method=method)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert_same_state(net, before)
    handle.remove()


def test_is_as_found_after_an_error(net, x):
    before = state(net)
    with pytest.raises(RuntimeError, match="did not reach the layer 'unused'"):
        attention_maps(net, net.unused, x)
    with pytest.raises(ValueError, match="one number an image"):
        attention_maps(net, net.last, x, score=lambda out: out[:, None])
    with pytest.raises(ZeroDivisionError):
        attention_maps(net, net.last, x, score=lambda out: 1 / 0)
    assert torch.is_grad_enabled()
    assert_same_state(net, before)


def test_neither_weight_gradients_nor_a_graph_in_front_of_the_layer(net, x):
    seen = {}
    for name in ("stem", "last", "head"):
        net.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: seen.update({name: out.grad_fn})
        )
    with tapped(net, [net.middle]) as kept:
        out = net(x)
    assert seen["stem"] is None and seen["last"] is not None and seen["head"] is not None
    assert kept[net.middle].is_leaf and out.requires_grad
    calls = []
    handle = net.last.weight.register_hook(lambda g: calls.append("weight"))
    attention_maps(net, net.middle, x)
    assert not calls
    handle.remove()


def test_works_without_grad_under_inference_mode_and_with_frozen_weights(net, x):
    expected = attention_maps(net, net.last, x)
    with torch.no_grad():
        assert torch.equal(attention_maps(net, net.last, x), expected)
    with torch.inference_mode():
        assert torch.equal(attention_maps(net, net.last, x), expected)
    with torch.inference_mode():
        assert torch.equal(attention_maps(net, net.last, x.clone()), expected)
    net.requires_grad_(False)
    for method in ("gradcam", "hirescam"):
        assert torch.isfinite(attention_maps(net, net.last, x, method=method)).all()
    assert torch.equal(attention_maps(net, net.last, x), expected)


def test_a_batch_gives_what_single_images_give(net, x):
    singles = torch.cat([attention_maps(net, net.last, one[None]) for one in x])
    assert torch.allclose(attention_maps(net, net.last, x), singles, atol=1e-5)


def test_sizes(net, x):
    grid = attention_maps(net, net.last, x, size="grid")
    assert grid.shape == (3, 8, 6)
    assert attention_maps(net, [net.last, net.stem], x, size="grid").shape == (3, 16, 12)
    for size in ((40, 20), (4, 4)):
        maps = attention_maps(net, net.last, x, size=size)
        resized = np.stack([cv2.resize(g.numpy(), size[::-1]) for g in grid])
        resized = resized - resized.min((1, 2), keepdims=True)
        assert np.abs(maps.numpy() - resized / resized.max((1, 2), keepdims=True)).max() < 1e-5
        assert torch.allclose(upsample_maps(grid, size), maps, atol=1e-6)
    with pytest.raises(ValueError, match="Did you mean 'grid'"):
        attention_maps(net, net.last, x, size="gird")


def test_scores():
    assert torch.equal(fake_logit(torch.tensor([1.0, -2.0])), torch.tensor([1.0, -2.0]))
    assert torch.equal(fake_logit(torch.tensor([[1.0], [-2.0]])), torch.tensor([1.0, -2.0]))
    logits = torch.randn(5, 2)
    assert torch.allclose(fake_logit(logits).sigmoid(), logits.softmax(1)[:, 1])
    with pytest.raises(ValueError, match="pass score="):
        fake_logit(torch.zeros(2, 3))


@pytest.mark.parametrize("method", sorted(set(CAM_METHODS) - {"gradcam", "randomcam"}))
def test_the_other_methods_are_pytorch_grad_cams(x, method):
    torch.manual_seed(SEED)
    net = Small(inplace=False).eval()
    expected = oracle(copy.deepcopy(net), ["last"], x, method=CAM_METHODS[method])
    maps = attention_maps(net, net.last, x, method=method)
    assert (maps - expected).abs().max() < 1e-5
    assert attention_maps(net, net.last, x, method=method, size="grid").shape == (3, 8, 6)


def test_random_cam_is_a_map(net, x):
    maps = attention_maps(net, net.last, x, method="randomcam")
    assert maps.shape == (3, 32, 24) and maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
def test_a_layer_of_one_cell_shows_no_place(net, x, method):
    pooled = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 1)
    )
    with pytest.raises(ValueError, match="one cell for the whole image"):
        attention_maps(pooled, pooled[1], x, method=method)


def test_wrong_input(net, x):
    with pytest.raises(ValueError, match="Did you mean 'gradcam"):
        attention_maps(net, net.last, x, method="gradcam+")
    with pytest.raises(ValueError, match="no submodule"):
        attention_maps(net, nn.Conv2d(3, 3, 1), x)
    for none in ("last", []):
        with pytest.raises(TypeError, match="a module or a list of them, not .*get_submodule"):
            attention_maps(net, none, x)
    with pytest.raises(TypeError, match="float tensor"):
        attention_maps(net, net.last, (x * 255).to(torch.uint8))
    with pytest.raises(TypeError, match="float tensor"):
        attention_maps(net, net.last, x[0])
    with pytest.raises(ValueError, match="'head'"):
        attention_maps(net, net.head, x)
    with pytest.raises(RuntimeError, match="more than once"):
        attention_maps(net, net.act, x)
    with pytest.raises(RuntimeError, match="does not depend"):
        attention_maps(net, net.last, x, score=lambda out: out.detach())
    with pytest.raises(ValueError, match="NaN or infinity in image 1"):
        attention_maps(net, net.last, x.index_fill(0, torch.tensor(1), torch.nan))
    nn.init.constant_(net.last.weight, torch.nan)
    with pytest.raises(ValueError, match="map of image 0 holds NaN"):
        attention_maps(net, net.last, x)


def test_a_missing_pytorch_grad_cam_is_explained(net, x, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert attention_maps(net, net.last, x).shape == (3, 32, 24)
    with pytest.raises(ImportError, match=r"prle\[paper\]"):
        attention_maps(net, net.last, x, method="hirescam")


def test_localize_writes_rows_in_order(net, tmp_path, device):
    images = torch.randint(0, 256, (10, 3, 32, 24), dtype=torch.uint8)
    expected = attention_maps(net.to(device), net.last, images.to(device) / 255).cpu()
    close = 2e-3 if device == "cpu" else 2e-2
    loaders = dict(one=images.split(1), uneven=images.split(4), dicts=[dict(image=images)])
    for name, batches in loaders.items():
        path = localize(net, net.last, batches, tmp_path / f"{name}.npy")
        store = np.load(path, mmap_mode="r")
        assert store.shape == (10, 8, 6) and store.dtype == np.float16
        assert (upsample_maps(store, (32, 24)) - expected).abs().max() < close
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dicts.npy", "one.npy", "uneven.npy"]


def test_localize_leaves_nothing_behind_when_it_fails(net, tmp_path):
    def loader(*last):
        yield torch.rand(2, 3, 32, 24)
        for batch in last:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    path = tmp_path / "maps.npy"
    faults = [
        (torch.full((1, 3, 32, 24), torch.nan), ValueError, "NaN"),
        (OSError("disk"), OSError, "disk"),
        (torch.rand(1, 3, 64, 64), ValueError, "one size"),
    ]
    for last, error, message in faults:
        with pytest.raises(error, match=message):
            localize(net, net.last, loader(last), path)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no image"):
        localize(net, net.last, [], path)
    localize(net, net.last, loader(), path)
    with pytest.raises(OSError):
        localize(net, net.last, loader(OSError()), path)
    assert len(np.load(path)) == 2, "a store that was complete stays"


def test_localize_says_where(net, tmp_path):
    bad = torch.full((1, 3, 32, 24), torch.nan)
    with pytest.raises(ValueError) as e:
        localize(net, net.last, [torch.rand(5, 3, 32, 24), bad], tmp_path / "maps.npy")
    assert "row 5" in e.value.__notes__[0]


LABELS = torch.tensor([1, 1, 0])
SIGNS = dict(
    fake=lambda logit, label: 1,
    predicted=lambda logit, label: 1 if logit >= 0 else -1,
    true=lambda logit, label: 1 if label else -1,
)


@pytest.fixture
def undecided(net, x):
    "A network that takes the first of three faces for fake and the others for real."
    logits = net.eval()(x)
    order = logits.argsort(descending=True)
    with torch.no_grad():
        net.head.bias -= logits.sort(descending=True).values[:2].mean()
    return net, x[order]


@pytest.mark.parametrize("explain", EXPLAINED)
@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam", "scorecam"])
def test_a_reading_is_the_map_of_the_logit_with_its_sign(undecided, tmp_path, explain, method):
    "Face by face, in a loop over images of their own."
    net, x = undecided
    batches = [dict(image=x[:2], label=LABELS[:2]), dict(image=x[2:], label=LABELS[2:])]
    found = np.load(
        localize(net, net.last, batches, tmp_path / "maps.npy", method=method, explain=explain)
    )
    logits = net.eval()(x).tolist()
    assert [logit > 0 for logit in logits] == [True, False, False]
    for image, label, logit, stored in zip(x, LABELS, logits, found):
        sign = SIGNS[explain](logit, label)
        by_hand = attention_maps(
            net, net.last, image[None], lambda out, sign=sign: sign * out, "grid", method=method
        )
        assert np.allclose(stored, by_hand[0].numpy(), atol=2e-3)


def test_readings_differ_where_the_detector_is_wrong_and_nowhere_else(undecided, tmp_path):
    "Of a fake taken for fake, a fake taken for real, and a real taken for real."
    net, x = undecided
    batch = [dict(image=x, label=LABELS)]
    maps = {e: np.load(localize(net, net.last, batch, tmp_path / e, explain=e)) for e in EXPLAINED}
    same = {
        (a, b): [np.array_equal(m, n) for m, n in zip(maps[a], maps[b])]
        for a, b in (("fake", "predicted"), ("fake", "true"), ("predicted", "true"))
    }
    assert same["fake", "predicted"] == [True, False, False]
    assert same["fake", "true"] == [True, True, False]
    assert same["predicted", "true"] == [True, False, True]


def test_a_map_of_the_true_class_needs_labels(net, x, tmp_path):
    for batch in (x, dict(image=x)):
        with pytest.raises(ValueError, match="needs labels"):
            localize(net, net.last, [batch], tmp_path / "maps.npy", explain="true")
    with pytest.raises(ValueError, match="unknown reading 'ture'.*Did you mean 'true'"):
        localize(net, net.last, [x], tmp_path / "maps.npy", explain="ture")
    assert not list(tmp_path.iterdir())


# Grids of other kinds


def vit():
    return VisionTransformer(48, 8, num_classes=2, embed_dim=32, depth=2, num_heads=2, reg_tokens=4)


def swin():
    size = dict(img_size=56, embed_dim=8, window_size=7)
    return SwinTransformer(**size, num_classes=2, depths=(2, 2), num_heads=(2, 2))


def convnext():
    return ConvNeXt(num_classes=2, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


def after_five(tokens):
    return tokens[:, 5:].transpose(1, 2).reshape(len(tokens), 32, 6, 6)


def seven_by_seven(tokens):
    return tokens.transpose(1, 2).reshape(len(tokens), -1, 7, 7)


def channels_last(maps):
    return maps.permute(0, 3, 1, 2)


GRIDS = {
    "vit": (vit, "blocks.1.norm1", 48, after_five),
    "vit-block": (vit, "blocks.0", 48, after_five),
    "swin": (swin, "layers.1.blocks.0", 56, channels_last),
    "swin-norm": (swin, "layers.1.blocks.1.norm1", 56, channels_last),
    "swin-tokens": (swin, "layers.1.blocks.1.norm2", 56, seven_by_seven),
    "convnext": (convnext, "stages.1.blocks.0", 64, None),
    "convnext-norm": (convnext, "stages.1.blocks.0.norm", 64, channels_last),
}


def network(kind):
    "A network with weights large enough to make maps of some contrast, its layer, images, and the oracle's reading."
    make, layer, size, reshape = GRIDS[kind]
    torch.manual_seed(1)
    model = make().eval()
    for name, w in model.named_parameters():
        if w.ndim > 1:
            nn.init.normal_(w, 0, 0.2)
        if "gamma" in name:
            nn.init.ones_(w)
    return model, layer, torch.rand(2, 3, size, size), reshape


def ablating(method, reshape):
    if method != "ablationcam" or reshape is None:
        return {}
    return dict(ablation_layer=pytorch_grad_cam.ablation_layer.AblationLayerVit())


CASES = [(kind, "gradcam") for kind in GRIDS] + [
    (kind, method)
    for kind in ("vit", "swin")
    for method in sorted(set(CAM_METHODS) - {"gradcam", "randomcam"})
]


@pytest.mark.parametrize("kind, method", CASES)
def test_tokens_and_channels_last_are_read_as_pytorch_grad_cam_is_told_to(kind, method):
    model, layer, x, reshape = network(kind)
    options = dict(reshape_transform=reshape) | ablating(method, reshape)
    for sign in (1, -1):  # one of the two gives a map that is not empty

        def score(out, sign=sign):
            return sign * fake_logit(out)

        expected = oracle(copy.deepcopy(model), [layer], x, score, CAM_METHODS[method], **options)
        if expected.max() > 0.9:
            break
    assert expected.max() > 0.9
    maps = attention_maps(model, model.get_submodule(layer), x, score, method=method)
    assert (maps - expected).abs().max() < 1e-3
    told = attention_maps(
        model, model.get_submodule(layer), x, score, method=method, reshape=reshape
    )
    assert torch.equal(told, maps)


def test_tokens_without_a_class_token_and_merged_ones():
    "On a grid that the convolution of the patches tells, or a divisor of it; not on any square number."
    torch.manual_seed(0)
    model = VisionTransformer(
        48,
        8,
        num_classes=2,
        embed_dim=32,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="avg",
    )
    x = torch.rand(2, 3, 48, 48)
    layer = model.blocks[1]
    assert attention_maps(model, layer, x, size="grid").shape == (2, 6, 6)

    class Merged(nn.Module):
        def __init__(self, keep):
            super().__init__()
            self.cut, self.mix, self.keep = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 12), keep

        def forward(self, x):
            tokens = self.cut(x).flatten(2).transpose(1, 2)[:, : self.keep]
            return self.mix(tokens).tanh().mean((1, 2))

    merged = Merged(36)
    assert attention_maps(merged, merged.mix, x, size="grid").shape == (2, 6, 6)
    odd = Merged(100)
    with pytest.raises(ValueError, match=r"'mix' \(Linear\) returns \(2, 100, 12\).*pass reshape="):
        attention_maps(odd, odd.mix, x)


class Cube(nn.Module):
    "Eight channels of 8x8 cells, of which the layer says nothing and the network both."

    def __init__(self):
        super().__init__()
        self.cut, self.layer = nn.Conv2d(3, 8, 4, 4), nn.Identity()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 8), nn.Linear(8, 1))

    def forward(self, x):
        return self.head(self.layer(self.cut(x)))


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam"])
def test_what_can_be_read_in_two_ways_has_to_be_told(method):
    torch.manual_seed(0)
    net, x = Cube(), torch.rand(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"'layer' \(Identity\) returns \(2, 8, 8, 8\).*pass reshape="
    ):
        attention_maps(net, net.layer, x, method=method)
    expected = attention_maps(net, net.cut, x, method=method)
    told = attention_maps(net, net.layer, x, method=method, reshape=lambda t: t)
    assert torch.equal(told, expected) and expected.any()
    turned = attention_maps(net, net.layer, x, method=method, reshape=channels_last)
    assert not torch.equal(turned, expected)


def test_a_small_grid_with_as_many_channels_is_read_by_the_modules_around_it():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
    net = nn.Sequential(block, nn.Flatten(), nn.Linear(512, 8), nn.Linear(8, 1))
    x = torch.rand(2, 3, 32, 32)
    told = attention_maps(net, block[1], x, reshape=lambda t: t)
    assert torch.equal(attention_maps(net, block[1], x), told) and told.any()


class SequenceFirst(nn.Module):
    "Tokens (T, N, C), as in torch's own attention by default."

    def __init__(self):
        super().__init__()
        self.cut, self.mix, self.head = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.head(self.mix(self.cut(x).flatten(2).permute(2, 0, 1)).tanh().mean(0))


@pytest.mark.parametrize("n", [2, 16])
def test_tokens_before_images_are_not_taken_for_images(n):
    "Nor where a batch has as many images as a face has tokens."
    torch.manual_seed(0)
    net, x = SequenceFirst(), torch.rand(n, 3, 32, 32)
    with pytest.raises(ValueError, match="pass reshape="):
        attention_maps(net, net.mix, x)

    def reshape(tokens):
        return tokens.permute(1, 2, 0).unflatten(2, (4, 4))

    maps = attention_maps(net, net.mix, x, size="grid", reshape=reshape)
    assert torch.allclose(maps, attention_maps(net, net.cut, x, size="grid"), atol=1) and maps.any()
    with pytest.raises(ValueError, match="needs the channels on axis 1 or on the last"):
        attention_maps(net, net.mix, x, method="ablationcam", reshape=lambda t: t[:, :, None])


def test_a_reshape_that_makes_no_map_and_a_layer_that_only_speaks_through_its_class_token():
    model, _, x, _ = network("vit")
    layer = model.blocks[1]
    for method in ("gradcam", "hirescam"):
        with pytest.raises(
            ValueError, match=r"reshape= must give \(2, C, h, w\), not \(2, 41, 32\)"
        ):
            attention_maps(model, layer, x, method=method, reshape=lambda t: t)
        with pytest.raises(IndexError):
            attention_maps(model, layer, x, method=method, reshape=lambda t: t[99])
        with pytest.raises(RuntimeError, match="'blocks.1' .*only on its class token"):
            attention_maps(model, layer, x, method=method)


# Networks that return more than a tensor, and half precision


class Rich(nn.Module):
    "A network whose logits come in company."

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


def as_tuple(logit):
    return logit, [torch.tensor(0.5), None]


def as_dict(logit):
    return dict(loss=torch.tensor(0.5), logits=logit)


def as_object(logit):
    return SimpleNamespace(logits=logit)


def test_what_is_no_tensor_proposes_a_score(net, x):
    proposals = {as_tuple: "tuple.*out[0]", as_dict: "dict.*out['logits']", as_object: "out.logits"}
    for form, text in proposals.items():
        rich = Rich(net, form)
        pattern = text.replace("[", r"\[").replace("]", r"\]")
        for method in ("gradcam", "hirescam") if form is not as_object else ("gradcam",):
            with pytest.raises(TypeError, match=rf"{pattern}"):
                attention_maps(rich, net.last, x, method=method)
    with pytest.raises(TypeError, match="SimpleNamespace, which cannot be taken apart"):
        attention_maps(rich, net.last, x, method="hirescam", score=lambda out: out.logits)


@pytest.mark.parametrize("method", sorted(set(CAM_METHODS) - {"randomcam"}))
def test_a_score_of_a_structured_output_gives_the_maps_of_its_logits(net, x, method, tmp_path):
    expected = attention_maps(net, net.last, x, method=method)
    for form, score in {as_tuple: lambda out: out[0], as_dict: lambda out: out["logits"]}.items():
        rich = Rich(net, form)
        maps = attention_maps(rich, net.last, x, score, method=method)
        assert (maps - expected).abs().max() < 1e-6
    batch, options = [dict(image=x, label=LABELS)], dict(method=method, explain="true")
    plain = localize(net, net.last, batch, tmp_path / "plain.npy", **options)
    structured = localize(rich, net.last, batch, tmp_path / "rich.npy", score, **options)
    assert np.allclose(np.load(plain), np.load(structured), atol=1e-3)


class Rounded(nn.Module):
    "The same network in half precision, with a place after its last convolution where all is float32."

    def __init__(self, net):
        super().__init__()
        self.net, self.place = net.bfloat16(), nn.Identity()

    def forward(self, x):
        y = self.net.last(self.net.act(self.net.middle(self.net.stem(x.bfloat16()))))
        y = self.net.act(self.place(y.float()).bfloat16())
        return self.net.head(self.net.drop(y.mean((2, 3)))).squeeze(1)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_half_precision_with_every_method(x, method, tmp_path, device):
    torch.manual_seed(SEED)
    half, x = Small(inplace=False).to(device, torch.bfloat16), x.to(device)
    maps = attention_maps(half, half.last, x.bfloat16(), method=method).cpu()
    assert maps.dtype == torch.float32 and maps.shape == (3, 32, 24)
    localize(half, half.last, [x], tmp_path / "maps.npy", method=method)
    if method == "randomcam":
        return
    stored = upsample_maps(np.load(tmp_path / "maps.npy"), (32, 24))
    assert (stored - maps).abs().max() < 0.02
    twin = Rounded(copy.deepcopy(half)).eval()
    expected = oracle(twin, ["place"], x, method=CAM_METHODS[method])
    assert (maps - expected).abs().max() < 1e-3
    assert method == "ablationcam" or expected.max() > 0.9

"prle.localization against pytorch_grad_cam, and what it must not touch."

import copy
import sys

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from prle.localization import (
    CAM_METHODS,
    READINGS,
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


def oracle(model, layers, x, score=lambda out: out, method="GradCAM"):
    "Return pytorch_grad_cam's maps; the model is left in evaluation mode and with gradients."
    modules = dict(model.named_modules())
    with getattr(pytorch_grad_cam, method)(model, [modules[name] for name in layers]) as cam:
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
    x = torch.rand(4, 3, 256, 256).to(memory_format=torch.channels_last)

    def score(out):
        return sign * fake_logit(out)

    maps = attention_maps(model, model.get_submodule(path), x, score)
    model.requires_grad_(False)  # the oracle's maps need no gradients of the weights
    expected = oracle(model, [path], x.requires_grad_(), score)
    assert maps.shape == (4, 256, 256) and maps.dtype == torch.float32
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


def test_wrong_input(net, x):
    with pytest.raises(ValueError, match="Did you mean 'gradcam"):
        attention_maps(net, net.last, x, method="gradcam+")
    with pytest.raises(ValueError, match="no submodule"):
        attention_maps(net, nn.Conv2d(3, 3, 1), x)
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


@pytest.mark.parametrize("explain", READINGS)
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
    maps = {e: np.load(localize(net, net.last, batch, tmp_path / e, explain=e)) for e in READINGS}
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

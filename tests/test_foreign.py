"""Checkpoints of others: state dicts by the names and shapes of their code, every tensor accounted for."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from prle.detectors import create_detector
from prle.detectors.capsule import PrimaryCapsules
from prle.detectors.registry import macs
from prle.detectors.foreign import FOREIGN, fill, load_foreign, read_checkpoint, translate
from prle.detectors.foreign import _fitted

HALF = (728, 728, 728)
BLOCKS = [(64, 128, 128), (128, 256, 256), (256, *HALF[:2]), *[(728, *HALF)] * 8, (728, 728, 1024)]


def norm(prefix, channels):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{n}": (channels,) for n in names} | {f"{prefix}.num_batches_tracked": ()}


def separable(prefix, a, b):
    return {f"{prefix}.conv1.weight": (a, 1, 3, 3), f"{prefix}.pointwise.weight": (b, a, 1, 1)}


def block(prefix, channels, first_relu=True):
    "ReLU, separable convolution and batch norm again and again; a shortcut where the shape changes."
    shapes = {}
    for k, (a, b) in enumerate(zip(channels, channels[1:])):
        place = 3 * k + (1 if first_relu else 0)
        shapes |= separable(f"{prefix}.rep.{place}", a, b) | norm(f"{prefix}.rep.{place + 1}", b)
    if channels[0] != channels[-1]:
        shapes[f"{prefix}.skip.weight"] = (channels[-1], channels[0], 1, 1)
        shapes |= norm(f"{prefix}.skipbn", channels[-1])
    return shapes


def xception(prefix="", inputs=3, head="last_linear", outputs=2):
    "Fact sheet, section 9."
    shapes = {f"{prefix}conv1.weight": (32, inputs, 3, 3), f"{prefix}conv2.weight": (64, 32, 3, 3)}
    shapes |= norm(f"{prefix}bn1", 32) | norm(f"{prefix}bn2", 64)
    for k, channels in enumerate(BLOCKS, 1):
        shapes |= block(f"{prefix}block{k}", channels, k > 1)
    shapes |= separable(f"{prefix}conv3", 1024, 1536) | norm(f"{prefix}bn3", 1536)
    shapes |= separable(f"{prefix}conv4", 1536, 2048) | norm(f"{prefix}bn4", 2048)
    return shapes | linear(f"{prefix}{head}", 2048, outputs)


def linear(prefix, inputs, outputs):
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def unused(prefix):
    "What DeepfakeBench builds beside every Xception."
    shapes = {f"{prefix}adjust_channel.0.weight": (512, 2048, 1, 1)}
    return (
        shapes | {f"{prefix}adjust_channel.0.bias": (512,)} | norm(f"{prefix}adjust_channel.1", 512)
    )


def f3net():
    shapes = xception("backbone.", 12) | unused("backbone.")
    shapes |= {f"FAD_head.{name}": (256, 256) for name in ("_DCT_all", "_DCT_all_T")}
    for k in range(4):
        shapes |= {f"FAD_head.filters.{k}.{name}": (256, 256) for name in ("base", "learnable")}
    return shapes


def ffd():
    return xception("backbone.") | unused("backbone.") | separable("map.c", 728, 1)


def recce():
    "Fact sheet, section 8: decoder 496,856, graph 1,944,128, attention 531,524 parameters."
    shapes = xception("backbone.") | unused("backbone.")
    shapes |= xception("model.encoder.", head="fc", outputs=1000) | linear("model.fc", 2048, 2)
    graph = dict(va_embedding=(728, 256), vb_embedding=(256, 256), vc_embedding=(128, 256))
    ones = {"va_embedding": (1, 1), "vb_embedding": (), "vc_embedding": ()}
    for name, (a, b) in graph.items():
        shapes[f"model.reasoning.{name}.0.weight"] = (b, a, *ones[name])
        shapes[f"model.reasoning.{name}.2.weight"] = (b, b, *ones[name])
    for name in "bc":
        shapes[f"model.reasoning.va_gated_{name}.0.weight"] = (256, 728, 1, 1)
        shapes[f"model.reasoning.reweight_a{name}.0.weight"] = (1, 512)
    shapes["model.reasoning.reproject.0.weight"] = (728, 768, 1, 1)
    shapes["model.reasoning.reproject.2.weight"] = (728, 728, 1, 1)
    shapes["model.attention.gated.0.weight"] = (3, 3, 3, 3)
    shapes["model.attention.gated.2.weight"] = (1, 3, 1, 1)
    shapes["model.attention.h.0.weight"] = (728, 728, 1, 1)
    shapes |= norm("model.attention.h.1", 728)
    for k, (a, b) in zip((1, 3, 5), ((728, 256), (256, 128), (128, 64))):
        shapes |= separable(f"model.decoder{k}.1", a, b) | norm(f"model.decoder{k}.2", b)
    shapes |= block("model.decoder2", [256] * 4) | block("model.decoder4", [128] * 4)
    return shapes | {"model.decoder6.0.weight": (3, 64, 1, 1)}


def srm():
    "Fact sheet, section 6: 1,334,060 parameters in each dual attention, 8,916,992 in the fusion."
    shapes = {"srm_conv0.kernel": (3, 3, 5, 5), "srm_sa.srm.kernel": (3, 3, 5, 5)}
    shapes["blur.weight"] = (3, 1, 7, 7)
    for name in ("backbone_rgb.", "backbone_srm."):
        shapes |= xception(name) | unused(name)
    for k, c in ((1, 32), (2, 64)):
        shapes[f"srm_conv{k}.kernel"] = (3 * c, 1, 5, 5)
        shapes[f"srm_conv{k}.out_conv.0.weight"] = (c, 3 * c, 1, 1)
        shapes |= norm(f"srm_conv{k}.out_conv.1", c)
    shapes["srm_sa.conv.0.weight"] = (32, 3, 3, 3)
    shapes["srm_sa.conv.3.weight"] = (64, 32, 3, 3)
    shapes["srm_sa.pa.conv.weight"] = (1, 2, 7, 7)
    shapes |= norm("srm_sa.conv.1", 32) | norm("srm_sa.conv.4", 64) | norm("srm_sa_post.0", 64)
    for k in (0, 1):
        sizes = dict(key_conv1=(728, 91), key_conv2=(728, 91), key_conv_share=(91, 91))
        sizes |= dict(value_conv1=(728, 728), value_conv2=(728, 728))
        for name, (a, b) in sizes.items():
            shapes[f"dual_cma{k}.{name}.weight"] = (b, a, 1, 1)
            shapes[f"dual_cma{k}.{name}.bias"] = (b,)
        shapes |= linear(f"dual_cma{k}.linear1", 256, 256) | linear(
            f"dual_cma{k}.linear2", 256, 256
        )
        shapes |= {f"dual_cma{k}.gamma1": (1,), f"dual_cma{k}.gamma2": (1,)}
    shapes["fusion.convblk.0.weight"] = (2048, 4096, 1, 1)
    shapes |= norm("fusion.convblk.1", 2048)
    shapes["fusion.ca.sharedMLP.0.weight"] = (128, 2048, 1, 1)
    return shapes | {"fusion.ca.sharedMLP.2.weight": (2048, 128, 1, 1)}


def capsule():
    "Fact sheet, section 2: 157,043 parameters a primary capsule."
    shapes, places = {}, (0, 2, 5, 7, 10, 12, 14, 16)
    channels = (3, 64, 64, 128, 128, 256, 256, 256, 256)
    for place, a, b in zip(places, channels, channels[1:]):
        shapes[f"vgg_ext.vgg_1.{place}.weight"] = (b, a, 3, 3)
        shapes[f"vgg_ext.vgg_1.{place}.bias"] = (b,)
    convolutions = {0: (64, 256, 3, 3), 3: (16, 64, 3, 3), 7: (8, 2, 5), 9: (1, 8, 3)}
    for n in range(10):
        for place, shape in convolutions.items():
            start = f"fea_ext.capsules.{n}"
            shapes |= {f"{start}.{place}.weight": shape, f"{start}.{place}.bias": shape[:1]}
            shapes |= norm(f"{start}.{place + 1}", shape[0])
    return shapes | {"routing_stats.route_weights": (2, 10, 4, 8)}


def meso():
    "Fact sheet, section 1: batch norms shared by two layers, no biases of convolutions."
    shapes = {"backbone.conv1.weight": (8, 3, 3, 3), "backbone.conv2.weight": (8, 8, 5, 5)}
    shapes |= {"backbone.conv3.weight": (16, 8, 5, 5), "backbone.conv4.weight": (16, 16, 5, 5)}
    shapes |= norm("backbone.bn1", 8) | norm("backbone.bn2", 16)
    return shapes | linear("backbone.fc1", 1024, 16) | linear("backbone.fc2", 16, 2)


B4_STAGES = [
    *[(2, 1, 3, 24), (4, 6, 3, 32), (4, 6, 5, 56), (6, 6, 3, 112)],
    *[(6, 6, 5, 160), (8, 6, 5, 272), (2, 6, 3, 448)],
]  # blocks, expansion, kernel, channels


def b4_block(start, inputs, expansion, kernel, channels):
    "Expansion, depthwise convolution, squeeze and excitation by a quarter of the inputs, projection."
    inner, squeezed = inputs * expansion, inputs // 4
    shapes = {f"{start}_depthwise_conv.weight": (inner, 1, kernel, kernel)}
    if expansion > 1:
        shapes[f"{start}_expand_conv.weight"] = (inner, inputs, 1, 1)
        shapes |= norm(f"{start}_bn0", inner)
    for part, a, b in (("reduce", inner, squeezed), ("expand", squeezed, inner)):
        shapes |= {f"{start}_se_{part}.weight": (b, a, 1, 1), f"{start}_se_{part}.bias": (b,)}
    shapes[f"{start}_project_conv.weight"] = (channels, inner, 1, 1)
    return shapes | norm(f"{start}_bn1", inner) | norm(f"{start}_bn2", channels)


def b4(prefix="", head="_fc"):
    "Fact sheet, section 10."
    shapes, number, inputs = {f"{prefix}_conv_stem.weight": (48, 3, 3, 3)}, 0, 48
    for depth, expansion, kernel, channels in B4_STAGES:
        for _ in range(depth):
            start = f"{prefix}_blocks.{number}."
            shapes |= b4_block(start, inputs, expansion, kernel, channels)
            number, inputs = number + 1, channels
    shapes |= norm(f"{prefix}_bn0", 48) | norm(f"{prefix}_bn1", 1792)
    shapes[f"{prefix}_conv_head.weight"] = (1792, 448, 1, 1)
    return shapes | linear(head, 1792, 2)


CHECKPOINTS = {
    "deepfakebench/xception": lambda: xception("backbone.") | unused("backbone."),
    "deepfakebench/f3net": f3net,
    "deepfakebench/ffd": ffd,
    "deepfakebench/recce": recce,
    "deepfakebench/srm": srm,
    "deepfakebench/capsule_net": capsule,
    "deepfakebench/meso4": meso,
    "deepfakebench/efficientnetb4": lambda: b4("backbone.efficientnet.", "backbone.last_layer"),
    "efficientnet_pytorch/b4": b4,
    "faceforensics/xception": lambda: xception("model.", head="last_linear.1"),
}


def drawn(shapes):
    "Random weights of these shapes, as after training."
    made = {}
    for name, shape in shapes.items():
        value = torch.rand(shape) if "running_var" in name else 0.1 * torch.randn(shape)
        made[name] = torch.tensor(5) if name.endswith("tracked") else value
    return made


def test_every_entry_of_the_table_is_tested():
    assert CHECKPOINTS.keys() == FOREIGN.keys()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_has_its_place(name):
    "Without numbers: names and shapes alone."
    with torch.device("meta"):
        model = create_detector(name)
        state = {key: torch.empty(shape) for key, shape in CHECKPOINTS[name]().items()}
    made, unknown = translate(state, FOREIGN[name].rules)
    own = model.state_dict()
    assert unknown == [] and made.keys() == own.keys()
    wrong = {k: v.shape for k, v in made.items() if v.numel() != own[k].numel()}
    assert wrong == {}


def test_the_sheets_count_what_is_listed_here():
    "That the state dicts of these tests are those of the fact sheets."

    def count(shapes, start):
        own = {k: s for k, s in shapes.items() if k.startswith(start) and "running" not in k}
        return sum(torch.Size(s).numel() for k, s in own.items() if "tracked" not in k)

    assert count(xception(), "") == 20_811_050 and count(f3net(), "backbone.adjust") == 1_050_112
    found = [count(recce(), f"model.{part}") for part in ("decoder", "reasoning", "attention")]
    assert found == [496_856, 1_944_128, 531_524]
    assert count(srm(), "dual_cma0") == 1_334_060 and count(srm(), "fusion") == 8_916_992
    assert count(capsule(), "fea_ext.capsules.0.") == 157_043 and count(meso(), "") == 27_898
    assert count(ffd(), "map") == 7_280 and count(b4(), "") == 17_552_202


def test_meso_scores_as_the_sheet_says(tmp_path):
    "Faces from -1 to 1, one batch norm behind two convolutions, the outputs' difference."
    state = drawn(meso())
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "ckpt_best.pth")
    model = load_foreign(tmp_path / "ckpt_best.pth", "deepfakebench/meso4")
    p = {k.removeprefix("backbone."): v for k, v in state.items()}
    faces = torch.rand(2, 3, 256, 256)
    x = (faces - 0.5) / 0.5
    for k, (bn, pool) in enumerate((("bn1", 2), ("bn1", 2), ("bn2", 2), ("bn2", 4)), 1):
        kernel = p[f"conv{k}.weight"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2).relu()
        parts = (p[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.max_pool2d(F.batch_norm(x, *parts), pool)
    x = F.leaky_relu(F.linear(x.flatten(1), p["fc1.weight"], p["fc1.bias"]), 0.1)
    real, fake = F.linear(x, p["fc2.weight"], p["fc2.bias"]).unbind(1)
    with torch.no_grad():
        assert torch.allclose(model(faces), fake - real, atol=1e-4)


STRIDED = {
    "deepfakebench/efficientnetb4": [(0, 0), (0, 1), (2, 2), (0, 1), (1, 2)],
    "efficientnet_pytorch/b4": [(0, 1), (0, 1), (2, 2), (0, 1), (1, 2)],
}


@pytest.mark.parametrize("name", STRIDED)
def test_b4_is_padded_as_for_380_pixels(name):
    "Whatever the face: the sheet's grids and operations, and each convolution's own padding."
    with torch.device("meta"):
        model = create_detector(name)
    size, published = (256, 1.9521) if "bench" in name else (299, 2.5196)
    second_output = 1792
    assert round((macs(model, size) + second_output) / 1e9, 4) == published
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1]
    assert [conv.pads for conv in strided] == STRIDED[name]
    conv, picture = strided[2].to_empty(device="cpu"), torch.rand(1, strided[2].in_channels, 63, 63)
    nn.init.normal_(conv.weight)
    by_hand = F.conv2d(picture, conv.weight, stride=2, padding=2, groups=conv.groups)
    assert torch.allclose(conv(picture), by_hand, atol=1e-5)
    edges = {256: (127, 8)} if "bench" in name else {256: (128, 8), 299: (149, 9)}
    for size, (stem, head) in edges.items():
        x = torch.empty(1, 3, size, size, device="meta")
        assert model.net.conv_stem.to("meta")(x).shape[-1] == stem
        assert model.to("meta").net.forward_features(x).shape[-1] == head


def test_ten_small_networks_are_groups_of_one():
    state = drawn({k: s for k, s in capsule().items() if k.startswith("fea_ext")})
    made, _ = translate(state, FOREIGN["deepfakebench/capsule_net"].rules)
    primary = PrimaryCapsules(10).eval()
    primary.load_state_dict({k.removeprefix("primary."): v for k, v in made.items()})
    x = torch.rand(1, 256, 4, 4)
    with torch.no_grad():
        found = primary.maps(x)
        for n in range(10):
            own = {
                k.removeprefix(f"fea_ext.capsules.{n}."): v
                for k, v in state.items()
                if re.match(rf"fea_ext\.capsules\.{n}\.[0-5]\.", k)
            }
            one = nn.Sequential(
                nn.Conv2d(256, 64, 3, padding=1),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
            ).eval()
            one.load_state_dict(own)
            assert torch.allclose(found[:, 16 * n : 16 * n + 16], one(x), atol=1e-4)


def test_the_graphs_columns_are_sorted():
    "Behind their graph stand the embeddings of D2, D4 and the cell; here the cell's come first."
    weight = torch.arange(768.0).expand(2, 768)[..., None, None]
    theirs = {"model.reasoning.reproject.0.weight": weight}
    theirs["model.reasoning.reweight_ab.0.weight"] = torch.arange(512.0)[None]
    made, _ = translate(theirs, FOREIGN["deepfakebench/recce"].rules)
    columns = made["reasoning.back.0.weight"][0, :, 0, 0]
    assert columns[[0, 255, 256, 511, 512, 767]].tolist() == [512, 767, 0, 255, 256, 511]
    assert made["reasoning.near2.score_cell.weight"][0, [0, -1]].tolist() == [0, 255]
    assert made["reasoning.near2.score_fine.weight"][0, [0, -1]].tolist() == [256, 511]


def meso_model():
    return create_detector("deepfakebench/meso4"), FOREIGN["deepfakebench/meso4"].rules


def test_whatever_does_not_fit_is_named():
    (model, rules), state = meso_model(), drawn(meso())
    del state["backbone.conv3.weight"]
    state["backbone.fc1.weight"] = torch.zeros(16, 900)
    state["head.weight"] = torch.zeros(1)
    says = (
        "x.pth does not fit Meso4: it lacks block3.conv.weight; it has besides head.weight; "
        "of another shape are hidden.weight (16, 900)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        fill(model, state, rules, "x.pth")


@pytest.mark.parametrize("outputs", [1, 1000])
def test_a_last_layer_of_other_than_two_outputs_is_refused(outputs):
    "One of ImageNet, or a single output, of which nobody says what it means."
    (model, rules), state = meso_model(), drawn(meso())
    state |= drawn(linear("backbone.fc2", 16, outputs))
    says = (
        "x.pth does not fit Meso4: it lacks head.weight, head.bias; of other than two outputs are "
        f"backbone.fc2.weight ({outputs}, 16), backbone.fc2.bias ({outputs},)."
    )
    for fake in (0, 1):
        with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
            fill(model, state, rules, "x.pth", fake)


def test_only_axes_of_length_one_are_fitted():
    kernel = torch.zeros(4, 1, 1)
    for shape, fitted in {(1, 4): (4, 1, 1), (0, 4): (0, 4), (2, 2): (2, 2)}.items():
        assert _fitted(torch.zeros(shape), kernel).shape == fitted


HEADS = {
    "deepfakebench/meso4": ("backbone.fc2", nn.ModuleDict(dict(head=nn.Linear(8, 1)))),
    "deepfakebench/ffd": ("backbone.last_linear", nn.ModuleDict(dict(fc=nn.Linear(8, 2)))),
    "efficientnet_pytorch/b4": (
        "_fc",
        nn.ModuleDict(dict(net=nn.ModuleDict(dict(classifier=nn.Linear(8, 1))))),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_fake_is_the_output_that_is_said_to_be(name, tmp_path, monkeypatch):
    "Without the body. Where none is said it is that of the entry; the paper's release has 0."
    theirs, model = HEADS[name]
    file = tmp_path / "x.safetensors"
    state = drawn(linear(theirs, 8, 2))
    save_file(state, file)
    monkeypatch.setattr("prle.detectors.foreign.create_detector", lambda *_, **__: model)
    own = 0 if name == "efficientnet_pytorch/b4" else 1
    for fake in (0, 1, None):
        found = load_foreign(file, name, fake=fake).state_dict().values()
        k = own if fake is None else fake
        for ours, two in zip(found, state.values()):
            logit = ours[1] - ours[0] if len(ours) == 2 else ours[0]
            assert torch.equal(logit, two[k] - two[1 - k])
    with pytest.raises(ValueError, match="fake must be 0 or 1, one of two outputs, not 2"):
        load_foreign(file, name, fake=2)


def test_capsules_outputs_change_places():
    name, rules = "routing_stats.route_weights", FOREIGN["deepfakebench/capsule_net"].rules
    weights, model = torch.randn(2, 10, 4, 8), nn.Module()
    model.register_buffer("routing", torch.zeros(2, 10, 4, 8))
    for fake, expected in ((1, weights), (0, weights.flip(0))):
        assert torch.equal(fill(model, {name: weights}, rules, "x.pth", fake).routing, expected)


def test_files_of_old_versions_have_no_counters():
    (model, rules), state = meso_model(), drawn(meso())
    fill(model, {k: v for k, v in state.items() if not k.endswith("tracked")}, rules, "x.pth")
    assert torch.equal(model.block4.norm.running_var, state["backbone.bn2.running_var"])


def test_two_dimensional_kernels_of_old_files_fit():
    with torch.device("meta"):
        state = {k: torch.empty(s) for k, s in xception("model.").items()}
        state = {k: v[:, :, 0, 0] if "pointwise" in k else v for k, v in state.items()}
        model = create_detector("faceforensics/xception")
        fill(model, state, FOREIGN["faceforensics/xception"].rules, "x.pth")


BROKEN = {
    "holds more than tensors.*reading it would run code.*state_dict": nn.Linear(1, 1),
    "holds no dictionary of tensors": dict(fc=[1.0]),
    "holds no dictionary of tensors.": torch.zeros(3),
}


@pytest.mark.parametrize("says", BROKEN)
def test_what_is_no_state_dict_is_refused(says, tmp_path):
    torch.save(BROKEN[says], tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth {says}"):
        read_checkpoint(tmp_path / "x.pth")


def test_files_are_read_in_any_wrapping(tmp_path):
    state = {"module.fc.bias": torch.ones(2)}
    torch.save(dict(epoch=1, model=dict(state_dict=state)), tmp_path / "x.pt")
    save_file(state, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        assert list(read_checkpoint(tmp_path / name)) == ["fc.bias"]
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="x.pt is no whole checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="unknown architecture 'deepfakebench/xcep'.*Did you mean"):
        load_foreign("x.pth", "deepfakebench/xcep")
    with pytest.raises(ValueError, match="unknown detector 'deepfakebench/xcep'"):
        create_detector("deepfakebench/xcep")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><p>404", b"version https://git-lfs..."])
def test_what_is_no_checkpoint_is_called_none(tmp_path, content):
    "Nobody is told to run an error page."
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match="x.pth is no checkpoint: it begins with"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_checkpoint_of_numbers_and_one_cut_short_are_named(tmp_path):
    torch.save({1: torch.zeros(2)}, tmp_path / "numbers.pth")
    torch.save(dict(a=torch.zeros(2)), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    for size in range(1, len(whole) - 1, 7):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.pth"):
            read_checkpoint(tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="numbers.pth holds no dictionary of tensors"):
        read_checkpoint(tmp_path / "numbers.pth")

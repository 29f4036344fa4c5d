"""Networks of timm as detectors: names, statistics, sizes, layers of maps, tuning, weights from a cache."""

import copy
import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from prle.detectors import create_detector
from prle.detectors.backbones import RANK
from prle.detectors.registry import (
    cam_grids,
    detector_facts,
    detector_options,
    parameter_count,
    size_option,
)
from prle.lab.configs import PRESETS, PUBLISHED, RunConfig
from prle.lab.experiments import Lab
from prle.localization import attention_maps
from test_experiments import TINY, write_square

LAYERS = {
    # name: size of the faces, the layer that the maps are read from, its cells
    "convnext_tiny": (128, "net.stages.2", 8),
    "resnet18": (256, "net.layer4", 8),
    "swin_tiny_patch4_window7_224": (128, "net.layers.2", 8),
    "vit_tiny_patch16_224": (128, "net.blocks.11.norm1", 8),
    "vit_small_patch14_dinov2": (128, "net.blocks.11.norm1", 10),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_of_the_maps_is_found(name):
    size, layer, cells = LAYERS[name]
    with torch.device("meta"):
        detector = create_detector(f"timm/{name}", **size_option(f"timm/{name}", size))
    assert detector.cam_name(size) == layer and cam_grids(detector, size)[layer] == cells
    assert detector(torch.empty(2, 3, size, size, device="meta")).shape == (2,)
    assert list(detector.mean.shape) == [1, 3, 1, 1]


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_maps_are_of_the_face_and_depend_on_it(name):
    "The network's own last layer alone would give a class token's network a map of nothing."
    detector = create_detector(f"timm/{name}", size=160).eval()
    torch.nn.init.normal_(detector.net.get_classifier().weight)
    faces = torch.rand(2, 3, 160, 160)
    maps = attention_maps(detector, detector.cam_layer(160), faces)
    assert maps.shape == (2, 160, 160) and (maps.flatten(1).amax(1) > 0.9).all()
    assert not torch.equal(maps[0], maps[1])


def test_statistics_and_sources_are_those_of_the_weights():
    clip = detector_facts("timm/vit_base_patch16_clip_224.openai").weights
    assert clip.source == "vit_base_patch16_clip_224.openai" and clip.size == 224
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert detector_facts("timm/convnext_tiny").weights.mean == (0.485, 0.456, 0.406)
    assert detector_options("timm/convnext_tiny") == dict(size=224, tuning="full", layer="")


BAD = [
    (
        dict(name="timm/convnext_tinny"),
        "timm has no network 'convnext_tinny'. Did you mean 'convnext_tiny'",
    ),
    (dict(name="timm/resnet18.no"), "timm has no weights 'resnet18.no'; it has resnet18"),
    (dict(name="timm/resnet18", width=0.5), "'timm/resnet18' has one size: use width=1, not 0.5"),
    (
        dict(name="timm/resnet18", tuning="half"),
        "tuning must be one of full, linear, lora, not 'half'",
    ),
    (
        dict(name="timm/resnet18", tuning="lora"),
        "no linear layer but the last one: use full or linear",
    ),
    (dict(name="timm/resnet18", layer="layer5"), "timm/resnet18 has no layer 'layer5'"),
    (dict(name="timm"), "unknown detector 'timm'.*timm/NAME is any network of timm"),
]


@pytest.mark.parametrize("call, says", BAD, ids=[says for _, says in BAD])
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says), torch.device("meta"):
        create_detector(**call)


def test_where_no_layer_is_certain_one_is_to_be_named():
    "Eight by eight patches of 64 channels each: either axis may be that of the tokens."
    with pytest.raises(ValueError, match="no layer of this network can be read.*layer="):
        create_detector("timm/test_vit", size=128)
    assert create_detector("timm/test_vit", size=128, layer="blocks.5").cam_layers == (
        "net.blocks.5",
    )


def test_another_layer_may_be_named():
    with torch.device("meta"):
        detector = create_detector("timm/resnet18", layer="layer3")
    assert detector.cam_name(128) == "net.layer3" and cam_grids(detector, 128) == {"net.layer3": 8}


def test_linear_tuning_leaves_the_network_as_it_is():
    detector = create_detector("timm/resnet18", tuning="linear").train()
    assert parameter_count(detector) == 512 + 1
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1.0)
    faces, label = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    detector.loss(detector.outputs(faces), dict(label=label)).backward()
    optimizer.step()
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"net.fc.weight", "net.fc.bias"}, "statistics of batch norms stay too"


def test_corrections_of_low_rank_are_trained_and_the_rest_stays():
    torch.manual_seed(0)
    plain = create_detector("timm/test_vit", size=160).eval()
    torch.manual_seed(0)
    detector = create_detector("timm/test_vit", size=160, tuning="lora").train()
    faces, label = torch.rand(2, 3, 160, 160), torch.tensor([0, 1])
    assert torch.equal(detector(faces), plain(faces)), "no correction at the start"
    linear = [m for m in plain.modules() if isinstance(m, torch.nn.Linear)]
    own = sum(RANK * (m.in_features + m.out_features) for m in linear if m.out_features > 1)
    assert parameter_count(detector) == own + 64 + 1
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the thin matrix on the right has no gradient while the left one is zero
        optimizer.zero_grad()
        detector.loss(detector.outputs(faces), dict(label=label)).backward()
        optimizer.step()
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert all(k.startswith("net.head.") or k.endswith((".up", ".down")) for k in changed)
    assert len(changed) == 2 + 2 * (len(linear) - 1)
    again = create_detector("timm/test_vit", size=160, tuning="lora").eval()
    again.load_state_dict(copy.deepcopy(detector).state_dict())
    assert torch.equal(again(faces), detector.eval()(faces))
    maps = attention_maps(again, again.cam_layer(160), faces)
    assert maps.shape == (2, 160, 160) and maps.any()


def test_weights_come_from_the_hubs_cache_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="the pretrained weights 'resnet18' could not be loaded"):
        create_detector("timm/resnet18", pretrained=True)
    entry = timm.get_pretrained_cfg("resnet18")
    kept = timm.create_model("resnet18", num_classes=entry.num_classes).state_dict()
    folder = tmp_path / f"models--{entry.hf_hub_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps(dict(architecture="resnet18")))
    save_file(kept, snapshot / "model.safetensors")
    detector = create_detector("timm/resnet18", pretrained=True)
    assert torch.equal(detector.net.conv1.weight, kept["conv1.weight"])
    assert detector.net.fc.weight.abs().max() < 0.1, "the last layer starts near zero"


def test_a_preset_takes_one_at_its_only_width(tmp_path):
    backbone = PRESETS["mini"].backbone("timm/resnet18")
    assert (backbone.width, backbone.pretrained) == (1.0, False)
    assert PRESETS["paper"].backbone("timm/resnet18").pretrained
    key = RunConfig("timm/resnet18", "DF").key()
    assert key["detector"] == "timm/resnet18" and "plugin" not in key


def test_it_is_trained_with_masks_of_its_own_maps(toy, tmp_path, monkeypatch):
    "The slash of its name stands in no file's name."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    data = write_square(toy, tmp_path / "square")
    lab = Lab("tiny", data, tmp_path / "out")
    name = "timm/test_resnet"
    run = lab.detector(name, "A", "primary", zoo=(name,), **PUBLISHED)
    assert run.path.name.startswith("timm-test_resnet-A-primary-")
    kinds = {Path(task).parts[0] for task in lab.store.names()}
    assert kinds == {"detectors", "maps", "fusions"}

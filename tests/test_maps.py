"""prle.lab.maps: quantile maps of faces from elsewhere."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_toy
from test_files import a_model

from prle import cli
from prle.core import rng
from prle.data.crops import read_quantiles, write_quantiles
from prle.data.manifest import read_manifest
from prle.data.pictures import CROPS
from prle.fusion import fuse
from prle.lab.configs import CamConfig
from prle.lab.engines import cluster
from prle.lab.explain import explain
from prle.lab.maps import ASKED, write_maps, write_maps_on_ray, crops_in


@pytest.fixture
def crops(tmp_path):
    "Five face crops in two folders, one of them twice as large."
    for k, name in enumerate(("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/large.png")):
        side = 128 if "large" in name else 64
        (tmp_path / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = rng("crops", k).integers(0, 60 + 40 * k, (side, side, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "crops" / name), picture)
    return tmp_path / "crops"


def read_all(folder):
    return {str(p.relative_to(folder)): read_quantiles(p) for p in sorted(folder.rglob("*.png"))}


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] == second[name]).all(), name


def test_a_map_is_what_explains_the_score(crops, tmp_path):
    model = a_model()
    told = list(write_maps(dict(m=model), [crops], tmp_path / "out", batch=2))
    made = read_all(tmp_path / "out")
    assert [why for _, why in told] == [""] * 5 and len(made) == 5
    face = cv2.cvtColor(cv2.imread(str(crops / "b/1.png")), cv2.COLOR_BGR2RGB)
    agree = (made["b/1.png"] > 0) == (explain(model, face).quantiles.numpy() > 0)
    assert agree.mean() > 0.98, "but for what is rounded"
    assert made["b/large.png"].shape == (128, 128) and made["a/1.png"].shape == (64, 64)


def test_several_detectors_are_fused(crops, tmp_path):
    models = dict(m=a_model(), n=a_model(96, seed=1))
    list(write_maps(models, [crops], tmp_path / "both"))
    heat = []
    for name, model in models.items():
        face = cv2.resize(
            cv2.cvtColor(cv2.imread(str(crops / "a/2.png")), cv2.COLOR_BGR2RGB),
            (model.crop["size"],) * 2,
            interpolation=cv2.INTER_AREA,
        )
        heat.append(cv2.resize(explain(model, face).heat, (64, 64)))
    fused = fuse(torch.from_numpy(np.stack(heat))[None], method="mean", tau=0.0, share=0.2)
    expected = write_quantiles(fused, [tmp_path / "e.png"])[0].numpy() > 0
    found = read_all(tmp_path / "both")["a/2.png"] > 0
    assert (expected == found).mean() > 0.9, "chance is 0.68"


def test_a_killed_command_goes_on_and_shards_are_all(crops, tmp_path):
    models, whole = dict(m=a_model()), tmp_path / "whole"
    list(write_maps(models, [crops], whole, batch=1))
    list(islice(write_maps(models, [crops], tmp_path / "killed", batch=1), 2))
    assert len(read_all(tmp_path / "killed")) in (2, 3)
    left = list(write_maps(models, [crops], tmp_path / "killed", batch=1))
    assert len(left) in (2, 3)
    for part in (1, 2):
        list(write_maps(models, [crops], tmp_path / "shards", (part, 2), batch=1, workers=part - 1))
    same(read_all(tmp_path / "killed"), read_all(whole))
    same(read_all(tmp_path / "shards"), read_all(whole))


def test_on_ray_the_maps_are_the_same(crops, tmp_path):
    "In two workers, of one shard of two, with a picture that is none; what is there is passed over."
    (crops / "b" / "torn.png").write_bytes(b"\x89PNG torn")
    models = dict(m=a_model())
    parts = {name: tmp_path / name for name in ("here", "there")}
    with cluster(num_cpus=2):
        told = list(write_maps_on_ray(models, [crops], parts["there"], (2, 2), batch=1))
    left = list(write_maps(models, [crops], parts["there"], (2, 2)))
    here = list(write_maps(models, [crops], parts["here"], (2, 2)))
    assert sorted(told) == sorted(here) and len(told) == 3
    assert ["cannot be read" in why for _, why in left] == [True]
    same(*map(read_all, parts.values()))
    with pytest.raises(ValueError, match="name another folder"):
        list(write_maps_on_ray(models, [crops], parts["here"], read=CamConfig()))


def test_a_detector_may_be_named_by_another_word(crops, tmp_path):
    "By its folder seen from elsewhere, for instance; its weights are the same."
    list(write_maps(dict(m=a_model()), [crops], tmp_path / "out"))
    assert list(write_maps({"../m": a_model()}, [crops], tmp_path / "out")) == []
    (tmp_path / "out" / ASKED).write_text("{}")
    with pytest.raises(ValueError, match="name another folder"):
        list(write_maps(dict(m=a_model()), [crops], tmp_path / "out"))


@pytest.mark.parametrize("changed", [dict(read=CamConfig()), dict(models=dict(m=a_model(seed=1)))])
def test_maps_of_two_settings_do_not_mix(crops, tmp_path, changed):
    given = dict(models=dict(m=a_model()), inputs=[crops], out=tmp_path / "out")
    list(write_maps(**given))
    with pytest.raises(ValueError, match="name another folder"):
        list(write_maps(**given | changed))


@pytest.fixture
def command(command, monkeypatch):
    monkeypatch.setattr(cli, "_open_model", lambda name, **options: a_model())
    return command


def test_localize_takes_crops_on_the_command_line(crops, tmp_path, command):
    (crops / "b" / "wide.png").write_bytes(cv2.imencode(".png", np.zeros((9, 20)))[1].tobytes())
    words = ("localize", "m", crops, "--out", tmp_path / "out")
    code, text, said = command(*words, "--shard", "1/2")
    assert (code, text) == (0, f"{tmp_path / 'out'}\n") and "3 maps written" in said
    code, _, said = command(*words)
    assert code == 1 and "20 x 9 pixels; face crops are square" in said
    assert "2 maps written, 1 pictures without one" in said and len(read_all(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    "words, message",
    [
        ("CROPS", "--out is missing: the folder of the maps"),
        ("CROPS --out OUT --shard 3/2", "such as 3/16"),
        ("CROPS --out OUT --engine ray --workers 2", "takes no --workers"),
        ("--engine ray --shard 1/2", "localize without inputs takes no --shard, --engine"),
        ("CROPS --out OUT --explain true", "reading of faces without labels"),
        ("ABSENT --out OUT", "no folder of pictures"),
        ("CROPS CROPS/../crops --out OUT", "two inputs have the same name"),
    ],
)
def test_wrong_words_are_one_line(crops, tmp_path, command, words, message):
    for name, value in dict(CROPS=crops, OUT=tmp_path / "out", ABSENT=tmp_path / "no").items():
        words = words.replace(name, str(value))
    code, text, said = command("localize", "m", *words.split())
    assert code == 2 and message in said and said.count("\n") == 1


def test_of_what_prle_faces_wrote_the_faces_get_maps_and_nothing_else(tmp_path, command):
    "Masks and pictures beside the crops are none, whether the folder is named or one above."
    folder = tmp_path / "all" / "faces"
    manifest = write_toy(folder, size=(64, 64), people=3, photos=1)
    (folder / CROPS).write_text("{}")
    for name in ("sheet.png", "masks/0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((64, 64, 3), np.uint8))
    faces = sorted(str(Path(path).with_suffix(".png")) for path in read_manifest(manifest).path)
    code, _, said = command("localize", "m", folder, "--out", tmp_path / "out")
    assert code == 0 and sorted(read_all(tmp_path / "out")) == faces
    found = [str(name) for _, name in crops_in([tmp_path / "all"])]
    assert sorted(found) == [f"faces/{name}" for name in faces]
    assert command("localize", "m", folder, "--out", tmp_path / "out")[0] == 0, "all are there"


def test_a_folder_without_pictures_is_told(tmp_path, command):
    (tmp_path / "empty").mkdir()
    code, text, said = command("localize", "m", tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 1 and text == "" and "no picture in" in said
    assert not (tmp_path / "out").exists()


def test_two_pictures_never_share_a_map(crops, tmp_path):
    (crops / "a" / "1.jpg").write_bytes((crops / "a" / "1.png").read_bytes())
    with pytest.raises(ValueError, match="differ by their suffix only"):
        list(write_maps(dict(m=a_model()), [crops], tmp_path / "out"))


def test_single_pictures_of_one_name_are_refused_and_maps_are_no_faces(crops, tmp_path):
    cv2.imwrite(str(tmp_path / "1.jpg"), cv2.imread(str(crops / "a/1.png")))
    with pytest.raises(ValueError, match="two inputs have the same name"):
        list(crops_in([tmp_path / "1.jpg", crops / "a/1.png"]))
    assert len(list(crops_in([crops / "a", crops / "b" / "large.png"]))) == 4
    before = [file for file, _ in crops_in([crops])]
    list(write_maps(dict(m=a_model()), [crops], crops / "maps", batch=2))
    assert [file for file, _ in crops_in([crops])] == before

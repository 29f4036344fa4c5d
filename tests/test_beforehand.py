"""What training, testing and localizing need of the data is known before the first step: classes, sizes, masks, points.

Of prle.lab: labdata, experiments, apply."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from prle.cli import main
from prle.data.manifest import read_manifest, write_manifest
from prle.lab import experiments
from prle.lab.configs import PRESETS
from prle.lab.experiments import Lab
from test_experiments import TINY, quiet_lab, write_square


@pytest.fixture
def faces(toy, tmp_path, monkeypatch):
    "The toy faces at 64 x 64 pixels, and a preset for faces of 128."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setitem(PRESETS, "larger", replace(TINY, size=128))
    return read_manifest(write_square(toy, tmp_path / "square"))


@pytest.fixture
def never(monkeypatch):
    "No training takes a step."

    def step(*args, **kwargs):
        raise AssertionError("a training has begun")

    monkeypatch.setattr(experiments, "train", step)
    monkeypatch.setattr(experiments, "predict", step)


def lab_of(rows, tmp_path, preset="tiny"):
    file = write_manifest(rows, tmp_path / "lists" / "manifest.parquet")
    return Lab(preset, data=file, outputs=tmp_path / "out")


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("label, what", [(0, "real"), (1, "fake")])
@pytest.mark.parametrize("dry", [False, True])
def test_both_classes_in_every_split(faces, tmp_path, never, split, label, what, dry):
    "Whether it is made or only planned; of the manipulations, that which is trained on counts in train and val."
    rows = faces[(faces.split != split) | (faces.label != label)]
    lab = lab_of(rows, tmp_path)
    lab = lab.dry() if dry else lab
    for mask in ("none", "primary"):
        with pytest.raises(ValueError, match=f"the split '{split}' has no {what} face"):
            lab.detector("Small", "A", mask)
    assert not (tmp_path / "out/runs/detectors").exists()


def test_the_size_of_the_data_decides(faces, tmp_path):
    "Plain training, a zoo and its masks on faces that are smaller than the preset's, and what would crop for it."
    lab = lab_of(faces, tmp_path, "larger")
    run = lab.detector("Small", "A", "primary", zoo=["Small"])
    assert lab.preset.size == 64
    assert next(lab.heat_maps(run, rows=[0])).shape == (1, 64, 64)
    plain = lab.detector("Small", "A")
    usual = Lab("tiny", data=lab.data, outputs=tmp_path / "other").dry().detector("Small", "A")
    assert plain.key == usual.key, "the name of a run is what it was"


@pytest.mark.parametrize("kind", ["train", "test", "mask"])
def test_a_face_or_mask_of_another_size_stops_it(faces, tmp_path, never, kind):
    rows = faces.copy()
    i = rows.index[(rows.split == ("test" if kind == "test" else "train")) & (rows.label == 1)][1]
    name = rows.path[i]
    if kind == "mask":
        name = "mask.png"
        rows.loc[i, "mask"] = name
    cv2.imwrite(f"{rows.attrs['root']}/{name}", np.zeros((64, 48, 3), np.uint8))
    lab = lab_of(rows, tmp_path)
    message = f"{name} is 48 x 64 pixels, where 64 x 64 are needed.*prle faces --size 64"
    for mask in ("none", "primary"):
        with pytest.raises(ValueError, match=message):
            lab.detector("Small", "A", mask)


def test_faces_that_are_not_square_are_named(toy, tmp_path, never, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    lab = lab_of(toy, tmp_path)
    with pytest.raises(ValueError, match="real/0_0.png is 32 x 24 pixels; faces are square"):
        lab.detector("Small", "A")


def test_masks_that_need_landmarks_need_them_at_once(faces, tmp_path, never):
    points = [
        np.full(136, np.nan, np.float32) if i == 4 else p for i, p in enumerate(faces.landmarks)
    ]
    lab = lab_of(faces.assign(landmarks=points), tmp_path)
    for mask in ("landmark", "landmark-matched"):
        with pytest.raises(
            ValueError, match=f"the mask {mask} needs landmarks, and 1 of .*{faces.path[4]}"
        ):
            lab.detector("Small", "A", mask)


def test_a_blind_zoo_needs_pairs_or_landmarks_at_once(faces, tmp_path, never):
    bare = faces.assign(landmarks=[np.full(136, np.nan, np.float32)] * len(faces))
    lab = lab_of(bare, tmp_path)
    with pytest.raises(ValueError, match="its map cannot be blind"):
        lab.detector("Small", "A", "primary", blind=True, zoo=["Small"])


def test_a_detector_that_learns_from_masks_needs_them_before_its_zoo_is_trained(
    faces, tmp_path, never
):
    lab = lab_of(faces, tmp_path)
    with pytest.raises(ValueError, match="fakes have no mask of their manipulated pixels"):
        lab.detector("ffd", "A", "primary", zoo=["Small"])


# Other data


@pytest.fixture
def trained(faces, tmp_path, capsys):
    lab = quiet_lab(tmp_path / "square", tmp_path / "out")
    run = lab.detector("Small", "A")

    def prle(*words):
        capsys.readouterr()
        code = main([*map(str, words), "--outputs", str(lab.outputs)])
        return (code, *capsys.readouterr())

    return run, prle


def test_evaluate_goes_to_the_data_that_are_named(faces, tmp_path, trained):
    "Data of the same faces with other labels give other numbers; the detector's own give those that it has."
    run, prle = trained
    code, own, _ = prle("evaluate", run.path)
    assert code == 0 and prle("evaluate", run.path, "--data", tmp_path / "square")[:2] == (0, own)
    moved = shutil.copytree(tmp_path / "square", tmp_path / "moved")
    assert prle("evaluate", run.path, "--data", moved)[:2] == (0, own)
    swapped = faces[faces.split == "test"].copy()
    swapped["subset"] = swapped.subset.map(dict(real="turned", A="real", B="other"))
    swapped["label"] = (swapped.subset != "real").astype(int)
    file = write_manifest(swapped, tmp_path / "lists/swapped.parquet")
    code, other, said = prle("evaluate", run.path, "--data", file)
    assert code == 0 and "turned" in other and "turned" not in own
    assert "other data than Small-A-none" in said
    scores = Lab("tiny", data=file, outputs=tmp_path / "out").target(run, "test")
    assert scores.reused and len(experiments.read_scores(scores)) == len(swapped)


def test_evaluate_on_what_is_not_there_is_an_error(faces, tmp_path, trained):
    run, prle = trained
    code, printed, said = prle("evaluate", run.path, "--data", tmp_path / "nowhere")
    assert code == 2 and printed == "" and f"no manifest at {tmp_path}/nowhere" in said


def test_evaluate_on_faces_of_another_size_stops(faces, tmp_path, trained, never):
    run, prle = trained
    for path in faces.path:
        target = tmp_path / "half" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.imread(f"{faces.attrs['root']}/{path}")
        cv2.imwrite(str(target), cv2.resize(image, (32, 32)))
    file = write_manifest(faces, tmp_path / "half/manifest.parquet", tmp_path / "half")
    code, printed, said = prle("evaluate", run.path, "--data", file)
    assert code == 2 and printed == ""
    assert (
        "knows faces of 64 pixels" in said
        and "have 32; crop them alike (prle faces --size 64)" in said
    )


def test_localize_refuses_other_data_and_faces_that_cannot_be_used(faces, tmp_path, trained):
    run, prle = trained
    code, _, said = prle("localize", run.path, "--data", tmp_path / "nowhere")
    assert code == 2 and "no manifest at" in said
    other = write_manifest(faces.iloc[::-1], tmp_path / "lists/other.parquet")
    code, _, said = prle("localize", run.path, "--data", other)
    assert code == 2 and "was trained on other data" in said


def test_what_is_forged_is_not_measured(faces, tmp_path):
    "Faces of one's own making have the size of the preset; no file is opened for it."
    lab = Lab("tiny", outputs=tmp_path / "out")
    lab.manifest = faces.assign(path="nowhere.png")
    assert lab.preset.size == 64
    lab.check_faces()

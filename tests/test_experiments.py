"""prle.experiments: configurations, the store, the graph."""
import json

import numpy as np
import pandas as pd
import pytest

from prle import experiments
from prle.core import read_json, write_json
from prle.experiments import (IDENTITY, PRESETS, Backbone, FusionConfig, Lab, Preset, RunConfig, RunStore, detector_run, fused_maps, fusion_run, load_detector, maps_run, scores,
                              statistics_run, train_faces)
from prle.trainer import predict
from prle.datasets import FaceDataset, select


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    "A lab on the toy faces, with two tiny backbones."
    tiny = Preset(64, 8, {"Small": Backbone("xception", 1 / 8), "Other": Backbone("vgg16", 1 / 8)}, dict(epochs=1, batch=4), grid=4, width=1 / 8)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    return Lab("tiny", data=write_square(toy, tmp_path / "square"), outputs=tmp_path / "out", say=lambda line: None)


def write_square(toy, folder):
    import cv2

    from prle.datasets import read_rgb, write_manifest
    for path in toy.path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / path), cv2.resize(read_rgb(f"{toy.attrs['root']}/{path}"), (64, 64)))
    return write_manifest(toy, folder / "manifest.parquet")


def test_unknown_names_stop_at_once(tmp_path):
    with pytest.raises(ValueError, match="unknown preset 'minni'.*Did you mean 'mini'"):
        Lab("minni")
    with pytest.raises(ValueError, match="unknown mask 'primry'.*'primary'"):
        RunConfig("xception", "DF", mask="primry")
    with pytest.raises(ValueError, match="unknown fusion 'neighbor'.*'neighbour'"):
        FusionConfig("neighbor")
    with pytest.raises(ValueError, match="unknown fill 'zeros'.*'zero'"):
        RunConfig("xception", "DF", mask="primary", fill="zeros")
    with pytest.raises(ValueError, match="'paper' needs the manifest of real data"):
        Lab("paper", outputs=tmp_path)


def test_unknown_backbones_and_manipulations_name_the_nearest(lab):
    with pytest.raises(ValueError, match="unknown backbone 'small'.*Did you mean 'Small'"):
        lab.config("small", "A")
    with pytest.raises(ValueError, match="unknown manipulation 'DF'"):
        lab.config("Small", "DF")


def test_any_registered_detector_trains_by_name(lab):
    "Table II: at the preset's width, built for the preset's faces where it has to be."
    for name, options in dict(cvit=dict(size=64), meso4=dict(size=64), rfm={}).items():
        run = detector_run(lab, name, "A")
        assert read_json(run.path / "config.json")["options"] == options
        assert np.isfinite(predict(load_detector(run), FaceDataset(select(lab.manifest, "test")))).all()
    b = PRESETS["paper"].backbone("srm")
    assert (b.width, b.pretrained) == (1.0, True) and not PRESETS["paper"].backbone("meso4").pretrained
    assert PRESETS["mini"].backbone("meso4").options == dict(momentum=0.1) and PRESETS["mini"].backbone("VGG").name == "vgg16_bn"


def test_the_store_makes_each_run_once_and_says_why(tmp_path):
    lines, made = [], []
    make = lambda tmp: (made.append(1), (tmp / "x").write_text("1"))
    store = RunStore(tmp_path, lines.append)
    first = store.get("kind", "a", dict(lr=1, p=2), make)
    assert store.get("kind", "a", dict(p=2, lr=1), make) == (first.path, first.key, True) and len(made) == 1
    store.get("kind", "a", dict(lr=1, p=3), make)
    assert lines[0].endswith("not made yet") and lines[1].endswith("differs from the nearest in p") and store.summary() == "2 runs: 0 reused, 2 made."
    again = RunStore(tmp_path, lines.append)
    again.get("kind", "a", dict(lr=1, p=2), make)
    assert lines[-1] == f"HIT  kind {first.path.name}" and again.summary() == "1 runs: 1 reused, 0 made."


def test_a_failed_run_leaves_nothing(tmp_path):
    store = RunStore(tmp_path, lambda line: None)

    def full_disk(tmp):
        (tmp / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        store.get("kind", "a", {}, full_disk)
    assert list((tmp_path / "kind").iterdir()) == [] and store.summary() == "0 runs: 0 reused, 0 made."


def test_runs_of_other_code_are_marked(tmp_path):
    lines = []
    store = RunStore(tmp_path, lines.append)
    run = store.get("kind", "a", {}, lambda tmp: None)
    assert store.names(other_code=True) == []
    write_json(run.path / "provenance.json", dict(code="other"))
    store = RunStore(tmp_path, lines.append)
    store.get("kind", "a", {}, lambda tmp: None)
    assert lines[-1].endswith("(made by other code)") and store.names(other_code=True) == [f"kind/{run.path.name}"]


def test_a_detector_run_is_whole_and_loads(lab):
    run = detector_run(lab, "Small", "A")
    assert {p.name for p in run.path.iterdir()} == {"config.json", "provenance.json", "model.safetensors", "history.parquet", "scores.parquet"}
    table, test = scores(run), select(lab.manifest, "test")
    assert table.path.tolist() == test.path.tolist() and table.p_fake.between(0, 1).all()
    assert np.allclose(predict(load_detector(run), FaceDataset(test)), table.p_fake, atol=1e-6)
    assert json.loads((run.path / "provenance.json").read_text())["code"] == lab.store.code


def test_primary_needs_the_zoo_and_shares_it(lab):
    run = detector_run(lab, "Small", "A", mask="primary")
    kinds = pd.Series([name.split("/")[0] for name in lab.store.names()]).value_counts().to_dict()
    assert kinds == dict(detectors=3, maps=2, fusions=1)
    detector_run(lab, "Other", "A", mask="primary")
    assert len(lab.store.names()) == 7, "one more training, nothing else"
    assert json.loads((run.path / "config.json").read_text())["quantiles"] == fusion_run(lab, "A").key


def test_keys_follow_what_a_run_depends_on(lab):
    variants = [dict(subset="A"), dict(subset="B"), dict(subset="A", seed=1), dict(subset="A", mask="random")]
    assert len({detector_run(lab, "Small", **v).key for v in variants}) == 4
    assert fusion_run(lab, "A").key != fusion_run(lab, "A", fusion=FusionConfig(lam=0.2)).key != fusion_run(lab, "A", zoo=("Small",)).key
    before = lab.fingerprint
    root = lab.manifest.attrs["root"]
    with open(f"{root}/{lab.manifest.path[0]}", "ab") as f:
        f.write(b"x")
    del lab.fingerprint
    assert lab.fingerprint != before


def test_same_configuration_same_scores_other_seed_other_scores(lab, tmp_path):
    other = Lab("tiny", data=lab._data, outputs=tmp_path / "elsewhere", say=lambda line: None)
    first, second, seed = detector_run(lab, "Small", "A", mask="random"), detector_run(other, "Small", "A", mask="random"), detector_run(lab, "Small", "A", mask="random", seed=1)
    assert first.key == second.key and first.path != second.path
    assert np.array_equal(scores(first).p_fake, scores(second).p_fake) and not np.array_equal(scores(first).p_fake, scores(seed).p_fake)


def test_maps_lie_on_the_grid_in_the_faces_order(lab):
    maps = np.load(maps_run(lab, "Small", "A").path / "maps.npy")
    assert len(maps) == len(train_faces(lab, "A")) and maps.shape[1] >= 4 and maps.dtype == np.float16


def test_statistics_are_those_of_the_maps(lab):
    run = statistics_run(lab, "A", zoo=("Small",))
    shares, counts = pd.read_parquet(run.path / "shares.parquet"), np.load(run.path / "histogram.npy")
    maps = np.concatenate([m.numpy() for m in fused_maps(lab, "A", fusion=IDENTITY, zoo=("Small",))])
    assert np.allclose(shares["above 0.3"], (maps > 0.3).mean((1, 2))) and np.allclose(shares["above 0"], (maps > 0).mean((1, 2)))
    assert counts.sum() == maps.size == len(shares) * 64 * 64
    some = next(fused_maps(lab, "A", fusion=IDENTITY, zoo=("Small",), rows=np.array([3, 1])))
    assert np.array_equal(some.numpy(), maps[[3, 1]])


def test_code_digest_changes_with_the_code(tmp_path, monkeypatch):
    before = experiments.code_digest()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(experiments.prle, "__file__", str(tmp_path / "__init__.py"))
    assert experiments.code_digest() != before

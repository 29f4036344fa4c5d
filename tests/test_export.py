"""prle.lab.export: a detector's folder, opened where nothing else is."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard

from conftest import write_toy
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest
from prle.lab.configs import PRESETS
from prle.lab.experiments import read_scores
from prle.lab.export import (
    CARD,
    FACTS,
    WEIGHTS,
    calibrate,
    export_detector,
    open_exported,
    validation_scores,
)
from prle.metrics import acc
from prle.trainer import predict
from test_experiments import TINY, quiet_lab, write_square


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A lab, a run of it, and the folder that it was exported to."
    place = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        toy = read_manifest(write_toy(place / "toy"))
        lab = quiet_lab(write_square(toy, place / "square"), place / "out")
        run = lab.detector("Small", "A")
        yield lab, run, export_detector(lab, run, place / "small-a")


@pytest.fixture
def lab(home):
    return home[0]


@pytest.fixture
def run(home):
    return home[1]


@pytest.fixture
def folder(home, tmp_path):
    "A copy of the folder alone."
    return shutil.copytree(home[2], tmp_path / "small-a")


def test_a_copy_scores_as_the_run_does(lab, run, folder):
    scores, model = read_scores(run), open_exported(folder)
    assert predict(model.detector, FaceDataset(lab.test_faces())) == pytest.approx(
        scores.p_fake, abs=1e-6
    )
    assert not model.detector.training and model.crop["size"] == lab.preset.size
    order = np.argsort(scores.p_fake, kind="stable")
    assert (np.diff(model.calibrated(scores.p_fake)[order]) >= 0).all()


def test_thresholds_are_those_of_the_validation_faces(lab, run, folder):
    scores, model = validation_scores(lab, run), open_exported(folder)
    faces = lab.train_faces("A", "val", 0)
    assert scores.path.tolist() == faces.path.tolist() and scores.split.eq("val").all()
    chosen, label = model.facts["calibration"], scores.label.to_numpy()
    assert chosen == calibrate(scores) and chosen["faces"] == len(scores)
    for strict, name in ((False, "threshold"), (True, "strict")):
        called = model.is_fake(scores.p_fake, strict)
        assert called[label == 1].mean() == pytest.approx(chosen[name]["tpr"])
        assert called[label == 0].mean() == pytest.approx(chosen[name]["fpr"])
    assert chosen["strict"]["fpr"] <= chosen["limit"]
    best = acc(
        label,
        model.calibrated(scores.p_fake),
        over="balanced",
        threshold=chosen["threshold"]["value"],
    )
    assert best >= acc(label, scores.p_fake, over="balanced")


def test_facts_and_card_say_the_same(lab, run, folder):
    facts = open_exported(folder).facts
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, FACTS, CARD}
    assert facts["trained"]["fingerprint"] == lab.fingerprint
    assert facts["trained"]["people"] == lab.train_faces("A").identity.nunique()
    card = ModelCard.load(folder / CARD)
    assert card.data.library_name == "prle" and card.data.license == "other"
    measured = {r.dataset_config: r.metric_value for r in card.data.eval_results}
    assert measured == {
        m["manipulation"]: pytest.approx(m["value"] / 100) for m in facts["measured"]
    }
    for words in (
        lab.fingerprint,
        "A score is no proof",
        f"{facts['calibration']['faces']} validation",
    ):
        assert words in card.text
    whole = [m for m in facts["measured"] if m["manipulation"] == "A"][0]
    assert f"| A | {whole['value']:.1f} [{whole['low']:.1f}, {whole['high']:.1f}] |" in card.text


def test_nothing_is_written_over(lab, run, folder):
    before = (folder / FACTS).read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        export_detector(lab, run, folder)
    assert (folder / FACTS).read_bytes() == before


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda f: (f / FACTS).unlink(), FileNotFoundError, "no exported detector"),
        (lambda f: (f / FACTS).write_text("{"), ValueError, FACTS),
        (lambda f: change(f, format=2), ValueError, "format 2; this version reads 1"),
        (lambda f: change(f, width="wide"), ValueError, "width"),
        (lambda f: change(f, width=0.25), ValueError, "does not fit"),
        (lambda f: (f / WEIGHTS).write_bytes(b"short"), ValueError, "no whole weights"),
        (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, WEIGHTS),
    ],
)
def test_what_is_damaged_is_named(folder, damage, error, message):
    damage(folder)
    with pytest.raises(error, match=message):
        open_exported(folder)


def change(folder, **entries):
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | entries))

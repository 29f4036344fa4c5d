"""prle.lab.export: a detector's folder, opened where nothing else is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hub_mixin

import prle
from conftest import write_toy
from prle.core import file_digest
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest
from prle.lab import export
from prle.lab.configs import PRESETS
from prle.lab.experiments import read_scores
from prle.lab.export import (
    CARD,
    FACTS,
    FAMILIAR,
    WEIGHTS,
    Exported,
    calibrate,
    export_detector,
    is_exported,
    open_exported,
    validation_scores,
)
from prle.lab.apply import evaluation
from prle.lab.labdata import LabData
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
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, FACTS, FAMILIAR, CARD}
    assert facts["trained"]["fingerprint"] == lab.fingerprint
    assert facts["trained"]["people"] == lab.train_faces("A").identity.nunique()
    card = ModelCard.load(folder / CARD)
    assert card.data.library_name == "prle" and card.data.license == "other"
    table = open_exported(folder).measured
    pd.testing.assert_frame_equal(table, evaluation(read_scores(run)).round(2))
    aucs = table[(table.unit == "frame") & (table.measure == "auc")].set_index("subset").value
    measured = {r.dataset_config: 100 * r.metric_value for r in card.data.eval_results}
    assert measured == pytest.approx(aucs.to_dict())
    for words in (
        lab.fingerprint,
        "A score is no proof",
        f"{facts['calibration']['faces']} validation",
    ):
        assert words in card.text
    whole = next(m for m in facts["measured"] if m["subset"] == "A" and m["measure"] == "auc")
    assert f"| A | {whole['value']:.1f} [{whole['low']:.1f}, {whole['high']:.1f}] |" in card.text


def test_nothing_is_written_over(lab, run, folder):
    before = (folder / FACTS).read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        export_detector(lab, run, folder)
    assert (folder / FACTS).read_bytes() == before


def test_a_place_where_nothing_can_be_written_stops_before_the_work(
    lab, run, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="cannot be written"):
        patch.setattr(export, "familiar_faces", None)
        export_detector(lab, run, tmp_path / "file" / "x")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export_detector(lab, run, ".") == Path(".")
    assert open_exported(tmp_path / "here").facts["name"] == "here"


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda f: (f / FACTS).unlink(), FileNotFoundError, "no exported detector.*prle export"),
        (lambda f: (f / FACTS).write_text("{"), ValueError, FACTS),
        (lambda f: change(f, format=2), ValueError, "format 2; this version reads 1"),
        (lambda f: change(f, width="wide"), ValueError, "width"),
        (lambda f: change(f, measured=[3]), ValueError, "config.json, measured"),
        (lambda f: change(f, crop={}), ValueError, "config.json, crop"),
        (lambda f: change(f, calibration=dict(temperature="1")), ValueError, "calibration"),
        (lambda f: change(f, detector="xeption"), ValueError, "Did you mean 'xception'"),
        (lambda f: change(f, options=dict(size=3)), ValueError, "config.json"),
        (lambda f: change(f, width=0.25), ValueError, "does not fit xception of width 0.25"),
        (lambda f: change(f, detector="vgg16"), ValueError, "does not fit vgg16"),
        (lambda f: (f / WEIGHTS).rename(f / "m.pth"), ValueError, "pickle can run code.*weights_"),
        (lambda f: (f / WEIGHTS).write_bytes(b"short"), ValueError, "no whole weights"),
        (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, WEIGHTS),
        (lambda f: (f / FAMILIAR).unlink(), FileNotFoundError, FAMILIAR),
        (lambda f: (f / FAMILIAR).write_bytes(b"short"), ValueError, f"{FAMILIAR} holds no whole"),
        (lambda f: shutil.copy(f / WEIGHTS, f / FAMILIAR), ValueError, "something else.*again"),
    ],
)
def test_what_is_damaged_is_named(folder, damage, error, message):
    damage(folder)
    with pytest.raises(error, match=message) as raised:
        open_exported(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def change(folder, **entries):
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | entries))


class Repo:
    "What the hub says of a repository."

    def __init__(self, repo_id):
        self.repo_id = repo_id


def test_a_run_is_exported_on_the_command_line(lab, run, folder, command, tmp_path):
    words = ["export", run.path, "--outputs", lab.outputs, "--licence", "mit"]
    words += ["--format", "torchscript"]
    out = tmp_path / "there/small"
    assert command(*words, "--out", out)[:2] == (0, f"{out}\n")
    there, here = open_exported(out).facts, open_exported(folder).facts
    assert there == here | dict(name="small", licence="mit", programs=["torchscript"])
    assert "`model.ts` (torchscript)" in (out / CARD).read_text()
    assert file_digest(out / WEIGHTS) == file_digest(folder / WEIGHTS)
    code, _, text = command(*words, "--out", out)
    assert code == 2 and text.count("\n") == 1 and "name a new folder" in text


def test_commands_take_the_folder_where_nothing_else_is(
    lab, run, folder, command, tmp_path, monkeypatch
):
    "Neither run nor training data nor lab; in a folder of its own."
    scores, maps = read_scores(run), lab.attention(run, "test").path / "maps.npy"
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(LabData, "__init__", None)
    code, text, _ = command("evaluate", "small-a")
    assert (
        code == 0
        and text == evaluation(scores).round(2).to_string(index=False, float_format="%.1f") + "\n"
    )
    code, again, said = command("evaluate", "small-a", "--data", lab.data)
    assert code == 0 and again == text and "NOTE" not in said
    code, where, _ = command("localize", "small-a", "--data", lab.data, "--out", "m/maps.npy")
    assert code == 0 and where == "m/maps.npy\n"
    assert np.load("m/maps.npy") == pytest.approx(np.load(maps), abs=2e-3)
    face = lab.test_faces().path.iloc[0]
    picture = f"{lab.manifest.attrs['root']}/{face}"
    assert command("predict", "small-a", picture, "--cropped", "--csv", "p.csv")[0] == 0
    p_fake = scores.set_index("path").p_fake[face]
    assert pd.read_csv("p.csv").p_fake.tolist() == pytest.approx([p_fake], abs=1e-6)


def test_other_data_are_named_as_such(lab, folder, command, tmp_path):
    write_toy(tmp_path / "wrong")
    code, _, text = command("evaluate", folder, "--data", tmp_path / "wrong")
    assert code == 2 and "pixels" in text
    other = write_square(read_manifest(write_toy(tmp_path / "toy", bright=30)), tmp_path / "other")
    code, _, text = command("evaluate", folder, "--data", other)
    assert code == 0 and "whether it has seen these people is not known" in text


@pytest.mark.parametrize(
    "words, message",
    [
        ("evaluate small-a --on DFDC", "--data is missing"),
        ("evaluate small-a --on DFDC --data DATA", "unknown test or target set 'DFDC'"),
        ("evaluate small-a --on train --data DATA", "unknown test or target set 'train'"),
        ("evaluate small-a --maps --on val --data DATA", "unknown test or target set 'val'"),
        ("localize small-a --out maps.npy", "--data is missing"),
        ("localize small-a --data DATA", "--out is missing"),
        ("predict small-a a.png --data DATA", "an exported detector takes no --data"),
        ("predict small-a/README.md a.png", "neither a run nor an exported detector"),
        ("predict EMPTY a.png", "neither a run nor an exported detector"),
        ("localize RUN --out maps.npy", "a run, which keeps its maps in the outputs, takes no"),
    ],
)
def test_wrong_words_are_one_line(lab, run, folder, command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, value in dict(DATA=lab.data, RUN=run.path, EMPTY="empty").items():
        words = words.replace(name, str(value))
    code, out, text = command(*words.split(), "--outputs", lab.outputs)
    assert code == 2 and out == "" and message in text and text.count("\n") == 1


def test_a_run_is_no_exported_folder(run, folder):
    assert is_exported(folder) and not is_exported(run.path)


def test_the_package_opens_it_without_importing_what_it_does_not_need(folder):
    code = (
        "import sys, prle, prle.masking; assert not {'pandas', 'timm', 'scipy'} & set(sys.modules);"
        f"print(prle.load_detector({str(folder)!r}, 'cpu').facts['name'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "small-a\n"
    assert prle.load_detector(folder).facts == open_exported(folder).facts


def test_the_hub_s_functions_write_and_read_the_same(folder, tmp_path, monkeypatch):
    "A repository is a folder here: what would be sent there is copied, and read from there."
    model, sent = open_exported(folder), tmp_path / "hub"

    def upload_folder(self, folder_path, **options):
        shutil.copytree(folder_path, sent)
        return "there"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: Repo(repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert model.push_to_hub("somebody/small-a") == "there"
    assert {p.name: file_digest(p) for p in sent.iterdir()} == {
        p.name: file_digest(p) for p in folder.iterdir()
    }
    monkeypatch.setattr(export, "snapshot_download", lambda name, **options: sent)
    monkeypatch.setattr(
        hub_mixin, "hf_hub_download", lambda repo_id, filename, **options: sent / filename
    )
    for there in (sent, "somebody/small-a"):
        again = Exported.from_pretrained(there, device="cpu")
        assert again.facts == model.facts and not again.detector.training
        face = torch.rand(2, 3, 64, 64)
        assert torch.equal(again.detector(face), model.detector(face))

"""prle.lab.files and prle.lab.explain: scores of pictures and videos, with what stands beside them."""

import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from prle import cli
from prle.core import rng
from prle.detectors import create_detector
from prle.lab import files
from prle.lab.explain import SHOWN_ALPHAS, explain
from prle.lab.export import Exported
from prle.lab.files import SCORE_COLUMNS, Journal, predict_files, score_files
from prle.trainer import to_input


def a_model(size=64, calibrated=True, seed=0):
    "A detector of random weights, as an exported folder would give it."
    torch.manual_seed(seed)
    detector = create_detector("xception", width=1 / 8).eval()
    crop = dict(size=size, align="similarity", scale=1.3)
    facts = dict(name=f"made-up-{seed}", crop=crop, grid=4)
    if calibrated:
        chosen = dict(value=0.48, tpr=1.0, fpr=0.0)
        facts["calibration"] = dict(temperature=2.0, threshold=chosen, strict=chosen)
    return Exported(detector, facts)


@pytest.fixture
def album(tmp_path):
    "Three pictures, and a film of four frames in a folder."
    for k, name in enumerate(["a.png", "b.png", "c.png", *(f"film/{k}.png" for k in range(4))]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture = rng("album", k).integers(0, 40 + 30 * k, (64, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / name), picture)
    return tmp_path


def frame_scores(model, *paths):
    faces = np.stack([cv2.imread(str(path))[..., ::-1] for path in paths])
    logit = model.detector(to_input(torch.from_numpy(faces).permute(0, 3, 1, 2), "cpu"))
    return logit.double().sigmoid().detach().numpy()


WHOLE = dict(cropped=True, kind="frames")


def test_threshold_and_calibration_stand_beside_the_score(album):
    model, frames = a_model(), sorted((album / "film").iterdir())
    p_fake = frame_scores(model, *frames)
    calibrated = 1 / (1 + ((1 - p_fake) / p_fake) ** 0.5)
    middle = float(np.median(calibrated))
    model.facts["calibration"]["threshold"]["value"] = middle
    film, photo, lost = predict_files(
        dict(m=model), [album / "film", album / "a.png", album / "d.png"], **WHOLE
    ).to_dict("records")
    assert film["p_fake"] == pytest.approx(p_fake.mean(), abs=1e-6)
    assert film["calibrated"] == pytest.approx(calibrated.mean(), abs=1e-6)
    assert (film["threshold"], film["above"], film["faces"]) == (middle, 0.5, 4)
    assert photo["above"] == float(photo["calibrated"] > middle) and photo["frames"] == 1
    assert np.isnan([lost[name] for name in ("p_fake", "calibrated", "above")]).all()
    (plain,) = predict_files(dict(m=a_model(calibrated=False)), [album / "film"], **WHOLE).to_dict(
        "records"
    )
    assert plain["p_fake"] == film["p_fake"] and np.isnan(plain["calibrated"])


def test_several_detectors_see_what_each_would_see_alone(album):
    models = dict(small=a_model(), large=a_model(size=96, seed=1))
    inputs = [album / "film", album / "a.png", album / "absent.png"]
    table = predict_files(models, inputs, **WHOLE)
    assert table.detector.tolist() == ["small", "large"] * 3
    for name, model in models.items():
        alone = predict_files({name: model}, inputs, **WHOLE)
        both = table[table.detector == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(both, alone)
    assert table.p_fake.nunique() == 4


def killed_after(monkeypatch, n):
    "Let the process end when it has cropped n faces; return the list that counts them."
    real, seen = files.crop_detected, []

    def crop(*args):
        if len(seen) == n:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args)

    monkeypatch.setattr(files, "crop_detected", crop)
    return seen


def test_a_table_goes_on_where_it_was_killed(album, monkeypatch):
    models = dict(m=a_model(), n=a_model(seed=1))
    inputs, out = [album / f"{name}.png" for name in "abc"], album / "p.csv"
    whole = score_files(models, inputs, csv=album / "whole.csv", **WHOLE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(patch, 4)
        score_files(models, inputs, csv=out, **WHOLE)
    assert pd.read_csv(out).file.tolist() == whole.file.tolist()[:4], "written as it goes"
    journal = album / "p.csv.unfinished"
    journal.write_text(journal.read_text() + '["c.png", [{"torn')
    with monkeypatch.context() as patch:
        seen = killed_after(patch, 99)
        table = score_files(models, inputs, csv=out, **WHOLE)
        assert len(seen) == 2, "one picture, two detectors"
        pd.testing.assert_frame_equal(table, whole)
        assert out.read_text() == (album / "whole.csv").read_text() and not journal.exists()
        score_files(models, inputs, csv=out, **WHOLE)
        assert len(seen) == 8, "what is finished is scored anew"


def test_another_request_takes_nothing_over(album, monkeypatch):
    inputs = [album / "a.png", album / "b.png"]
    for changed in (dict(models=dict(m=a_model(seed=1))), dict(count=3), dict(inputs=inputs[::-1])):
        given = dict(models=dict(m=a_model()), inputs=inputs, count=2) | WHOLE
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            killed_after(patch, 1)
            score_files(csv=album / "p.csv", **given)
        with monkeypatch.context() as patch:
            seen = killed_after(patch, 99)
            score_files(csv=album / "p.csv", **given | changed)
            assert len(seen) == 2


def test_a_journal_that_is_none_is_named_or_begun_anew(album):
    beside = album / "p.csv"
    journal = Journal(beside, {})
    journal.path.write_text(f"{journal.request}\nno json\n")
    with pytest.raises(ValueError, match="p.csv.unfinished is not valid JSON"):
        Journal(beside, {})
    journal.path.write_bytes(b"\xff\n")
    assert Journal(beside, {}).rows == {}


def test_json_and_page_say_what_the_table_says(album):
    (odd := album / "<i>.png").write_bytes((album / "a.png").read_bytes())
    inputs = [odd, album / "film", album / "absent.png"]
    out = {name: str(album / name) for name in ("p.json", "p.html", "why")}
    table = score_files(
        dict(m=a_model()),
        inputs,
        json=out["p.json"],
        report=out["p.html"],
        explain=out["why"],
        **WHOLE,
    )
    rows = json.loads((album / "p.json").read_text())
    assert list(rows[0]) == sorted(SCORE_COLUMNS) and rows[2]["p_fake"] is None
    assert [row["p_fake"] for row in rows[:2]] == table.p_fake.tolist()[:2]
    page = (album / "p.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 2
    assert "<i>" not in page and "&lt;i&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
    for path in table.picture[:2]:
        assert cv2.imread(path).shape[1] > 3 * cv2.imread(path).shape[0]
    assert table.picture[2] == "" and not list(album.glob("*.unfinished"))


def test_an_explanation_masks_what_is_most_attended(album):
    model, face = a_model(), cv2.imread(str(album / "a.png"))
    found = explain(model, face)
    regions = [found.region(alpha) for alpha in SHOWN_ALPHAS]
    assert regions[-1].mean() == pytest.approx(0.2, abs=0.01)
    for inner, outer in zip(regions, regions[1:]):
        assert (inner <= outer).all() and inner.sum() < outer.sum()
    assert found.heat[regions[-1]].min() >= found.heat[~regions[-1]].max()
    masked = found.masked(1.0)
    assert (masked[regions[-1]] == 0).all()
    assert (masked[~regions[-1]] == face[~regions[-1]]).all()


@pytest.fixture
def command(monkeypatch, capsys):
    "Words -> (exit code, what the command printed, what it complained); detectors by their names."
    made = dict(small=a_model(), large=a_model(96, seed=1), run=a_model(calibrated=False))
    monkeypatch.setattr(cli, "_open_model", lambda name, **options: made[name])

    def run(*words):
        capsys.readouterr()
        return (cli.main([str(word) for word in words]), *capsys.readouterr())

    return run


def test_predict_prints_what_there_is_to_say(album, command):
    words = ("--cropped", album / "a.png", album / "film")
    code, text, said = command("predict", "run", *words)
    head = text.split("\n")[0].split()
    assert code == 0 and head == "file people person frames faces p_fake note".split()
    assert "2 files: 2 scored, 0 without a score" in said
    code, text, said = command("predict", "small", *words, "--also", "large", "--also", "run")
    assert {"detector", "calibrated", "threshold", "above"} < set(text.split("\n")[0].split())
    assert code == 0 and len(text.splitlines()) == 7 and "2 files: 2 scored" in said
    code, _, said = command("predict", "small", *words, "--explain", album / "a.png" / "why")
    assert code == 2 and "cannot be written" in said and said.count("\n") == 1


def test_a_full_device_is_one_line(album, command, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr(files, "to_input", full)
    code, text, said = command("predict", "small", "--cropped", album / "a.png")
    assert code == 1 and text == "" and said.count("\n") == 1
    assert said.startswith("prle: too little memory on the device for faces=32")

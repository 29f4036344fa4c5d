"""prle.lab.files and prle.lab.explain: scores of pictures and videos, with what stands beside them."""

import json
import re
import time
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from clips import write_frames

from prle import cli
from prle.core import rng
from prle.detectors import create_detector
from prle.distance import fit_familiar, picture_properties, pooled_features
from prle.lab import files
from prle.lab.explain import SHOWN_ALPHAS, explain
from prle.lab.export import Exported
from prle.lab.files import (
    SCORE_COLUMNS,
    Journal,
    cropped_files,
    draw_curve,
    predict_files,
    predict_rows,
    score_files,
)
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
    assert list(rows[0]) == sorted([*SCORE_COLUMNS, "curve"]) and rows[2]["p_fake"] is None
    assert [row["p_fake"] for row in rows[:2]] == table.p_fake.tolist()[:2]
    page = (album / "p.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 3
    assert page.count('alt="score over time') == 1, "of the film alone"
    assert "<i>" not in page and "&lt;i&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
    for path in table.picture[:2]:
        assert cv2.imread(path).shape[1] > 3 * cv2.imread(path).shape[0]
    assert table.picture[2] == "" and not list(album.glob("*.unfinished"))


def test_a_page_holds_what_decided_without_a_folder_for_it(album, monkeypatch):
    "And leaves nothing beside it, also where the first process was killed."
    monkeypatch.setattr(files, "_MOST_PICTURES", 2)
    page, table = album / "p.html", album / "p.csv"
    inputs = [album / name for name in ("a.png", "b.png", "c.png", "film")]
    before = {*album.iterdir()}
    rows = dict(report=str(page), csv=str(table), **WHOLE)
    with monkeypatch.context() as dies:
        dies.setattr(files, "write_page", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            score_files(dict(m=a_model()), inputs, **rows)
    told = score_files(dict(m=a_model()), inputs, **rows)
    assert page.read_text().count('alt="what was looked at: ') == 2
    assert page.read_text().count('alt="score over time') == 1
    assert {*album.iterdir()} == {*before, page, table}
    assert (told.picture == "").all() and pd.read_csv(table).picture.isna().all()


def test_only_the_page_s_own_pictures_are_deleted(album):
    "Whatever a journal says, and whatever else lies in their folder."
    page = str(album / "p.html")
    (folder := files._passing(page)).mkdir()
    own, other = folder / "own.png", folder / "mine.txt"
    for path in (own, other):
        path.touch()
    rows = [dict(picture=str(path)) for path in (own, album / "a.png", "", folder / "../b.png")]
    files._forget(rows, folder)
    assert not own.exists() and other.exists()
    assert (album / "a.png").exists() and (album / "b.png").exists()


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
def command(command, monkeypatch):
    "As everywhere, with these detectors by their names."
    made = dict(small=a_model(), large=a_model(96, seed=1), run=a_model(calibrated=False))
    monkeypatch.setattr(cli, "_open_model", lambda name, **options: made[name])
    return command


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

    monkeypatch.setattr(Exported, "score", full)
    code, text, said = command("predict", "small", "--cropped", album / "a.png")
    assert code == 1 and text == "" and said.count("\n") == 1
    assert said.startswith("prle: too little memory on the device for faces=32")


def knowing(model, faces):
    "The same detector, with these grey faces as those of its training."
    size = model.crop["size"]
    x = to_input(torch.from_numpy(faces).permute(0, 3, 1, 2), "cpu")
    layer = model.detector.cam_layer(size, model.facts["grid"])
    features = pooled_features(model.detector, layer, x)[1].numpy()
    properties = np.stack([*map(picture_properties, faces)])
    familiar = fit_familiar(features, range(len(faces)), features, properties)
    return Exported(model.detector, model.facts, familiar)


def test_faces_unlike_the_training_are_marked_everywhere(album):
    grey = rng("grey").integers(0, 100, (30, 64, 64, 1), np.uint8).repeat(3, -1)
    model, plain = knowing(a_model(), grey), a_model()
    cv2.imwrite(str(album / "own.png"), grey[0])
    cv2.imwrite(str(album / "red.png"), (grey[0] * [0.2, 0.5, 1]).astype(np.uint8))
    inputs = [album / "own.png", album / "red.png"]
    out = dict(csv=album / "u.csv", json=album / "u.json", report=album / "u.html")
    table = score_files(dict(m=model), inputs, **out, **WHOLE)
    assert table.unlike[0] == "" and "colour" in table.unlike[1].split(", ")
    assert table.p_fake.tolist() == pytest.approx(
        predict_files(dict(m=plain), inputs, **WHOLE).p_fake.tolist(), abs=1e-7
    )
    assert pd.read_csv(out["csv"]).unlike.fillna("").tolist() == table.unlike.tolist()
    assert [row["unlike"] for row in json.loads(out["json"].read_text())] == table.unlike.tolist()
    assert f"<td>{table.unlike[1]}</td>" in out["report"].read_text()


def test_a_video_s_scores_stand_at_their_seconds(album):
    frames = [rng("clip", k).integers(0, 30 * k + 20, (64, 64, 3), np.uint8) for k in range(6)]
    clip, model = write_frames(album / "clip.mp4", frames, (64, 64), fps=10), a_model()
    film, video, photo = (
        rows[0]
        for rows in predict_rows(
            dict(m=model), [album / "film", clip, album / "a.png"], count=3, **WHOLE
        )
    )
    assert video["curve"]["unit"] == "seconds" and photo["curve"] == {}
    assert video["curve"]["times"] == pytest.approx([0, 0.2, 0.5])
    assert (film["curve"]["unit"], film["curve"]["times"]) == ("frame", [0, 1, 3])
    for row in (film, video):
        scores = np.array(row["curve"]["scores"])
        assert scores.mean() == pytest.approx(row["calibrated"], abs=1e-5)
        assert (scores > row["threshold"]).mean() == row["above"]
    middle = float(np.median(video["curve"]["scores"]))
    figure = draw_curve(video | dict(threshold=middle, above=1 / 3))
    curve, line, above = figure.axes[0].lines
    assert set(line.get_ydata()) == {middle} and len(above.get_ydata()) == 1
    assert curve.get_xdata().tolist() == video["curve"]["times"]
    assert "33% of the frames" in figure.axes[0].get_title()


def test_rows_are_the_same_whatever_the_number_of_processes(album, tmp_path):
    inputs = [album / name for name in ("film", "a.png", "absent.png", "b.png", "torn.mp4")]
    (album / "torn.mp4").write_bytes(b"no video")
    alone, shared = (
        list(predict_rows(dict(m=a_model()), inputs, workers=n, **WHOLE)) for n in (0, 1)
    )
    assert str(alone) == str(shared) and [bool(rows[0]["note"]) for rows in alone] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_file_that_kills_its_process_costs_no_other():
    files = ["1 + 1", "__import__('os')._exit(3)", "3 * 3", "4 * 4"]
    (_, two), (_, dead), (_, nine), (_, last) = cropped_files(files, eval, workers=1)
    assert (two, nine, last) == (2, 9, 16) and "died, twice" in str(dead)


def test_a_process_that_dies_while_others_are_scored_costs_no_file_either():
    "The pool is broken by the time that the next file is handed to it."
    files = ["1 + 1", "__import__('os')._exit(3)", "3 * 3", "4 * 4", "5 * 5"]
    found = []
    for _, one in cropped_files(files, eval, workers=1):
        time.sleep(0.3)
        found.append(one)
    assert found[::2] == [2, 9, 25] and found[3] == 16 and "died, twice" in str(found[1])


def test_no_more_than_a_few_files_wait():
    asked = []

    def files():
        for k in range(50):
            asked.append(k)
            yield str(k)

    for k, (_, found) in enumerate(cropped_files(files(), eval, workers=1)):
        assert found == k and len(asked) <= k + 4


@pytest.mark.parametrize(
    "make, note",
    [
        (
            lambda p: write_frames(p / "v.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 3, (96, 96)),
            "no face",
        ),
        (lambda p: huge(p / "huge.png"), "far too large"),
        (lambda p: torn(p / "torn.png"), "damaged"),
    ],
)
def test_what_gives_no_score_says_why_in_a_line(tmp_path, command, make, note):
    code, text, said = command("predict", "small", make(tmp_path))
    assert code == 1 and note in text and len(text.splitlines()) == 2
    assert "1 files: 0 scored, 1 without a score" in said


def huge(path):
    "A small file that promises 400 million pixels."
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = (20_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    path.write_bytes(content)
    return path


def torn(path):
    "A picture whose second half is missing."
    cv2.imwrite(str(path), rng("torn").integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:6000])
    return path

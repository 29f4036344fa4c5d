"""prle.data.degradations and prle.lab.robustness: what each level does to a face, and the AUC that is left."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from conftest import write_toy
from prle import cli
from prle.core import rng
from prle.data.crops import read_rgb
from prle.data.degradations import DEGRADATIONS, degrade, shrink_and_enlarge, usable
from prle.data.distortions import distort_frame
from prle.data.manifest import read_manifest, select
from prle.lab import robustness as module
from prle.lab.configs import PRESETS
from prle.lab.export import export_detector
from prle.lab.robustness import CLEAN, by_level, draw_robustness, robustness
from prle.lab.subjects import Subject, open_subject
from prle.metrics import compare
from test_experiments import TINY, quiet_lab, write_square


@pytest.fixture(scope="module")
def face():
    "Colours and edges: a soft picture with stripes."
    soft = cv2.resize(rng("face").integers(0, 256, (8, 8, 3), np.uint8), (72, 64))
    soft[:, ::8] //= 2
    return soft


@pytest.mark.parametrize("name", usable(64))
def test_higher_levels_leave_less_of_the_face(face, name):
    copies = [degrade(face, name, level, rng("level")) for level in range(1, 6)]
    assert all(copy.shape == face.shape and copy.dtype == np.uint8 for copy in copies)
    likeness = [cv2.PSNR(face, copy) for copy in copies]
    assert likeness == sorted(likeness, reverse=True) and likeness[0] > likeness[-1] + 2
    again = degrade(face, name, 5, rng("level"))
    assert np.array_equal(again, copies[-1])


def test_the_distortions_of_frames_are_those_of_videos(face):
    for code in ("CS", "CC", "GNC", "GB", "JPEG"):
        expected = distort_frame(face, f"{code}:3", rng("same"))
        assert np.array_equal(degrade(face, code, 3, rng("same")), expected)


def test_blocks_need_a_face_of_256_pixels():
    large = np.zeros((256, 256, 3), np.uint8)
    assert "BW" in usable(256) and "BW" not in usable(255)
    assert (degrade(large, "BW", 1, rng("blocks")) == 128).any()


def test_odd_sizes_keep_their_colours_through_a_codec():
    red = np.zeros((33, 35, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(degrade(red, "h264", 1, rng()).astype(int) - red).max() < 12
    assert np.abs(degrade(red, "jpeg", 1, rng()).astype(int) - red).max() < 12


def test_shrinking_averages():
    grid = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    assert np.abs(shrink_and_enlarge(grid.astype(np.uint8), 0.5).astype(int) - 128).max() <= 1


class Stripes(nn.Module):
    "Tells the stripes of B by the differences of neighbouring rows, and A by nothing."

    def forward(self, x):
        return 40 * (x[..., 1:, :] - x[..., :-1, :]).abs().mean((1, 2, 3)) - 10


class Brightness(nn.Module):
    def forward(self, x):
        return 8 * x.mean((1, 2, 3)) - 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    "Test faces of 24 people: noise, brighter noise, stripes."
    path = write_toy(tmp_path_factory.mktemp("robust"), (64, 64), people=24)
    return select(read_manifest(path), "test")


@pytest.fixture
def subjects(rows):
    return [
        Subject("stripes", Stripes(), "1", rows),
        Subject("brightness", Brightness(), "2", rows),
    ]


def test_the_table_holds_the_aucs_of_what_was_made_worse(subjects, rows, tmp_path):
    table = robustness(subjects, tmp_path, ["blur", "noise"], n=50).set_index(
        ["detector", "degradation", "level"]
    )
    worse = np.stack(
        [
            degrade(
                read_rgb(f"{rows.attrs['root']}/{path}"), "blur", 4, rng("degradation", "blur", i)
            )
            for i, path in enumerate(rows.path)
        ]
    )
    images = torch.from_numpy(worse).permute(0, 3, 1, 2) / 255
    for subject in subjects:
        expected = 100 * roc_auc_score(rows.label, subject.detector(images))
        assert table.value[subject.name, "blur", 4] == pytest.approx(expected)
    clean, last = (table.loc["brightness", name, k] for name, k in ((CLEAN, 0), ("noise", 5)))
    assert clean.low <= clean.value <= clean.high and np.isnan(
        table.loc["stripes", CLEAN, 0].difference
    )
    assert len(table) == 2 * 11 and last.parameter == DEGRADATIONS["noise"].parameters[4]


def test_differences_are_paired(subjects, tmp_path):
    table = robustness(subjects, tmp_path, ["jpeg"], n=50)
    for level in (0, 3):
        name = "jpeg" if level else CLEAN
        tables = [module.degraded_scores(s, name, level, tmp_path) for s in subjects]
        expected = compare(*tables, ["auc"], n=50).iloc[0]
        row = table[(table.level == level) & (table.detector == "brightness")].iloc[0]
        assert row.difference == pytest.approx(100 * expected.difference)
        assert row.difference_low == pytest.approx(100 * expected.low)
        assert row.difference_high == pytest.approx(100 * expected.high)


def test_detectors_of_one_name_are_two(subjects, tmp_path):
    "Two exported folders whose last parts are equal."
    apart = robustness(subjects, tmp_path / "apart", ["jpeg"], n=10)
    alike = [replace(subject, name="model") for subject in subjects]
    table = robustness([*alike, alike[0]], tmp_path / "alike", ["jpeg"], n=10)
    assert list(table.detector.unique()) == ["model", "model (2)", "model (3)"]
    second = table[table.detector == "model (2)"]
    assert second.value.tolist() == apart.value[apart.detector == "brightness"].tolist()
    assert len(by_level(table)) == 3


def test_a_second_call_scores_what_is_missing_alone(subjects, tmp_path, monkeypatch):
    first = robustness(subjects, tmp_path, ["jpeg"], n=10)
    lost = sorted(tmp_path.glob("stripes-jpeg-2-*"))
    lost[0].unlink()
    asked, predict = [], module.predict
    monkeypatch.setattr(
        module, "predict", lambda net, *a, **k: asked.append(type(net)) or predict(net, *a, **k)
    )
    assert robustness(subjects, tmp_path, ["jpeg"], n=10).equals(first)
    assert asked == [Stripes] and len(list(tmp_path.iterdir())) == 12


def test_other_weights_are_scored_anew(subjects, rows, tmp_path):
    robustness(subjects[:1], tmp_path, ["jpeg"], n=10)
    other = Subject("stripes", Brightness(), "3", rows)
    found = robustness([other], tmp_path, ["jpeg"], n=10)
    assert found.value.iloc[0] == robustness(subjects[1:], tmp_path, ["jpeg"], n=10).value.iloc[0]


def test_unknown_and_idle_degradations_are_refused(subjects, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'jpeg'"):
        robustness(subjects, tmp_path, ["jpg"])
    with pytest.raises(ValueError, match="unknown degradation 'BW'"):
        robustness(subjects, tmp_path, ["BW"])


def test_detectors_of_other_faces_are_not_compared(subjects, rows, tmp_path):
    fewer = rows.iloc[:-3]
    fewer.attrs = rows.attrs
    with pytest.raises(ValueError, match="score the same faces with both"):
        robustness([subjects[0], Subject("b", Brightness(), "2", fewer)], tmp_path, ["jpeg"], n=10)


def test_levels_stand_side_by_side_and_in_panels(subjects, tmp_path):
    table = robustness(subjects, tmp_path, ["jpeg", "blur"], n=10)
    wide, figure = by_level(table), draw_robustness(table)
    assert wide.columns.tolist() == ["detector", "degradation", 0, 1, 2, 3, 4, 5] and len(wide) == 4
    cell = wide.set_index(["detector", "degradation"]).loc[("stripes", "blur"), 5]
    part = table[(table.detector == "stripes") & (table.degradation == "blur")]
    assert cell == part.value.iloc[-1]
    lines = figure.axes[1].get_lines()
    assert [line.get_label() for line in lines] == ["stripes", "brightness"]
    assert lines[0].get_ydata()[1:].tolist() == part.value.tolist()


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    return quiet_lab(write_square(toy, tmp_path / "square"), tmp_path / "out")


def test_a_run_and_an_exported_folder_are_the_same_subject(lab, tmp_path, capsys):
    run = lab.detector("Small", "A")
    out = export_detector(lab, run, tmp_path / "small-a")
    ours, theirs = open_subject(run.path, outputs=lab.outputs), open_subject(out, lab.data)
    assert ours.rows.path.tolist() == theirs.rows.path.tolist() == lab.test_faces().path.tolist()
    words = [
        "evaluate",
        run.path.name,
        "--also",
        str(out),
        "--data",
        lab.data,
        "--outputs",
        str(lab.outputs),
    ]
    place = tmp_path / "robust"
    words += ["--robustness", str(place), "--degradations", "jpeg"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "small-a" in printed and "jpeg" in printed
    assert {p.name for p in place.iterdir()} == {"scores", "robustness.csv", "robustness.png"}
    assert len(list((place / "scores").iterdir())) == 12
    assert cli.main(["evaluate", str(out), "--robustness", str(place)]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_a_command_prints_the_measures_that_are_asked_for(lab, capsys):
    run = lab.detector("Small", "A")
    words = [
        "evaluate",
        run.path.name,
        "--outputs",
        str(lab.outputs),
        "--measures",
        "ap",
        "tpr_at_5",
    ]
    assert cli.main(words) == 0
    assert "tpr_at_5" in (printed := capsys.readouterr().out) and " auc " not in printed
    assert cli.main([*words, "auk"]) == 2 and "Did you mean 'auc'" in capsys.readouterr().err

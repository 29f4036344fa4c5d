"""prle.lab.traces and prle.lab.faithfulness: maps against forged pixels, against what decides, and against chance."""

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score
from torch import nn

from prle import cli
from prle.core import rng
from prle.data.manifest import select, write_manifest
from prle.lab import faithfulness as module
from prle.lab.configs import PRESETS
from prle.lab.faithfulness import MEASURES, curves, faithfulness, ranks
from prle.lab.labdata import some_rows
from prle.lab.subjects import open_subject
from prle.lab.traces import (
    MARKS,
    THRESHOLDS,
    against_chances,
    beats_chance,
    chance_maps,
    forged_faces,
    localization,
    localization_of,
    mark_maps,
    marks,
    overlaps,
    strangers,
)
from test_experiments import TINY, quiet_lab, write_square


@pytest.fixture
def cases():
    "Forty maps that know something, and masks."
    draw = rng("traces")
    masks = np.zeros((40, 20, 24), bool)
    for mask in masks:
        top, left = draw.integers(2, 10, 2)
        mask[top : top + 6, left : left + 8] = True
    heats = 0.5 * masks + 0.5 * draw.random(masks.shape)
    return heats * draw.uniform(0.6, 1, (40, 1, 1)), masks


def test_marks_are_scikit_learns(cases):
    for heat, mask in list(zip(*cases))[:8]:
        found, truth, values = marks(heat, mask), mask.ravel(), heat.ravel()
        assert found["auc"] == pytest.approx(roc_auc_score(truth, values))
        assert found["ap"] == pytest.approx(average_precision_score(truth, values))
        assert found["inside"] == pytest.approx(values[truth].sum() / values.sum())
        f1, iou = overlaps(heat, mask)
        for k in (0, 37, 50, 99):
            called = values > THRESHOLDS[k]
            assert f1[k] == pytest.approx(f1_score(truth, called, zero_division=0))
            assert iou[k] == pytest.approx(jaccard_score(truth, called, zero_division=0))


def test_the_best_threshold_is_one_for_all_faces(cases):
    maps, masks = cases
    found = dict(zip(MARKS, mark_maps(maps, masks).mean(0)))
    by_hand = [np.mean([overlaps(h, m)[0][k] for h, m in zip(maps, masks)]) for k in range(100)]
    assert found["f1_best"] == pytest.approx(max(by_hand)) and found["f1_fixed"] == pytest.approx(
        by_hand[50]
    )
    alone = np.mean([overlaps(h, m)[0].max() for h, m in zip(maps, masks)])
    assert found["f1_best"] < alone, "each face's own best would be higher"


def test_a_map_without_a_peak_points_at_the_share_of_the_forged_pixels(cases):
    mask = cases[1][0]
    flat = marks(np.ones(mask.shape), mask)
    assert [flat[name] for name in ("pointing", "inside", "ap")] == pytest.approx([mask.mean()] * 3)
    assert flat["auc"] == 0.5
    nothing = marks(np.zeros(mask.shape), mask)
    assert nothing["pointing"] == nothing["inside"] == 0


def test_chances_have_not_looked(cases):
    maps, people = cases[0], np.arange(40) // 4
    chances = chance_maps(maps, people)
    assert (people[strangers(people)] != people).all()
    others = maps[1:].mean(0)
    assert chances["mean map"][0] == pytest.approx(others / others.max())
    assert all(made.shape == maps.shape for made in chances.values())


def test_what_is_central_does_not_pass_and_what_has_looked_does(cases):
    masks, people = cases[1], np.arange(40) // 2
    central = np.zeros(masks.shape)
    central[:, 5:15, 6:18] = 1
    central += 1e-3 * rng("central").random(central.shape)
    passed = beats_chance(localization(central / central.max(), masks, people, 200))
    assert list(passed) == list(MARKS) and sum(passed.values()) <= 1
    table = localization(cases[0], masks, people, 200)
    assert all(beats_chance(table).values())
    uniform = table[table.against == "uniform"].set_index("mark")
    assert uniform.chance["auc"] == 50
    assert uniform.excess["auc"] == pytest.approx(uniform.value["auc"] - 50)


def test_intervals_are_over_people():
    "Ten copies of each face say no more than one."
    values = rng("people").random((12, 1))
    once = against_chances(values, {"none": 0 * values}, ("a",), np.arange(12), 500)
    often = np.repeat(values, 10, axis=0)
    again = against_chances(often, {"none": 0 * often}, ("a",), np.repeat(np.arange(12), 10), 500)
    assert again[["low", "high"]].to_numpy() == pytest.approx(once[["low", "high"]].to_numpy())


class Patch(nn.Module):
    "Looks at one patch."

    def forward(self, x):
        return 24 * x[:, :, 2:6, 2:6].mean((1, 2, 3)) - 20


@pytest.fixture
def patch():
    images = torch.full((3, 3, 16, 16), 0.1)
    images[:, :, 2:6, 2:6] = 1
    heat = torch.zeros(3, 16, 16)
    heat[:, 2:6, 2:6] = torch.rand(3, 4, 4) + 0.5
    return images, heat


def test_ranks_put_the_most_attended_first(patch):
    order = ranks(patch[1])
    assert (order[:, 2:6, 2:6] < 16 / 256).all() and order.max() == 255 / 256
    assert torch.equal(order.flatten(1).sort().values, (torch.arange(256) / 256).expand(3, -1))
    flat = ranks(torch.ones(1, 16, 16))[0]
    assert flat[0].mean() > 0.3, "of equal pixels the upper rows do not go first"


def test_what_decides_is_what_is_missed(patch):
    images, heat = patch
    known = dict(zip(MEASURES, faithfulness(Patch(), images, heat).mean(0)))
    missed = dict(zip(MEASURES, faithfulness(Patch(), images, 1 - heat).mean(0)))
    assert all(known[name] > missed[name] + 0.2 for name in MEASURES)
    assert known["road"] > 0.2 and missed["road"] == pytest.approx(-known["road"], abs=0.05)

    def black(x, pixels):
        return x * ~pixels[:, None]

    found = curves(Patch(), images, ranks(heat), black, (0, 1 / 16, 1))
    logits = torch.tensor([4.0, -20.0, -20.0], dtype=torch.float64)
    assert found[0] == pytest.approx(logits.sigmoid().numpy(), abs=1e-6)


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    "A lab whose fakes have masks; of one the whole face is forged."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    path = write_square(toy, tmp_path / "square")
    half, whole = np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)
    half[:, :30] = 255
    for name, mask in dict(half=half, whole=whole).items():
        cv2.imwrite(str(tmp_path / f"square/{name}.png"), mask)
    rows = toy.assign(mask=np.where(toy.label == 1, "half.png", ""))
    fakes = rows.index[(rows.label == 1) & (rows.split == "test")]
    rows.loc[fakes[0], "mask"] = "whole.png"
    rows.attrs["root"] = str(tmp_path / "square")
    return quiet_lab(write_manifest(rows, path), tmp_path / "out")


def test_the_maps_of_a_run_are_measured_by_manipulation(lab, lines, capsys, monkeypatch):
    run = lab.detector("Small", "A")
    subject = open_subject(run.path, outputs=lab.outputs)
    rows, masks = forged_faces(subject)
    fakes = select(lab.manifest, "test").query("label == 1")
    assert len(rows) == len(masks) == len(fakes) - 1 and masks.any((1, 2)).all()
    assert any("forged nowhere or everywhere" in line for line in lines)
    table = localization_of(subject, n=20)
    assert set(table.subset) == {"A", "B"} and set(table.mark) == set(MARKS)
    maps = subject.maps(rows[rows.subset == "B"].assign())
    found = mark_maps(maps, masks[(rows.subset == "B").to_numpy()]).mean(0)
    assert table[table.subset == "B"].value[:].to_numpy()[: len(MARKS)] == pytest.approx(
        100 * found
    )
    monkeypatch.setattr(module, "REMOVED", (0.2,))
    words = ["evaluate", run.path.name, "--maps", "--outputs", str(lab.outputs)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "iou_fixed" in printed and "insertion" in printed and "above other face" in printed


def test_without_masks_there_is_nothing_to_compare_with(lab):
    subject = open_subject(lab.detector("Small", "A").path, outputs=lab.outputs)
    subject.rows["mask"] = ""
    with pytest.raises(ValueError, match="no fake has a mask"):
        forged_faces(subject)


def test_some_rows_are_spread_and_keep_their_root(toy):
    some = some_rows(toy, 5)
    assert len(some) == 5 and some.attrs == toy.attrs and some.index[-1] == len(toy) - 1
    assert len(some_rows(toy, 10**6)) == len(toy)

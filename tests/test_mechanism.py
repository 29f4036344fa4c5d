"prle.paper.mechanism: how much of a face is looked at, and which parts, on maps whose answer is known."

import numpy as np
import pandas as pd
import pytest
import torch

from prle.lab.experiments import Lab
from prle.masking import FACE_PARTS, part_region
from prle.paper import mechanism
from prle.paper.claims import LookClaims, Question
from prle.paper.exhibits import Gap, read_cell
from prle.paper.mechanism import (
    NOTHING,
    OWN,
    SHARE,
    SPREAD,
    TARGETS,
    UNSEEN,
    Mechanism,
    above_area,
    breadth,
    breadth_table,
    draw_mechanism,
    fakes_with_landmarks,
    look,
    looks,
    looks_of,
    mechanism_cells,
    part_areas,
    part_numbers,
    part_table,
    pooled,
    spread,
)
from prle.paper.numbers import SUBSETS
from test_masking import landmarks

SIZE = 48


def of_parts(*parts):
    "A map that is 1 on parts of the face and 0 elsewhere."
    points, heat = landmarks(SIZE, SIZE).numpy(), np.zeros((SIZE, SIZE), np.float32)
    for part in parts:
        heat[part_region(part, points, heat.shape)] = 1
    return heat


@pytest.mark.parametrize("pixels", [1, 7, 100, 400])
def test_the_spread_of_even_attention_is_its_area(pixels):
    heat = np.zeros((20, 20), np.float32)
    heat.flat[:pixels] = 0.37
    assert spread(heat) == pytest.approx(pixels / 400)
    assert spread(5 * heat) == pytest.approx(spread(heat))
    heat.flat[0] *= 1000
    assert pixels == 1 or spread(heat) < pixels / 400, "what is uneven is spread less"
    assert spread(np.zeros((20, 20))) == 0


def test_a_look_at_one_part():
    found = look(of_parts("mouth"), landmarks(SIZE, SIZE).numpy())
    assert found["mouth"] > 0.8 and found["eyes"] == 0 == found["nothing"]
    assert found["share"] == pytest.approx(found["spread"]) and found["share"] > found["mouth area"]
    assert sum(found[part] for part in FACE_PARTS) == pytest.approx(1), "each pixel counts once"
    even = look(np.full((SIZE, SIZE), 0.3, np.float32), landmarks(SIZE, SIZE).numpy())
    nothing = look(np.zeros((SIZE, SIZE)), landmarks(SIZE, SIZE).numpy())
    for part in FACE_PARTS:
        area = even[f"{part} area"]
        assert even[part] == pytest.approx(area, rel=1e-4) and nothing[part] == area > 0
    assert nothing["nothing"] == 1 and even["share"] == 0 == nothing["share"], "not above 0.3"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab without data: on fakes of NT detectors look at the mouth, on those of FS at the nose.

    With PRLE they look at the eyes besides."""
    lab = Lab("mini", outputs=tmp_path)
    lab.manifest = pd.DataFrame(dict(subset=["real", "FS", "NT"]))
    lab._sets = None, {"mini-Celeb": tmp_path}
    points = landmarks(SIZE, SIZE).numpy().ravel()
    rows = pd.DataFrame(dict(subset=["real", "NT", "FS"] * 8, label=[0, 1, 1] * 8))
    rows["identity"] = np.repeat([f"p{k}" for k in range(8)], 3)
    rows["landmarks"] = [points] * 24
    rows.at[1, "landmarks"] = points * np.nan
    lab.test_faces = lambda split="test", seed=0: rows

    def detector(lab, backbone, train, seed, mask="none", **changes):
        return mask == "primary"

    def maps(runs, fusion, size, which):
        [prle] = runs
        heats = []
        for subset in rows.subset[which]:
            part = dict(NT="mouth", FS="nose")[subset]
            heats.append(of_parts(part, *(["eyes"] if prle else [])))
        yield torch.from_numpy(np.stack(heats))

    monkeypatch.setattr(Lab, "detector", detector)
    monkeypatch.setattr(Lab, "attention", lambda lab, run, split: run)
    monkeypatch.setattr(mechanism, "fused_batches", maps)
    return lab


@pytest.fixture
def values(lab):
    cells = mechanism_cells(lab, ["VGG", "Xception"], seeds=2)
    return {name: read_cell(lab, cell) for name, cell in cells.items()}


def test_which_fakes_are_meant(lab, values):
    assert len(values) == 2 * 3 * 2 + 2 * 3 and all(len(v) == 2 for v in values.values())
    own, unseen, targets = (pooled(values, f, "VGG", "none") for f in (OWN, UNSEEN, TARGETS))
    assert [len(tables[0]) for tables in (own, unseen, targets)] == [15, 15, 15], (
        "of one fake the landmarks are not known"
    )
    [fs, _] = pooled(values, OWN, "VGG", "none", ["FS"])
    assert set(fs.subset) == {"FS"} and len(fs) == 8 and (fs.nose > 0.9).all()
    assert set(pooled(values, UNSEEN, "VGG", "none", ["FS"])[0].subset) == {"NT"}


def test_prle_looks_at_more_and_at_the_eyes(values):
    rows = breadth(values).set_index(["fakes", "backbone", "arm", "measure"]).sort_index()
    area = values["VGG", "none", "NT", "test"][0]["eyes area"].mean() * 100
    for fakes in (UNSEEN, TARGETS):
        for backbone in ("VGG", "Xception", "mean"):
            change = rows.loc[fakes, backbone, "primary - none"]
            assert change.value[SHARE.name] == pytest.approx(area, rel=0.05)
            assert change.low[SPREAD.name] > 0 and change.value[NOTHING.name] == 0
    parts = part_numbers(values, ["FS", "NT"])
    parts = parts.set_index(["fakes", "trained", "arm", "measure"]).sort_index()
    known = parts.loc[OWN].loc[["FS", "NT"]].value.unstack("measure")
    assert known.loc["NT"].mouth.item() > 80 and known.loc["FS"].nose.item() > 80
    moved = parts.loc[TARGETS, "", "primary - none"]
    assert moved.low["eyes"] > 20 > 0 > moved.high["mouth"], "attention is shared among more"
    both = looks_of(values, TARGETS, above_area("eyes", "mouth"), ["VGG"])
    one = [
        looks_of(values, TARGETS, above_area(p), ["VGG"]).arms["none"] for p in ("eyes", "mouth")
    ]
    assert np.allclose(both.arms["none"], np.add(*one))


def test_what_is_not_there_is_a_gap(lab, values):
    values["VGG", "primary", "FS", "test"] = Gap("the loss became nan")
    rows = breadth(values).set_index(["fakes", "backbone", "arm", "measure"])
    assert rows.note[UNSEEN, "mean", "primary", "spread"] == "the loss became nan"
    assert rows.note[TARGETS, "mean", "primary", "spread"] == ""
    shown = breadth_table(rows.reset_index())
    assert (shown["+ PRLE"] == "gap").sum() == 6 and len(shown) == 18
    stays = ["plain", "+ PRLE, our reading", "our reading - plain"]
    assert (shown["PRLE - plain"] == "gap").sum() == 6 and not (shown[stays] == "gap").any(
        axis=None
    )
    parts = part_numbers(values, ["FS"])
    lost = parts[parts.note != ""]
    assert set(lost.arm) == {"primary", "primary - none"} and set(lost.fakes) == {UNSEEN}
    figure = draw_mechanism(rows.reset_index(), parts, ["FS"])
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    plain, prle, _ = (drawn[0] for drawn in figure.axes[0].containers)
    assert names == ["VGG", "Xception", "mean"] and len(plain.get_xdata()) == 3
    assert prle.get_xdata().tolist() == [names.index("Xception")], "below its own name"
    lab._sets = None, {}
    cells = mechanism_cells(lab, ["VGG"], 1)
    assert {key[3] for key in cells} == {"test"}
    alone = {name: read_cell(lab, cell) for name, cell in cells.items()}
    assert looks_of(alone, TARGETS, SPREAD, ["VGG"]) == Gap("there are no fakes: target sets")
    reals = lab.test_faces().query("label == 0")
    lab.test_faces = lambda split="test", seed=0: reals
    cells = mechanism_cells(lab, ["VGG"], 1)
    assert set(cells.values()) == {Gap("test has no fakes with landmarks")}
    assert part_areas(cells) == {} and breadth(cells).note.all()
    assert part_table(part_numbers(cells, ["NT"]), {}).mouth.isin(["gap"]).sum() == 11


def test_the_claims_about_looks(lab, values):
    "Lips and noses by construction, with PRLE the eyes besides."
    question, group = Question(lab, 2, ["VGG", "Xception"]), LookClaims()
    assert set(group.cells(question)) == set(values)
    rows = {row["name"]: row for row in group.rows(question, values)}
    assert list(rows) == list(group.names)
    assert {row["verdict"] for row in rows.values()} == {"holds"}
    assert rows["places"]["value"] > 90 and rows["chin"]["value"] > 20
    alone = {key: tables for key, tables in values.items() if key[3] == "test"}
    alone = {key: tables for key, tables in alone.items() if key[2] != "FS"}
    rows = {row["name"]: row for row in group.rows(question, alone)}
    assert rows["lips"]["verdict"] == "holds"
    for name in ("nose", "places", "broader"):
        assert rows[name]["verdict"] == "undecided" and "there are no fakes" in rows[name]["note"]


def test_fakes_and_maps_have_to_match(lab):
    fakes = fakes_with_landmarks(lab.test_faces())
    assert len(fakes) == 15 and fakes.index[0] == 2
    with pytest.raises(ValueError, match="shorter|longer"):
        looks(fakes, [torch.zeros(14, SIZE, SIZE)])


def test_the_exhibit(lab, monkeypatch):
    monkeypatch.setattr(mechanism, "describe", lambda *args, **settings: "Made up.")
    lab.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    figure, broad, parts = Mechanism().compute(lab, backbones=["VGG"])
    assert len(figure.figure.axes) == 3 and "Made up." in broad.caption
    assert list(parts.shown.columns) == ["fakes", "detectors", *FACE_PARTS]
    assert (parts.shown.fakes == OWN).sum() == 5
    for change in ("PRLE - plain", "our reading - plain"):
        assert broad.shown[change].str.startswith("+").all()

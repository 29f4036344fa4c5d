"""prle.audit and prle.lab.audits: masks that know nothing pass, masks that know something do not."""

import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from prle import cli
from prle.audit import (
    CELLS,
    LIMIT,
    audit,
    audit_transform,
    draw_audit,
    out_of_fold,
    shrink,
    verdict_text,
)
from prle.core import rng
from prle.data.crops import write_quantiles
from prle.lab.audits import audit as audit_training
from prle.lab.audits import audit_folder, masked_areas, read_area, read_audit, some_faces
from prle.lab.configs import PRESETS, CamConfig
from prle.masking import PrimaryRegionMask, RandomMask, quantile_map
from prle.metrics import auc
from test_experiments import TINY, quiet_lab, write_square

SIDE = 32


def someone(people=20, photos=4):
    "Labels and people: of each person as many fakes as reals."
    return np.tile([0, 1], people * photos), np.repeat(np.arange(people), 2 * photos)


def squares(height, width, top, left):
    "A mask a row: a rectangle of a size, at a place."
    y, x = np.mgrid[:SIDE, :SIDE][:, None]
    top, left, height, width = (np.reshape(v, (-1, 1, 1)) for v in (top, left, height, width))
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def blobs(draw, people):
    "Masks without a label: each person has a place and a size of their own, each photo differs a little."
    own, n = draw.integers(4, 12, (people.max() + 1, 4)), len(people)
    height, width, top, left = (own[people] + draw.integers(0, 6, (n, 4))).T
    return squares(height, width, top, left)


def row(found, measure):
    return found.table.set_index("measure").loc[measure]


def test_a_mask_that_knows_nothing_is_seldom_said_to_know():
    "The interval holds 0.5 about as often as it says, by size and by the classifiers."
    labels, people = someone(20, 3)
    found = [audit(blobs(rng("null", k), people), labels, people, resamples=300) for k in range(16)]
    for measure, highest in dict(size=0.52, masks=0.54).items():  # the best of two is higher
        rows = pd.DataFrame([row(f, measure) for f in found])
        assert ((rows.low <= 0.5) & (rows.high >= 0.5)).mean() >= 0.85
        assert 0.48 < rows.auc.mean() < highest
    assert sum(f.table.leak.max() > LIMIT for f in found) <= 2


def test_of_one_classifier_the_interval_is_that_of_any_auc():
    "Over many seeds, for the linear one alone."
    (labels, people), covered, values = someone(20, 3), [], []
    for k in range(100):
        masks = blobs(rng("null", "one", k), people)
        r = row(audit(masks, labels, people, classifiers=["linear"], resamples=300), "masks")
        covered.append(r.low <= 0.5 <= r.high)
        values.append(r.auc)
    assert np.mean(covered) >= 0.88 and abs(np.mean(values) - 0.5) < 0.015


def test_larger_masks_of_fakes_are_found_by_size():
    (labels, people), draw = someone(), rng("larger")
    top, left = draw.integers(0, 12, (2, len(labels)))
    masks = squares(8, 8 * (1 + labels), top, left)
    found = audit(masks, labels, people)
    assert row(found, "size").auc == row(found, "size").low == 1 and row(found, "masks").auc > 0.99
    smaller = row(audit(masks, 1 - labels, people), "size")
    assert smaller.auc == 0 and smaller.leak == 1
    assert verdict_text(found.table).startswith("The masks tell the label: leak 1.00")


def test_masks_of_equal_size_elsewhere_are_found_by_a_classifier():
    (labels, people), draw = someone(), rng("elsewhere")
    left = draw.integers(0, 6, len(labels)) + 12 * labels
    found = audit(squares(10, 8, 9, left), labels, people)
    assert row(found, "size").auc == row(found, "size").leak == 0.5
    assert row(found, "masks").auc > 0.99 and "(masks)" in verdict_text(found.table)


def test_what_no_sum_of_cells_tells_is_found_by_the_forest():
    "Fakes are masked left or right, reals on both sides or nowhere, so that no cell alone tells them apart."
    (labels, people), draw = someone(20, 5), rng("exclusive")
    first = draw.integers(0, 2, len(labels))
    second = np.where(labels == 1, 1 - first, first)
    masks = squares(12 * first, 12, 8, 2) | squares(12 * second, 12, 8, 18)
    best = row(audit(masks, labels, people), "masks")
    assert best.by == "forest" and best.auc > 0.9


def test_people_are_not_in_two_folds():
    "Masks that tell the person, each with one label only: rows divided at random would tell it."
    people = np.repeat(np.arange(30), 6)
    labels = people % 2
    code = rng("code").permuted(np.tile(np.arange(256) < 64, (30, 1)), axis=1).reshape(30, 16, 16)
    masks = code[people]
    found = row(audit(masks, labels, people), "masks")
    assert found.auc < 0.75 and found.low < 0.5
    features = masks.reshape(len(masks), -1).astype(float)
    naive = out_of_fold(features, labels, np.arange(len(labels)), "linear")
    assert auc(labels, naive) > 0.99


def test_reduced_masks_are_audited_as_the_masks_are():
    labels, people = someone(10)
    masks = blobs(rng("shrink"), people)
    assert shrink(masks).shape == (len(masks), CELLS, CELLS)
    whole, reduced = audit(masks, labels, people), audit(shrink(masks), labels, people)
    pd.testing.assert_frame_equal(whole.table, reduced.table)
    pd.testing.assert_frame_equal(whole.table, audit(torch.tensor(masks), labels, people).table)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(masks=np.zeros((4, SIDE))), "must be .N, H, W."),
        (dict(labels=[0, 1]), "masks for 2 labels"),
        (dict(labels=np.zeros(80, int)), "one class is gone|are real"),
        (dict(people=np.zeros(80, int)), "too few people|two people"),
        (dict(classifiers=["forrest"]), "Did you mean 'forest'"),
    ],
)
def test_what_cannot_be_audited(wrong, message):
    labels, people = someone(10)
    given = dict(masks=blobs(rng("wrong"), people), labels=labels, people=people) | wrong
    with pytest.raises(ValueError, match=message):
        audit(**given)


def test_two_people_of_one_class_each_are_too_few():
    masks = blobs(rng("few"), np.repeat([0, 1], 4))
    with pytest.raises(ValueError, match="too few"):
        audit(masks, np.repeat([0, 1], 4), np.repeat([0, 1], 4))


def test_verdicts():
    def table(leak, low, high, measure="masks"):
        return pd.DataFrame([dict(measure=measure, by="", auc=leak, low=low, high=high, leak=leak)])

    assert verdict_text(table(0.60, 0.5, 0.7)) == (
        "The masks do not tell the label: leak at most 0.60 by every measure (limit 0.60), "
        "by the intervals at most 0.70."
    )
    assert (
        verdict_text(table(0.61, 0.5, 0.7), "boxes")
        == "The boxes tell the label: leak 0.61 (masks)."
    )
    assert "intervals at most 0.58" in verdict_text(table(0.5, 0.42, 0.55, "size"))


# Augmentations


def faces_of(labels, size=SIDE):
    "Faces whose pixels tell the label, as an audit must not see."
    noise = torch.randint(0, 100, (len(labels), 3, size, size), dtype=torch.uint8)
    return noise + torch.tensor(labels, dtype=torch.uint8)[:, None, None, None] * 100


def test_an_augmentation_never_sees_the_face():
    labels, people = someone(10)
    kept = audit_transform(lambda face: face, faces_of(labels), labels, people, draws=1)
    assert (
        kept.table.measure.tolist() == ["size", "masks", "gray"] and (kept.table.auc == 0.5).all()
    )
    assert kept.rows["size"].max() == 0
    random = audit_transform(RandomMask(p=1.0), faces_of(labels), labels, people)
    assert random.table.leak.max() < 0.65 and len(random.rows) == 4 * len(labels)


def test_the_rest_of_an_item_stays_and_is_found_out():
    labels, people = someone(10)
    fused = torch.zeros(len(labels), SIDE, SIDE)
    for k, label in enumerate(labels):
        fused[k, 8:24, 4 + 12 * label : 16 + 12 * label] = torch.rand(16, 12)
    items = [
        dict(image=face, quantiles=q[None])
        for face, q in zip(faces_of(labels), quantile_map(fused))
    ]
    policy, before = PrimaryRegionMask(p=1.0), items[0]["image"].clone()

    def masked(item):
        return dict(item, image=policy(item["image"], item["quantiles"]))

    found = audit_transform(masked, items, labels, people, draws=2)
    assert row(found, "size").leak < 0.7 < 0.95 < row(found, "masks").auc
    assert row(found, "gray").auc > 0.95 and (items[0]["image"] == before).all()
    again = audit_transform(masked, items, labels, people, draws=2)
    pd.testing.assert_frame_equal(found.table, again.table)


@pytest.mark.parametrize("how", ["noise", "colour", "brightness"])
def test_traces_that_are_no_masks_are_seen_on_gray(how):
    labels, people = someone(10)

    def transform(item):
        image = item["image"].float()
        if how == "noise":
            image += item["label"] * 4 * torch.randn(image.shape)
        if how == "colour":
            image[0] += 4 * item["label"] + torch.rand(()) * 2
        if how == "brightness":
            image += 4 * item["label"] + torch.rand(()) * 2
        return dict(item, image=image)

    items = [dict(image=f, label=int(k)) for f, k in zip(faces_of(labels), labels)]
    found = audit_transform(transform, items, labels, people, draws=1)
    assert found.table.measure.tolist() == ["gray"] and found.table.auc[0] > 0.95
    with pytest.raises(TypeError, match="must return a tensor"):
        audit_transform(lambda item: item["label"], items, labels, people)


def test_the_global_stream_is_left_as_it_was():
    labels, people = someone(5, 1)
    faces = faces_of(labels)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    audit_transform(RandomMask(p=1.0), faces, labels, people, draws=1, classifiers=["linear"])
    assert torch.rand(1) == expected


def test_nothing_else_of_the_project_is_needed():
    code = "import sys, prle.audit; print(*sorted(m for m in sys.modules if m.startswith('prle.')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["prle.audit", "prle.core", "prle.metrics"]


def test_the_picture_has_a_curve_a_measure():
    labels, people = someone(10)
    figure = draw_audit(audit(blobs(rng("figure"), people), labels, people))
    sizes, curves = figure.axes
    assert len(curves.lines) == 3 and len(sizes.patches) == 50
    only = audit_transform(lambda face: face.float(), faces_of(labels), labels, people, draws=1)
    assert len(draw_audit(only).axes) == 1


# In the lab


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    "A lab on the toy faces, with two tiny backbones."
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    return quiet_lab(write_square(toy, tmp_path / "square"), tmp_path / "out")


def test_the_masks_of_a_training_are_audited_once(lab):
    config = lab.config("Small", "A", mask="primary")
    dry = lab.dry()
    assert not audit_training(dry, config).reused and len(dry.store.names()) == 6
    run = audit_training(lab, config)
    found = read_audit(run)
    assert found.table.measure.tolist() == ["size", "masks", "gray"]
    assert len(found.rows) == 4 * len(lab.train_faces("A"))
    assert audit_training(lab, config).reused
    same = [
        lab.config("Other", "A", mask="primary", fill="noise", p=0.1, lr=0.1),
        lab.config("Small", "A", mask="primary", zoo=["Other", "Small"]),
    ]
    assert {audit_training(dry, c).path for c in same} == {run.path}
    other = [lab.config("Small", "A", mask="primary", alpha="static")]
    other += [lab.config("Small", "A", mask=mask) for mask in ("random", "landmark")]
    others = {audit_training(lab, c).path for c in other}
    others |= {audit_training(dry, config, "test").path, audit_training(dry, config, draws=1).path}
    matched = lab.config("Small", "A", mask="landmark-matched")
    parts = lab.config("Small", "A", mask="landmark", parts=["nose"])
    others |= {audit_training(lab, matched, draws=1).path, audit_training(dry, parts).path}
    assert len(others) == 7 and run.path not in others


def test_equal_audits_have_equal_labels(lab):
    "Without maps the seed draws the people alone; a grid that is the preset's is no other reading."
    dry = lab.dry()
    random = [lab.config("Small", "A", seed, mask="random") for seed in (0, 3)]
    cams = [CamConfig("layercam"), CamConfig("layercam", grid=lab.preset.grid)]
    primary = [lab.config("Small", "A", mask="primary", cam=cam) for cam in cams]
    for same in (random, primary):
        for measure in (audit_training, masked_areas):
            assert len({measure(dry, config).path for config in same}) == 1


def test_the_test_faces_are_those_of_the_training_s_manipulation(lab):
    run = audit_training(lab, lab.config("Small", "A", mask="landmark"), "test", draws=1)
    test = lab.test_faces()
    assert len(read_audit(run).rows) == (test.subset != "B").sum() < len(test)
    run = audit_training(lab, lab.config("Small", "all", mask="random"), "test", draws=1)
    assert len(read_audit(run).rows) == len(test)
    with pytest.raises(ValueError, match="nothing to audit"):
        audit_training(lab, lab.config("Small", "A"))


def test_masked_areas_of_matched_masks_are_those_of_primary_masks(lab):
    areas = {}
    for mask in ("primary", "landmark-matched", "random-matched", "random"):
        run = masked_areas(lab, lab.config("Small", "A", mask=mask, fill="noise"))
        areas[mask] = read_area(run)
    assert areas["landmark-matched"] == areas["primary"] > 0
    assert areas["random-matched"] == pytest.approx(areas["primary"], rel=0.05)
    assert 0.05 < areas["random"] < 0.15 and run.path.parent.name == "areas"
    assert masked_areas(lab, lab.config("Other", "A", mask="random", p=0.1)).path == run.path
    with pytest.raises(ValueError, match="nothing to audit"):
        masked_areas(lab, lab.config("Small", "A"))


def test_of_many_faces_some_are_drawn(toy):
    some = some_faces(toy, 10)
    assert len(some) == 10 and some.attrs == toy.attrs and some.index.is_monotonic_increasing
    assert some_faces(toy, 10).equals(some) and some_faces(toy).equals(toy)


@pytest.fixture
def folder(toy, tmp_path):
    "Quantile maps of the toy faces: those of fakes lie to the right."
    fused = torch.zeros(len(toy), SIDE, SIDE)
    for k, label in enumerate(toy.label):
        fused[k, 8:24, 2 + 16 * label : 12 + 16 * label] = torch.rand(16, 10)
    paths = [tmp_path / "maps" / path for path in toy.path]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_quantiles(fused, paths)
    return tmp_path / "maps"


def test_masks_in_a_folder(toy, folder):
    drawn = audit_folder(folder, toy)
    assert len(drawn.rows) == 4 * len(toy) and row(drawn, "masks").auc > 0.9
    for path in toy.path:
        whole = cv2.imread(str(folder / path), cv2.IMREAD_UNCHANGED) > 0
        cv2.imwrite(str(folder / path), whole.astype(np.uint8) * 255)
    masks = audit_folder(folder, toy)
    assert len(masks.rows) == len(toy) and row(masks, "masks").auc > 0.99
    assert row(masks, "size").auc == 0.5


def test_masks_of_ones_are_masks(toy, folder):
    "Whatever above 0 a mask is written with; nothing at all is no mask."
    for k, path in enumerate(toy.path):
        whole = np.zeros((SIDE, SIDE), np.uint8)
        whole[: 4 + 4 * toy.label.iloc[k]] = 1
        cv2.imwrite(str(folder / path), whole)
    assert row(audit_folder(folder, toy), "size").auc == 1
    for path in toy.path:
        cv2.imwrite(str(folder / path), np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(ValueError, match="every mask is empty"):
        audit_folder(folder, toy)


@pytest.mark.parametrize(
    "content, message",
    [(None, "no such file"), (b"torn", "picture"), ("colour", "is no mask")],
)
def test_a_file_in_the_folder_that_is_no_mask(toy, folder, content, message):
    path = folder / toy.path.iloc[3]
    path.unlink()
    if content == "colour":
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    elif content:
        path.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        audit_folder(folder, toy)
    assert str(path) in str(caught.value)


def test_the_command(lab, folder, toy, tmp_path, capsys):
    options = ["--preset", "tiny", "--data", lab.data, "--outputs", str(lab.outputs)]
    assert cli.main(["audit", "--subset", "A", "--published", "--fusion", "mean", *options]) == 0
    said = capsys.readouterr()
    out = said.out.splitlines()
    assert out[0].split() == ["measure", "by", "auc", "low", "high", "leak"]
    assert len(out) == 4 and said.err.splitlines()[-1].startswith("The masks ")
    (run,) = (lab.outputs / "runs/audits").iterdir()
    assert run.name.startswith("A-primary-mean-train-s0-")
    assert list((lab.outputs / "plans").glob("audit-A-primary*"))
    manifest, picture = f"{toy.attrs['root']}/manifest.parquet", tmp_path / "a.png"
    words = ["audit", "--masks", str(folder), "--manifest", manifest, "--figure", str(picture)]
    assert cli.main(words) == 0
    assert "tell the label: leak" in capsys.readouterr().err
    assert cv2.imread(str(picture)).shape[1] == 1200
    for words, message in (
        (["--masks", str(folder)], "--manifest is missing"),
        ([*options], "--subset is missing"),
        (["--subset", "A", "--mask", "none", *options], "nothing to audit"),
        (["--subset", "A", "--mask", "primry", *options], "Did you mean 'primary'"),
    ):
        assert cli.main(["audit", *words]) == 2 and message in capsys.readouterr().err

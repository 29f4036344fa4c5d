"prle.paper.figures: what is drawn are the numbers of the scores, and letters can be read at the printed width."

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from sklearn.metrics import accuracy_score, roc_auc_score

from prle.paper import comparisons
from prle.paper import figures
from prle.paper.comparisons import FIGURE8_ALPHAS, control_cells, masked_accuracy, masked_cells
from prle.core import rng
from prle.paper.exhibits import read_cell
from prle.lab.experiments import ATTENTION_BINS, Lab
from prle.paper.figures import (
    FIGURE1,
    LABELS,
    Figure5,
    Figure6,
    Figure9,
    RankedFace,
    draw_figure5,
    draw_figure6,
    draw_figure8,
    figure1_arms,
    found_by,
    found_fakes,
    what_masks_tell,
)
from prle.masking import write_quantiles
from prle.paper.numbers import (
    BACKBONES,
    COLUMN_WIDTH,
    FIGURE6,
    PAGE_WIDTH,
    SUBSETS,
    use_paper_style,
)
from prle.trust import write_digests

TARGETS = ("mini-DFDC", "mini-DF1", "mini-Celeb")


def faces(*key, subsets=("DF",), people=12):
    "Scores of reals and of the fakes of some manipulations, different for every key."
    draw = rng("figures", *key)
    rows = pd.DataFrame(
        [
            (f"p{i:02}", int(s != "real"), s)
            for i in range(people)
            for s in ("real", *subsets)
            for _ in range(2)
        ],
        columns=["identity", "label", "subset"],
    )
    return rows.assign(p_fake=draw.uniform(size=len(rows)) * 0.8 + 0.2 * rows.label)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab that never looks at data: a run is the arguments that it was asked with, and its scores follow from them."
    lab = Lab("mini", outputs=tmp_path)
    lab.manifest, lab._sets = (
        pd.DataFrame(dict(subset=["real", *SUBSETS])),
        (None, dict.fromkeys(TARGETS, tmp_path)),
    )
    lab.test_faces = lambda split="test", seed=0: pd.DataFrame(dict(label=[0, 1]))
    monkeypatch.setattr(
        Lab,
        "detector",
        lambda lab, backbone, train="all", seed=0, **changes: (
            backbone,
            train,
            seed,
            str(sorted(changes.items())),
        ),
    )
    monkeypatch.setattr(Lab, "target", lambda lab, run, target: (*run, target))
    monkeypatch.setattr(
        Lab,
        "masked",
        lambda lab, run, zoo, alpha, face: (*run, zoo.subset, alpha, *(() if face else ("gray",))),
    )
    monkeypatch.setattr(
        comparisons,
        "read_scores",
        lambda run: faces(*run, subsets=("DF",) if run[-1] in TARGETS else SUBSETS),
    )
    use_paper_style()
    yield lab
    plt.close("all")


def read(lab, cells):
    return {name: read_cell(lab, cell) for name, cell in cells.items()}


def rows_of(lab, figure, seeds=1):
    "The numbers of Figure 5 or 6."
    return figure.rows(lab, read(lab, figure.scores(lab, seeds)))


def auc(table):
    return 100 * roc_auc_score(table.label, table.p_fake)


def acc(table):
    return 100 * accuracy_score(table.label, table.p_fake > 0.5)


def drawn(ax):
    "Label -> (x, y, low, high) of each series with intervals."

    def ends(container):
        x, y = container.lines[0].get_data()
        bars = np.array(container.lines[2][0].get_segments())
        return np.column_stack([x, y, bars[:, 0, 1], bars[:, 1, 1]])

    return {c.get_label(): ends(c) for c in ax.containers}


def wanted(rows):
    return rows[["value", "low", "high"]].to_numpy()


def test_figure5_draws_every_backbone(lab):
    "Those of a preset's own, too, which the paper does not have."
    rows = rows_of(lab, Figure5()).replace(dict(backbone=dict(VGG="EfficientNet-Lite1")))
    for ax in draw_figure5(rows).axes:
        assert [t.get_text() for t in ax.get_xticklabels()] == list(rows.backbone.unique())
        assert all(len(series) == len(BACKBONES) for series in drawn(ax).values())


def test_figure5_draws_the_average_over_the_target_sets(lab):
    arms, rows = Figure5().arms(lab), rows_of(lab, Figure5())
    for ax, train in zip(draw_figure5(rows).axes, ("DF", "FS")):
        series = drawn(ax)
        assert (
            [t.get_text() for t in ax.get_xticklabels()] == list(BACKBONES)
            and set(series) == set(LABELS.values())
            and train in ax.get_title()
        )
        for name, label in LABELS.items():
            some = [arm for arm in arms if (arm.name, arm.train) == (name, train)]
            assert series[label][:, 1] == pytest.approx(
                [np.mean([auc(faces(*arm_key(lab, arm), t)) for t in TARGETS]) for arm in some]
            )
            part = (
                rows[(rows.arm == name) & (rows.train == train) & (rows.test == "AVG")]
                .set_index("backbone")
                .loc[list(BACKBONES)]
            )
            assert series[label][:, 1:] == pytest.approx(wanted(part))


def arm_key(lab, arm, seed=0):
    return arm.run(lab, seed)


def test_figure6_draws_auc_and_acc_and_the_papers_averages(lab):
    arms, rows = Figure6().arms(lab), rows_of(lab, Figure6())
    for ax, backbone in zip(draw_figure6(rows).axes, ("Xception", "EfficientNet")):
        series, some = drawn(ax), [arm for arm in arms if arm.backbone == backbone]
        for measure, function in (("AUC", auc), ("ACC", acc)):
            values = [
                np.mean([function(faces(*arm_key(lab, arm), t)) for t in TARGETS]) for arm in some
            ]
            assert series[measure][:, 0].tolist() == [1, 2, 3, 4, 5] and series[measure][
                :, 1
            ] == pytest.approx(values)
        papers = [line.get_ydata() for line in ax.lines if line.get_label() == "AUC, paper's data"]
        assert [list(p) for p in papers] == (
            [list(FIGURE6.values())] if backbone == "EfficientNet" else []
        )


def test_figure8_draws_the_accuracy_on_masked_faces(lab):
    rows = masked_accuracy(read(lab, masked_cells(lab, 1)))
    (ax,) = draw_figure8(rows).axes
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert set(lines) == {*SUBSETS, "mean"} and all(
        line[:, 0] == pytest.approx(100 * np.array(FIGURE8_ALPHAS)) for line in lines.values()
    )

    def value(subset, alpha):
        table = faces(*lab.detector("Xception", subset), subset, alpha, subsets=SUBSETS)
        return acc(table[table.subset.isin(["real", subset])])

    for s in SUBSETS:
        assert lines[s][:, 1] == pytest.approx([value(s, a) for a in FIGURE8_ALPHAS]), s
    assert lines["mean"][:, 1] == pytest.approx(np.mean([lines[s][:, 1] for s in SUBSETS], axis=0))
    band, mean = ax.collections[0].get_paths()[0].vertices, rows[rows.subset == "mean"]
    assert band[:, 1].min() == pytest.approx(mean.low.min()) and band[:, 1].max() == pytest.approx(
        mean.high.max()
    )


def test_what_masks_tell_is_the_auc_of_faces_of_masks_on_gray_and_of_sizes(lab, monkeypatch):
    monkeypatch.setattr(Lab, "statistics", lambda lab, zoo: zoo)
    monkeypatch.setattr(
        comparisons,
        "read_mask_sizes",
        lambda zoo: faces(zoo.subset, zoo.seed, "size", subsets=[zoo.subset]).rename(
            columns=dict(p_fake="share")
        ),
    )
    values = [read(lab, cells) for cells in (masked_cells(lab, 2), *control_cells(lab, 2))]
    rows = what_masks_tell(*values).set_index(["what", "subset"])
    assert len(rows) == 3 * 5 and (rows.low < rows.value).all() and (rows.value < rows.high).all()

    def part(table, subset):
        return table[table.subset.isin(["real", subset])]

    for s in SUBSETS:
        keys = [(*lab.detector("Xception", s, seed=seed), s, 1.0) for seed in (0, 1)]
        for what, more in (("masked face", ()), ("mask on gray", ("gray",))):
            assert rows.value[what, s] == pytest.approx(
                np.mean([auc(part(faces(*key, *more, subsets=SUBSETS), s)) for key in keys])
            )
        assert rows.value["size of the mask, in training", s] == pytest.approx(
            np.mean([auc(faces(s, seed, "size", subsets=[s])) for seed in (0, 1)])
        )


def test_quantile_maps_of_faces_that_are_no_pngs(lab, tmp_path, monkeypatch):
    (quantiles,) = write_quantiles(torch.rand(1, 8, 8), [tmp_path / "quantiles/a/face.png"]).numpy()
    write_digests(tmp_path / "quantiles")
    monkeypatch.setattr(figures, "face_at", lambda rows, i: np.zeros((8, 8, 3), np.uint8))
    lab.train_faces = lambda subset, seed=0: pd.DataFrame(dict(path=["a/face.jpg"]))
    values = {("quantiles", "DF"): [tmp_path / "quantiles"], ("maps", "DF"): [[]]}
    assert (figures.ranked_face(lab, values, "DF", 0).quantiles == quantiles).all()


def test_figure1_draws_auc_inside_and_across(lab, monkeypatch):
    square = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(figures, "_draw_attention", lambda part, *args: part.subplots())
    monkeypatch.setattr(
        figures, "ranked_face", lambda *args: RankedFace(square, {}, 0, np.zeros((8, 8), np.uint16))
    )
    monkeypatch.setattr(Lab, "attention", lambda *args: SimpleNamespace(path=lab.outputs))
    monkeypatch.setattr(Lab, "quantiles", lambda *args: SimpleNamespace(path=lab.outputs))
    monkeypatch.setattr(figures, "quantile_folder", lambda run: run.path)
    monkeypatch.setattr(Lab, "maps", lambda *args: [])
    lab.train_faces = lambda subset, split="train", seed=0: pd.DataFrame(
        dict(label=[0, 1], identity=["a", "b"])
    )
    lab.test_faces = lambda split="test", seed=0: pd.DataFrame(
        dict(label=[0, 1], identity=["a", "b"])
    )
    (part,) = figures.Figure1().compute(lab, seeds=2)
    figure = part.figure
    assert figure.get_figwidth() == PAGE_WIDTH and min(letters(figure)) >= 6
    ax = next(ax for ax in figure.axes if "AUC" in ax.get_ylabel())
    series, pairs = drawn(ax), [("NT", "NT"), ("NT", "FS"), ("FS", "FS"), ("FS", "NT")]
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        f"{a}\n\u2193\n{b}" for a, b in pairs
    ] and FIGURE1 == ("NT", "FS")

    def part(run, subset):
        table = faces(*run, subsets=SUBSETS)
        return table[table.subset.isin(["real", subset])]

    shown = dict(none="plain", primary="+ PRLE", ours="+ PRLE, our reading")
    for arm_name, label in shown.items():
        arms = {arm.train: arm for arm in figure1_arms() if arm.name == arm_name}

        expected = [
            np.mean([auc(part(arms[a].run(lab, seed), b)) for seed in (0, 1)]) for a, b in pairs
        ]
        assert series[label][:, 1] == pytest.approx(expected)


def test_who_finds_a_fake():
    plain, prle = np.array([0.9, 0.5, 0.9, 0.1, 0.2]), np.array([0.8, 0.6, 0.5, 0.2, 0.9])
    scores = {("A", "none"): plain, ("A", "primary"): prle}
    scores |= {("B", "none"): plain, ("B", "primary"): np.array([0.9, 0.9, 0.1, 0.1, 0.1])}
    scores["A", "ours"] = np.zeros(5)
    groups = {who: np.flatnonzero(which).tolist() for who, which in found_by(scores).items()}
    assert groups == {"all": [0], "PRLE alone": [1], "plain alone": [2], "none": [3]}
    counts = found_fakes(scores).set_index("backbone")
    assert counts.loc["A"].tolist() == [1, 2, 1, 1, 5], "all fakes are in a group of one backbone"
    assert counts.loc["all of them agree"].tolist() == [1, 1, 1, 1, 5]


def test_figure9_draws_both_groups_and_counts_all(lab, monkeypatch):
    rows = faces("figure9", subsets=("Celeb",), people=8)
    lab.test_faces = lambda split="test", seed=0: rows
    who = np.arange(len(rows)) % 8  # the last two of eight are PRLE's
    scores = {
        "none": rows.assign(p_fake=np.where(who < 6, 0.9, 0.2)),
        "primary": rows.assign(p_fake=np.where(who == 3, 0.4, 0.9)),
    }
    monkeypatch.setattr(
        comparisons, "read_scores", lambda run: scores["primary" if "mask" in str(run) else "none"]
    )
    monkeypatch.setattr(Lab, "attention", lambda lab, run, split: run)
    monkeypatch.setattr(figures, "face_at", lambda rows, i: np.full((16, 16, 3), i, np.uint8))

    def maps(runs, fusion, size, which):
        if len(which):
            yield torch.zeros(len(which), 16, 16)

    monkeypatch.setattr(figures, "fused_batches", maps)
    monkeypatch.setattr(figures, "describe", lambda *args, **settings: "Made up.")
    [part] = Figure9().compute(lab, faces=2)
    fakes, of = np.flatnonzero(rows.label), who[rows.label == 1]
    titles = [sub.get_suptitle() for sub in part.figure.subfigs]
    assert titles == [
        f"found by all:\n{((of < 6) & (of != 3)).sum()} of {len(fakes)}",
        f"found by PRLE alone:\n{(of >= 6).sum()} of {len(fakes)}",
    ]
    for sub, group in zip(part.figure.subfigs, ((of < 6) & (of != 3), of >= 6)):
        assert len(sub.axes) == 7 * 2, "the fakes, and three arms of two backbones"
        shown = {int(ax.images[0].get_array().max()) for ax in sub.axes[:2]}
        assert len(shown) == 2 and shown <= set(fakes[group])
    assert "EfficientNet: of 16 fakes" in part.caption and min(letters(part.figure)) >= 6
    scores["none"] = scores["primary"]
    [part] = Figure9().compute(lab, faces=2)
    empty = part.figure.subfigs[1]
    assert empty.get_suptitle() == "found by PRLE alone:\n0 of 16"
    assert not empty.axes, "an empty group is told, not filled"
    part.figure.draw_without_rendering()
    told = empty.texts[0].get_window_extent()
    assert part.figure.bbox.x0 <= told.x0 and told.x1 <= part.figure.bbox.x1, "and not cut off"


def test_figure3_leaves_out_zeros_and_nothing_else(tmp_path, monkeypatch):
    maps = np.concatenate([np.zeros(60), np.full(25, 0.01), np.full(10, 0.5), np.full(5, 1.0)])
    np.save(tmp_path / "histogram.npy", np.histogram(maps, ATTENTION_BINS, (0, 1))[0])
    pd.DataFrame({"above 0": [(maps > 0).mean()]}).to_parquet(tmp_path / "shares.parquet")
    monkeypatch.setattr(figures, "run_file", lambda folder, name: folder / name)
    counts = figures.read_attended_values(SimpleNamespace(path=tmp_path))
    assert counts[0] == 25 and counts[25] == 10 and counts[-1] == 5 and counts.sum() == 40


def test_faces_are_drawn_at_random_and_not_only_people():
    rows = pd.DataFrame(dict(label=[0, 1, 1, 1] * 6, identity=np.repeat(list("abcdef"), 4)))
    picks = [figures.pick_fakes(rows, 3, "test", seed) for seed in range(40)]
    assert (
        all(rows.label[p].all() and rows.identity[p].nunique() == 3 for p in picks)
        and figures.pick_fakes(rows, 3, "test", 0) == picks[0]
    )
    assert {i for p in picks for i in p} == set(rows.index[rows.label == 1]), (
        "any fake can be drawn"
    )


def letters(figure):
    "Sizes in points of all texts that are shown."
    return [
        t.get_fontsize() for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()
    ]


@pytest.mark.parametrize(
    "draw",
    [
        lambda lab: draw_figure5(rows_of(lab, Figure5())),
        lambda lab: draw_figure6(rows_of(lab, Figure6())),
        lambda lab: draw_figure8(masked_accuracy(read(lab, masked_cells(lab, 1)))),
    ],
)
def test_letters_can_be_read_at_the_printed_width(lab, draw):
    figure = draw(lab)
    assert figure.get_figwidth() in (COLUMN_WIDTH, PAGE_WIDTH) and min(letters(figure)) >= 6

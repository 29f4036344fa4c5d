"prle.paper.comparisons, prle.paper.efficiency: a table's arms; its numbers, averages, differences and gaps."

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn

from prle.paper import comparisons
from prle.paper import tables
from prle.paper.comparisons import (
    BASELINES,
    HIGH,
    LOW,
    PLAIN_AND_PRLE,
    Arm,
    add_paper,
    arms_of,
    choose_backbones,
    compare_arms,
    estimate_sums,
    gaps,
    masked_cells,
    paper_names,
    paper_numbers,
    paper_tests,
    score_cells,
    split_subsets,
    target_cells,
)
from prle.core import rng
from prle.paper.efficiency import (
    COUNTED,
    efficiency_table,
    even_sample,
    norm_elements,
    paper_gflops,
    paper_network,
)
from prle.paper.exhibits import Gap, exhibits, read_cell
from prle.lab.configs import PUBLISHED
from prle.lab.experiments import Lab
from prle.paper.figures import Figure5, Figure6, add_figure6
from prle.paper.numbers import BACKBONES, SUBSETS, TARGET_SETS, paper_table
from prle.lab.store import RunFailed
from prle.paper.tables import (
    Table2,
    Table3,
    Table4,
    Table5,
    Table6,
    Table7,
    attended_share,
    share_cells,
    share_table,
)

ARM_TABLES = [Table2(), Table3(), Table4(), Table5(), Table6(), Table7()]


def read(lab, cells):
    return {name: read_cell(lab, cell) for name, cell in cells.items()}


@pytest.fixture
def lab(tmp_path):
    "A lab that never looks at data."
    lab = Lab("mini", outputs=tmp_path)
    lab.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    return lab


def table(key, people=20, photos=4, shift=0.4, subset="DF"):
    draw, n = rng(key), people * photos
    label = np.arange(n) % 2
    identity = np.repeat([f"p{i:02}" for i in range(people)], photos)
    return pd.DataFrame(
        dict(
            identity=identity,
            label=label,
            subset=np.where(label, subset, "real"),
            p_fake=draw.uniform(size=n) * 0.7 + shift * label * 0.7,
        )
    )


def test_sums_are_the_cells():
    cells = {("a",): [table("a")], ("b",): [table("b", shift=0.1)]}
    sums = {
        "a": {("a",): 1},
        "b": {("b",): 1},
        "mean": {("a",): 0.5, ("b",): 0.5},
        "b - a": {("b",): 1, ("a",): -1},
    }
    found = estimate_sums(cells, {("a",): "auc", ("b",): "acc"}, sums).set_index("key")
    a, b = (t[0] for t in cells.values())
    auc, acc = 100 * roc_auc_score(a.label, a.p_fake), 100 * accuracy_score(b.label, b.p_fake > 0.5)
    assert found.value.to_dict() == pytest.approx(
        {"a": auc, "b": acc, "mean": (auc + acc) / 2, "b - a": acc - auc}
    )
    assert (found.low < found.value).all() and (found.value < found.high).all()


def test_the_interval_of_a_paired_difference_is_paired():
    a, b = table("a"), table("a")
    b["p_fake"] = b.p_fake * 0.5  # the same order
    found = estimate_sums(
        {"a": [a], "b": [b]},
        dict(a="auc", b="auc"),
        {"b - a": {"b": 1.0, "a": -1.0}, "a": {"a": 1.0}},
    ).set_index("key")
    assert (
        found.loc["b - a", ["value", "low", "high"]].tolist() == [0, 0, 0]
        and found.high["a"] - found.low["a"] > 1
    )


def test_people_of_different_test_sets_are_drawn_together():
    "A person's faces in two sets come and go together: the mean of two equal sets has the interval of one."
    cells = {"a": [table("a")], "b": [table("a")]}
    found = estimate_sums(
        cells, dict(a="auc", b="auc"), {"one": {"a": 1.0}, "mean": {"a": 0.5, "b": 0.5}}
    ).set_index("key")
    assert found.loc["one", ["low", "high"]].tolist() == pytest.approx(
        found.loc["mean", ["low", "high"]].tolist()
    )


def test_several_seeds_allow_for_seeds():
    seeds = [table("s0"), table("s0", shift=0.1), table("s0", shift=0.7)]
    for t in seeds[1:]:
        t["identity"] = seeds[0].identity
    r = estimate_sums({"a": seeds}, dict(a="auc"), {"a": {"a": 1.0}}).iloc[0]
    values = [100 * roc_auc_score(t.label, t.p_fake) for t in seeds]
    assert r.value == pytest.approx(np.mean(values)) and r.high - r.low > np.ptp(values), (
        "three seeds so far apart say little"
    )
    one = estimate_sums({"a": seeds[:1]}, dict(a="auc"), {"a": {"a": 1.0}}).iloc[0]
    assert r.high - r.low > one.high - one.low


def test_a_run_that_failed_is_a_gap_with_its_reason():
    found = estimate_sums(
        {"a": [table("a")], "b": Gap("it diverged")},
        dict(a="auc", b="auc"),
        {"a": {"a": 1.0}, "b": {"b": 1.0}, "mean": {"a": 0.5, "b": 0.5}},
    ).set_index("key")
    assert found.value.isna().to_dict() == dict(
        a=False, b=True, mean=True
    ) and found.note.to_dict() == dict(a="", b="it diverged", mean="it diverged")


def test_gaps_in_a_table(lab, monkeypatch):
    def run(lab, backbone, train, seed, **changes):
        if backbone == "VGG" and changes:
            raise RunFailed("detectors/VGG-DF-primary-s0", "the loss became nan in epoch 1")
        return backbone, len(changes)

    monkeypatch.setattr(Lab, "detector", run)
    monkeypatch.setattr(
        comparisons,
        "read_scores",
        lambda run: pd.concat(
            [table((run, s), subset=s, shift=0.4 + 0.2 * bool(run[1])) for s in SUBSETS]
        ),
    )
    values = read(lab, Table3().scores(lab, 1, backbones=["VGG", "Xception"]))
    rows = compare_arms(split_subsets(values, lab.subsets))
    assert (
        len(rows) == 5 * 2 * 5 * 7
        and "1 gap: detectors/VGG-DF-primary-s0 failed: the loss became nan" in gaps(rows)
        and gaps(rows[rows.backbone == "Xception"]) == ""
    )
    cells = rows.set_index(["backbone", "arm", "train", "test"]).value
    assert cells.loc["VGG"].isna().groupby(level=0).all().to_dict() == {
        "none": False,
        "primary": True,
        "primary - none": True,
        "ours": True,
        "ours - none": True,
    }
    assert cells["Xception", "primary - none", "FS", "NT"] == pytest.approx(
        cells["Xception", "primary", "FS", "NT"] - cells["Xception", "none", "FS", "NT"]
    )
    assert cells["Xception", "none", "FS", "unseen"] == pytest.approx(
        np.mean([cells["Xception", "none", "FS", t] for t in SUBSETS if t != "FS"])
    )
    with_paper = add_paper(lab, 3, rows)
    assert with_paper.equals(Table3().rows(lab, values)), "what the table shows"
    assert (
        with_paper.drop(columns="paper").equals(rows)
        and with_paper.set_index(["backbone", "arm", "train", "test"]).paper[
            "Xception", "none", "DF", "NT"
        ]
        == 83.74
    )
    shown = Table3().layout(lab, with_paper)
    assert len(shown) == 5 * 2 * 3 and shown.columns[-1] == "change, unseen"
    gone = shown[(shown.backbone == "VGG") & (shown.arm == "+ PRLE")]
    assert all(cell.startswith("gap") for cell in [*gone.DF, *gone["change, unseen"]])
    given = shown[(shown.backbone == "Xception") & (shown.train == "DF")].set_index("arm")
    assert given.NT["plain"].endswith("] *83.74*") and "*" not in given.NT["+ PRLE, our reading"]
    theirs = [
        np.mean(cells) for cells in ((28.91, 74.59, 66.34, 83.74), (30.25, 80.17, 71.9, 84.02))
    ]
    assert given.unseen["plain"].endswith(f"*{theirs[0]:.2f}*")
    assert given["change, unseen"]["plain"] == ""
    assert given["change, unseen"]["+ PRLE"].endswith(f"*{theirs[1] - theirs[0]:+.2f}*")


def test_no_mean_over_nothing():
    def sums(tests):
        return comparisons._sums([("VGG", "none", "DF"), ("VGG", "primary", "DF")], tests)

    assert {key[3] for key in sums(["DF", "NT"])} == {"DF", "NT", "AVG", "unseen"}
    assert {key[3] for key in sums(["DF"])} == {"DF", "AVG"}, "of one manipulation none is unseen"


def test_target_sets_stand_where_the_papers_stand(lab, tmp_path):
    assert paper_names(lab) == {
        "mini-DFDC": "DFDC",
        "mini-DF1": "DF-1.0",
        "mini-Celeb": "Celeb-DF",
    } and paper_tests(lab, 2) == list(TARGET_SETS)
    lab._sets = None, {"mini-Celeb": tmp_path}
    assert paper_names(lab) == {"mini-Celeb": "Celeb-DF"} and paper_tests(lab, 4) == ["Celeb-DF"], (
        "whatever else is there"
    )
    lab.manifest = pd.DataFrame(dict(subset=["real", "DF", "NT"]))
    assert paper_tests(lab, 3) == ["DF", "NT"]


def test_the_papers_average_is_over_the_tests_that_are_there(lab, tmp_path):
    def average(number, arm):
        return (
            paper_numbers(lab, number)
            .query("backbone == 'VGG' and arm == @arm and measure == 'AUC' and test == 'AVG'")
            .paper.item()
        )

    cells = paper_table(2).query("backbone == 'VGG' and arm == 'primary'")
    assert average(2, "primary") == cells["AVG:AUC"].item(), "as it is printed"
    lab._sets = None, {t: tmp_path for t in ("DF-1.0", "Celeb-DF")}
    assert average(2, "primary") == pytest.approx(
        (cells["DF-1.0:AUC"].item() + cells["Celeb-DF:AUC"].item()) / 2
    )
    assert average(4, "landmark") == pytest.approx(
        paper_table(4)
        .query("backbone == 'VGG' and arm == 'landmark'")[["DF-1.0", "Celeb-DF"]]
        .mean(axis=None)
    )


@pytest.mark.parametrize(
    "label, says", [(1, "mini-DF1 has no reals"), (0, "mini-DF1 has no fakes")]
)
def test_a_target_set_of_one_class_is_a_gap(lab, monkeypatch, label, says):
    faces = {
        t: pd.DataFrame(dict(label=[0, 1] if t != "mini-DF1" else [label])) for t in lab.targets
    }
    lab.test_faces = faces.__getitem__
    monkeypatch.setattr(Lab, "detector", lambda *args, **kwargs: None)
    monkeypatch.setattr(Lab, "target", lambda lab, run, target: target)
    monkeypatch.setattr(
        comparisons,
        "read_scores",
        lambda target: (
            table(target) if target != "mini-DF1" else pytest.fail("it cannot be measured")
        ),
    )
    rows = compare_arms(read(lab, target_cells(lab, [Arm("VGG", "none")], 1))).set_index("test")
    assert rows.value.isna().to_dict() == {
        "mini-DFDC": False,
        "mini-DF1": True,
        "mini-Celeb": False,
        "AVG": True,
    } and says in gaps(rows)


def test_no_target_sets_are_no_table(lab, tmp_path):
    lab._sets = None, {}
    for exhibit in (*ARM_TABLES[:1], *ARM_TABLES[2:], Figure5(), Figure6()):
        with pytest.raises(ValueError, match="this data has no target sets"):
            exhibit.cells(lab, 1)


def test_attended_shares_allow_for_seeds(lab, monkeypatch, tmp_path):
    def run(lab, zoo):
        (tmp_path / f"{zoo.seed}").mkdir(exist_ok=True)
        shares = pd.DataFrame(
            {
                "label": [0, 1, 1, 1],
                "identity": list("abcd"),
                "above 0": [0.9, *[0.1 + 0.2 * zoo.seed] * 3],
                "above 0.3": [0.9, 0.0, 0.1, 0.2],
            }
        )
        shares.to_parquet(tmp_path / f"{zoo.seed}/shares.parquet")
        return type("Run", (), dict(path=tmp_path / f"{zoo.seed}"))

    monkeypatch.setattr(Lab, "statistics", run)
    monkeypatch.setattr(tables, "run_file", lambda folder, name: folder / name)

    def measured(name, seeds):
        return attended_share(read(lab, share_cells(lab, [name], seeds)))

    one, three = (
        measured("VGG", seeds).query("subset == 'DF'").set_index("threshold") for seeds in (1, 3)
    )
    assert (
        one.share.tolist() == pytest.approx([10, 10])
        and one.loc[0.0, ["low", "high"]].tolist() == pytest.approx([10, 10])
        and one.loc[0.3, "high"] > 12
    ), "fakes alone"
    assert (
        three.share.tolist() == pytest.approx([30, 10]) and three.high[0.0] - three.low[0.0] > 40
    ), "three seeds so far apart say little"
    shown = share_table(three.reset_index()).set_index(["", "attention"]).DF
    assert (
        shown["VGG, paper", "not stated"] == "14.86"
        and shown["VGG, ours - paper", "> 0"] == "+15.1"
        and shown["VGG, ours - paper", "> 0.3"] == "-4.9"
    )
    assert (
        measured("neighbour", 1).paper.isna().all()
        and len(share_table(three.reset_index().assign(paper=np.nan))) == 2
    )


def test_a_zoo_that_diverged_is_a_gap_of_table1(lab, monkeypatch):
    def fail(*args):
        raise RunFailed("detectors/VGG-DF-none-s0", "the loss became nan")

    monkeypatch.setattr(Lab, "statistics", fail)
    rows = attended_share(read(lab, share_cells(lab, ["VGG"], 1)))
    assert (
        rows.share.isna().all()
        and "the loss became nan" in gaps(rows)
        and set(share_table(rows).iloc[0, 2:]) == {"gap"}
    )


@pytest.mark.parametrize(
    "name", [name for name, e in exhibits().items() if any(p.name == "seeds" for p in e.parameters)]
)
def test_no_seed_is_no_table(lab, name):
    lab.test_faces = lambda target="test", seed=0: (
        rows := pd.DataFrame(dict(label=[0, 1], subset="DF", mask="m")),
        rows.attrs.update(root="."),
    )[0]
    with pytest.raises(ValueError, match="seeds must be 1 or more"):
        exhibits()[name].plan(lab, seeds=0)
    with pytest.raises(ValueError, match="seeds must be 1 or more"):
        masked_cells(lab, -1)


def test_figure6_has_the_papers_averages_where_they_are_over_the_same_sets(lab, tmp_path):
    rows = pd.DataFrame(
        [
            (b, str(n), "all", test, measure)
            for b in ("Xception", "EfficientNet")
            for n in (1, 3)
            for test in ("mini-DFDC", "AVG")
            for measure in ("AUC", "ACC")
        ],
        columns=["backbone", "arm", "train", "test", "measure"],
    )
    found = add_figure6(lab, rows).dropna()
    assert found[["backbone", "arm", "test", "measure", "paper"]].values.tolist() == [
        ["EfficientNet", "1", "AVG", "AUC", 68.71],
        ["EfficientNet", "3", "AVG", "AUC", 71.68],
    ]
    lab._sets = None, {"mini-Celeb": tmp_path}
    assert add_figure6(lab, rows).paper.isna().all(), "an average over one set is another number"


def test_arms_of_the_tables(lab):
    arms = {
        table.number: table.arms(lab) if table.number != 3 else table.arms(lab, BACKBONES)
        for table in ARM_TABLES
    }
    assert {n: len(a) for n, a in arms.items()} == {2: 23, 3: 75, 4: 30, 5: 20, 6: 5, 7: 8}
    names = {v: k for k, v in BASELINES.items()}
    for n, some in arms.items():
        ours, papers = (
            {
                (names.get(a.backbone, a.backbone), a.name, a.train)
                for a in some
                if not a.name.startswith("ours") and not a.name.endswith("-matched")
            },
            paper_table(n),
        )
        assert ours == set(
            zip(
                papers.backbone,
                papers.arm,
                papers.train if "train" in papers else ["all"] * len(papers),
            )
        ), f"the rows of Table {n}"
    for some in arms.values():
        [*_, ours] = [a.changes for a in some if a.name == "ours"]
        assert ours == dict(mask="primary"), "every table has the method in our reading"
    changes = {a.name: a.changes for a in arms[5][:3] + arms[6] + arms[7]}
    assert all(PUBLISHED.items() <= changes[name].items() for name in ("neighbour", "X+E+V"))
    assert changes["ours-static"] == changes["ours"] | dict(alpha="static")
    assert (
        changes["low"]["fusion"] == LOW
        and changes["high"]["fusion"] == HIGH
        and (LOW.tau, HIGH.tau) == (0.1, 0.3)
    )
    assert (
        changes["V"]["zoo"] == ("VGG",)
        and changes["static"]["alpha"] == "static"
        and "alpha" not in changes["dynamic"]
    )
    figure6 = Figure6().arms(lab)
    assert [a.changes["zoo"] for a in figure6 if a.backbone == "Xception"] == [
        BACKBONES[:n] for n in range(1, 6)
    ] and len(figure6) == 10
    assert len(Figure5().arms(lab)) == 30 and {a.train for a in Figure5().arms(lab)} == {"DF", "FS"}


def test_table4_prints_how_much_each_mask_covers(lab):
    table4, values = Table4(), {}
    for arm in table4.arms(lab, ["VGG"]):
        values[*arm.key, "mini-Celeb"] = [table(arm.name)]
        values["masked", arm.name] = [0.25 if "matched" in arm.name else 0.4]
    values["masked", "random"] = Gap("diverged")
    shown = table4.layout(lab, table4.rows(lab, values)).set_index("arm").masked
    assert shown["+ PRLE"] == "40.0" and shown["+ landmark, matched"] == "25.0"
    assert shown["+ random"] == ""


def test_which_backbones(lab):
    own = list(lab.preset.backbones)
    assert own == ["EfficientNet", "EfficientNet-Lite1", "EfficientNet-Lite2"]
    assert {arm.backbone for arm in Table3().arms(lab, "all")} == {*BACKBONES, *own}
    assert (
        choose_backbones(lab, None) == own
        and choose_backbones(lab, "all") == list(BACKBONES)
        and choose_backbones(lab, ["VGG"]) == ["VGG"]
    )
    assert [a.backbone for a in Table7().arms(lab, ["EfficientNet", "VGG"])] == ["EfficientNet"] * 4
    with pytest.raises(ValueError, match="Did you mean 'EfficientNet'"):
        choose_backbones(lab, ["EffcientNet"])
    with pytest.raises(ValueError, match="unknown baseline 'RFN'"):
        Table2().arms(lab, detectors=["RFN"])


def test_every_arm_is_a_valid_configuration(lab):
    for arm in [
        arm for table in (*ARM_TABLES, Figure5(), Figure6()) for arm in table.arms(lab, "all")
    ]:
        config = lab.config(arm.backbone, arm.train, 0, **arm.changes)
        assert config.recipe.balance == (arm.train == "all") and (config.mask == "none") == (
            not arm.changes
        )
    assert Arm("VGG", "x").key == ("VGG", "x", "all") and [
        a.name for a in arms_of(["VGG"], PLAIN_AND_PRLE)
    ] == ["none", "primary"]


def test_cells_are_asked_once_an_arm_and_seed(lab):
    "On the test faces all manipulations come from one run."
    cells = score_cells([Arm("VGG", "none"), Arm("VGG", "primary")], 3)
    assert {key: len(wanted) for key, wanted in cells.items()} == {
        ("VGG", "none", "all"): 3,
        ("VGG", "primary", "all"): 3,
    }


@pytest.mark.parametrize("name", COUNTED)
def test_the_papers_operations_by_its_rule(name):
    model, given = (
        paper_network(name),
        paper_table(8).set_index(["backbone", "arm"]).loc[(name, "none")],
    )
    assert paper_gflops(model) == pytest.approx(given.GFLOPs, rel=0.0005)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        given.params, abs=0.006
    )
    assert abs(paper_gflops(model, 256) / given.GFLOPs - 1) > 0.2, (
        "the paper's size of faces does not fit"
    )
    assert abs(paper_gflops(model, per_norm=0) / given.GFLOPs - 1) > 0.005, (
        "nor does counting without batch normalization"
    )


def test_elements_of_batch_normalizations():
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5)
        ).eval()
    assert norm_elements(model, 8) == 2 * 5 * 4 * 4 and not any(m._forward_hooks for m in model)


def test_the_timed_sample_has_both_classes():
    rows = pd.DataFrame(dict(label=[0] * 10 + [1] * 50))
    assert (
        even_sample(rows, 16).label.value_counts().to_dict() == {0: 8, 1: 8}
        and len(even_sample(rows, 1000)) == 60
    )


def test_table8_compares_the_change_and_not_the_machines():
    def one(arm, q, v, paper):
        return dict(
            backbone="Xception", arm=arm, quantity=q, value=v, low=v - 2, high=v + 2, paper=paper
        )

    shown = efficiency_table(
        pd.DataFrame(
            [
                one("none", "GFLOPs", 545.55, 540.15),
                one("none", "train", 110.0, 269.72),
                one("change", "train", -1.2, -2.7),
            ]
        )
    ).set_index("arm")
    assert shown["GFLOPs (64 faces)"]["plain"] == "545.55 *540.15*"
    training = shown["training (faces/s)"]
    assert training["plain"] == "110 [108, 112] *269.72*", "as it is printed"
    assert training["change"] == "-1.2% [-3.2, +0.8] *-2.7%*"


def drawn_faces(people, name, seed):
    "Four faces of each person; the scores tell a little."
    draw, label = np.random.default_rng(seed), np.tile([0, 1], 2 * people)
    score = draw.normal(size=4 * people) + 0.7 * label + np.repeat(draw.normal(size=people), 4)
    who = np.repeat([f"{name}{i}" for i in range(people)], 4)
    return pd.DataFrame(dict(identity=who, label=label, p_fake=score))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_large_set_of_other_people_does_not_narrow_the_interval_of_a_small_one(seeds):
    small = [drawn_faces(4, "a", seed) for seed in range(seeds)]
    large = [drawn_faces(400, "b", seed) for seed in range(seeds)]
    alone = estimate_sums({"a": small}, dict(a="auc"), {"a": {"a": 1.0}}).iloc[0]
    cells, sums = {"a": small, "b": large}, {"a": {"a": 1.0}, "mean": {"a": 0.5, "b": 0.5}}
    found = estimate_sums(cells, dict.fromkeys(cells, "auc"), sums).set_index("key")
    both, mean = found.loc["a"], found.loc["mean"]
    assert both.people == mean.people == alone.people == 4
    assert both.high - both.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert mean.high - mean.low > 0.45 * (alone.high - alone.low), (
        "half of the mean is of four people"
    )

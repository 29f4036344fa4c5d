"prle.paper.claims: verdicts, and the two measures of forgery localization on maps whose answer is known."

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from prle.paper import claims as module
from prle.paper.claims import (
    CLAIM_GROUPS,
    CONTRASTS,
    LESS,
    MORE,
    BaselineClaims,
    ClaimGroup,
    Claims,
    ConvergedClaim,
    CrossClaim,
    MaskedClaims,
    OutsideClaim,
    PeopleClaims,
    PlaceClaims,
    Question,
    SettingClaims,
    SingleClaim,
    TargetClaims,
    TimeClaims,
    ZooSizeClaims,
    claim_list,
    claim_row,
    claims_table,
    compared_in,
    forgery_localization,
    inside_mask,
    localization_cells,
    localization_table,
    mean_difference,
    paper_difference,
    told_fakes,
)
from prle.metrics import Estimate, verdict
from prle.paper.comparisons import Arm, gaps, mean_interval
from prle.mini.targets import TARGETS as MINI_TARGETS
from prle.paper.exhibits import Gap, read_cell
from prle.lab.experiments import Lab
from prle.paper.numbers import BACKBONES, SUBSETS, TARGET_SETS, paper_cells
from prle.paper.figures import Figure5
from prle.paper.tables import Table2, Table3, Table4, Table6
from prle.lab.store import RunFailed
from prle.study.images import read_study
from studies import simulate, study

TARGETS = tuple(MINI_TARGETS)


@pytest.mark.parametrize(
    "low, high, wanted, says",
    [
        (0.1, 3, MORE, "holds"),
        (-0.1, 3, MORE, "undecided"),
        (-3, -0.1, MORE, "does not hold"),
        (0, 0, MORE, "does not hold"),
        (0, 2, MORE, "undecided"),
        (-3, -0.1, LESS, "holds"),
        (0.0, 1.0, LESS, "does not hold"),
        (4.5, 7, (4, 8), "holds"),
        (3, 9, (4, 8), "undecided"),
        (8.1, 9, (4, 8), "does not hold"),
        (1.0, 2.9, (-np.inf, 3), "holds"),
        (2.0, 4.0, (-np.inf, 3), "undecided"),
        (3.5, 4.0, (-np.inf, 3), "does not hold"),
        (np.nan, np.nan, MORE, "undecided"),
    ],
)
def test_verdicts(low, high, wanted, says):
    assert verdict(Estimate((low + high) / 2, low, high), wanted) == says


def test_means_over_faces():
    people = np.repeat([f"p{i}" for i in range(30)], 3)
    values = np.random.default_rng(0).normal(size=90)
    one = mean_interval([values], [people])
    assert one.value == pytest.approx(values.mean()) and one.low < one.value < one.high
    assert mean_interval([np.ones(4)], [list("aabc")])[:3] == (1, 1, 1)
    two = mean_interval([values, values + 3], [people] * 2)
    assert two.high - two.low > 3, "two seeds so far apart say little"


def test_means_over_faces_of_other_people():
    "Two seeds, each with people of its own, or with some of the other's, as in training."
    values = np.random.default_rng(0).normal(size=90)
    people = np.repeat([f"p{i}" for i in range(30)], 3)
    own = mean_interval([values[:45], values[45:]], [people[:45], people[45:]])
    assert own.value == pytest.approx((values[:45].mean() + values[45:].mean()) / 2)
    shared = mean_interval([values[:60], values[30:]], [people[:60], people[30:]])
    same = mean_interval([values, values], [people] * 2)
    assert same.variance == pytest.approx(mean_interval([values], [people]).variance)
    assert shared.low < shared.value < shared.high


@pytest.fixture
def faces(tmp_path):
    "A lab with four test fakes of DF whose manipulated pixels are the left half."
    lab = Lab("mini", outputs=tmp_path)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    rows = pd.DataFrame(
        dict(
            path=list("abcdef"),
            label=[0, 1, 1, 1, 1, 1],
            subset=["real", "NT"] + ["DF"] * 4,
            identity=list("xxxyyz"),
            mask=["", ""] + ["m.png"] * 4,
            landmarks=[np.zeros(136, np.float32)] * 6,
        )
    )
    rows.attrs["root"] = str(tmp_path)
    lab.test_faces = lambda split="test", seed=0: rows
    return lab


def read(lab, cells):
    return {name: read_cell(lab, cell) for name, cell in cells.items()}


def maps_that(monkeypatch, *maps):
    "Give these maps to every zoo that is asked for the four fakes."

    def fused(stores, fusion, size, rows):
        assert list(rows) == [2, 3, 4, 5]
        yield torch.stack([torch.as_tensor(m, dtype=torch.float32) for m in maps[:3]])
        yield torch.as_tensor(maps[3], dtype=torch.float32)[None]

    def asked(lab, zoo, split):
        assert split == "test"
        return []

    monkeypatch.setattr(Lab, "maps", asked)
    monkeypatch.setattr(module, "fused_batches", fused)


def test_attention_inside_the_mask(faces, monkeypatch):
    left, right, flat, nothing = (
        np.zeros((16, 16)),
        np.zeros((16, 16)),
        np.full((16, 16), 0.5),
        np.zeros((16, 16)),
    )
    left[3, 2], right[3, 12], right[3, 2] = 1, 0.75, 0.25
    rows = faces.test_faces()
    maps = [torch.as_tensor(np.stack(some)) for some in ((left, right, flat), (nothing,))]
    found = inside_mask(told_fakes(rows, "DF"), Path(rows.attrs["root"]), maps)
    assert found.area.tolist() == [0.5] * 4 and found.share.tolist() == pytest.approx(
        [1, 0.25, 0.5, 0]
    )
    assert found.hit.tolist() == [1, 0, 1, 0] and found.identity.tolist() == list("xyyz")
    with pytest.raises(ValueError):
        inside_mask(told_fakes(rows, "DF"), Path(rows.attrs["root"]), maps[:1])


def test_a_manipulation_without_masks_is_a_gap(faces, monkeypatch):
    faces.manifest = pd.DataFrame(dict(subset=["real", "DF", "NT"]))
    half = np.zeros((16, 16))
    half[:, :8] = 1
    maps_that(monkeypatch, *[half] * 4)

    def measured(names):
        return forgery_localization(read(faces, localization_cells(faces, names, 1)))

    rows = measured(["neighbour"]).set_index(["name", "subset", "measure"])
    gap, mean, df = (rows.loc[("neighbour", s, "share")] for s in ("NT", "mean", "DF"))
    assert (
        np.isnan(gap.value)
        and gap.note == "no test fake of NT has a mask of its manipulated pixels"
        and gap.note in gaps(rows)
    )
    assert mean.value == df.value == 100 and list(
        localization_table(rows.reset_index()).columns
    ) == ["", "measure", "DF", "NT", "mean"]
    assert {"gap", ""} == set(localization_table(rows.reset_index()).NT), "no number is made up"
    faces.manifest = pd.DataFrame(dict(subset=["real", "NT"]))
    q, group = Question(faces), PlaceClaims()
    assert [r["verdict"] for r in group.rows(q, read(faces, group.cells(q)))] == ["undecided"] * 2


def test_localization_is_measured_against_the_masks_area(faces, monkeypatch):
    faces.manifest = pd.DataFrame(dict(subset=["real", "DF"]))
    maps_that(monkeypatch, *[np.full((16, 16), 0.5)] * 4)
    rows = forgery_localization(read(faces, module.Localization().cells(faces, seeds=1))).set_index(
        ["name", "subset", "measure"]
    )
    assert len(rows) == 12 * 2 * 2 and rows.loc[
        ("neighbour", "DF", "share"), ["value", "area", "excess", "excess_low", "excess_high"]
    ].tolist() == pytest.approx([50, 50, 0, 0, 0])
    shown = localization_table(rows.reset_index())
    assert (
        shown.iloc[0]["DF"] == "50.0"
        and len(shown) == 1 + 12 * 4
        and "+0.0 [+0.0, +0.0]" in set(shown["mean"])
    )


def test_a_mean_of_differences():
    arms = [
        Arm(b, n, t) for b in ("A", "B") for t in ("DF", "FS") for n in ("primary", "none", "low")
    ] + [Arm("C", "primary")]
    parts = mean_difference(
        arms,
        lambda arm: [s for s in ("DF", "FS", "NT") if s != arm.train],
        "primary",
        ("none", "low"),
    )
    assert (
        sum(parts.values()) == pytest.approx(0)
        and not any(key[0] == "C" for key in parts)
        and len(parts) == 2 * 2 * 3 * 2
    )
    assert (
        parts["A", "primary", "DF", "FS"] == pytest.approx(1 / 8)
        and parts["A", "low", "DF", "FS"] == pytest.approx(-1 / 16)
        and ("A", "none", "DF", "DF") not in parts
    )
    assert mean_difference(arms[-1:], lambda arm: ["DF"], "primary", ("none",)) == {}


def test_the_papers_number_beside_a_claim():
    assert paper_difference(2, "primary", ("none",), BACKBONES, TARGET_SETS) == pytest.approx(
        6.14, abs=0.01
    ), "the paper's 6%"
    assert paper_difference(
        7, "dynamic", ("static",), ["EfficientNet"], TARGET_SETS
    ) == pytest.approx((0.78 + 4.30 + 5.22) / 3)
    assert paper_difference(7, "dynamic", ("static",), ["EfficientNet"], ["DFDC"]) == pytest.approx(
        0.78
    ), "over the target sets that are there"
    assert paper_difference(5, "low", ("high",), ["Xception"], TARGET_SETS) == pytest.approx(
        (67.07 - 64.85 + 66.28 - 65.11 + 64.46 - 63.57) / 3
    )
    alone = paper_difference(3, "primary", ("none",), ["Xception"], ["DF", "NT"])
    assert alone == pytest.approx(
        np.mean(
            [
                84.02 - 83.74,
                *paper_cells(3)
                .query("backbone == 'Xception' and train == 'NT' and test == 'DF'")
                .paper.diff()
                .dropna(),
            ]
        )
    )


NO_NUMBER = ("area", "ours", "readings")  # about arms that the paper does not have


@pytest.mark.parametrize("name", [name for name in CONTRASTS if name not in NO_NUMBER])
def test_the_signs_are_the_papers(name):
    number, plus, minus, wanted = CONTRASTS[name]
    assert (
        wanted[0] <= paper_difference(number, plus, minus, BACKBONES, TARGET_SETS) <= wanted[1]
    ), "what the paper claims holds for its own numbers"


@pytest.mark.parametrize("name", NO_NUMBER)
def test_no_number_of_the_paper_stands_beside_our_reading(name):
    number, plus, minus, _ = CONTRASTS[name]
    assert np.isnan(paper_difference(number, plus, minus, BACKBONES, TARGET_SETS))


def statements(lab, group, backbones="all"):
    lab.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    lab._sets = None, dict.fromkeys(TARGETS, Path())
    q = Question(lab, backbones=backbones)
    cells, found = {arm.key for arm in group.arms(q)}, group.statements(q)
    assert set(found) == set(group.names)
    for statement in found.values():
        assert {key[:3] for key in statement.weights} <= cells
        assert {key[3] for key in statement.weights} == set(TARGETS)
        assert sum(statement.weights.values()) == pytest.approx(0), "a difference"
    return found


def test_the_papers_number_beside_each_sum(faces):
    "Section IV-C1: more by 4 and 3% than SRM and RFM; Section IV-D2: 68.71, 71.68 and 72.25."
    found = statements(faces, BaselineClaims())
    assert found["srm"].paper == pytest.approx(67.31 - 62.75, abs=0.01)
    assert found["rfm"].paper == pytest.approx(67.31 - 64.03, abs=0.01)
    eight = [50.13, 59.18, 63.18, 56.38, 62.66, 62.75, 64.03, 64.34]
    five = [67.31, 71.68, 66.68, 70.65, 65.93]
    assert found["baselines"].paper == pytest.approx(np.mean(five) - np.mean(eight), abs=0.01)
    other = statements(faces, BaselineClaims(), ["VGG", "vgg16"])["baselines"]
    assert np.isnan(other.paper) and other.weights, "a backbone that the paper does not have"
    found = statements(faces, OutsideClaim(), ["VGG"])
    outside = np.mean([70.65 - 63.83, 65.93 - 62.48])
    assert found["outside"].paper == pytest.approx(outside, abs=0.01), "whatever was asked for"
    found = statements(faces, ZooSizeClaims())
    assert found["more"].paper == pytest.approx(72.25 - 68.71)
    early, late = (71.68 - 68.71) / 2, (72.25 - 71.68) / 2
    assert found["slows"].paper == pytest.approx(early - late) and early > late
    faces._sets = None, {"mini-Celeb": Path()}
    group = ZooSizeClaims()
    assert np.isnan(group.paper(Question(faces), group.contrasts["more"])), "the average of three"


def test_claims_are_about_the_backbones_that_the_tables_show(faces):
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    faces._sets = None, dict.fromkeys(TARGETS, Path())
    none, all_, one = (Question(faces, backbones=names) for names in (None, "all", ["VGG"]))
    zoo = list(faces.preset.backbones)
    for table in (Table2(), Table4(), Table6()):
        assert compared_in(table, none) == list(BACKBONES)
    for table in (Table3(), Figure5()):
        assert compared_in(table, none) == zoo != list(BACKBONES)
        assert compared_in(table, all_) == list(BACKBONES) and compared_in(table, one) == ["VGG"]
    assert {arm.backbone for arm in CrossClaim().arms(none)} == set(zoo)
    assert {arm.backbone for arm in TargetClaims().arms(none)} == set(BACKBONES)


def test_the_paper_tells_no_number_of_some(faces):
    assert np.isnan(statements(faces, SingleClaim())["single"].paper)
    found = statements(faces, SettingClaims())
    assert all(np.isnan(s.paper) and s.wanted == (-2, 2) for s in found.values())
    configs = {arm.name: arm.changes for arm in SettingClaims().arms(Question(faces))}
    assert configs["p=0.25"]["p"] == 0.25 and configs["gamma=2.0"]["gamma"] == 2
    assert np.isnan(statements(faces, TargetClaims())["area"].paper)


def test_sums_are_tested_on_scores(faces):
    "SRM and RFM know the label a little, Xception with PRLE better, the other networks nothing."
    draw = np.random.default_rng(0)
    rows = pd.DataFrame(dict(label=np.tile([0, 1], 60), identity=np.repeat(np.arange(20), 6)))
    gains = dict(srm=0.3, rfm=0.3, Xception=0.9)
    group, values = BaselineClaims(), {}
    found = statements(faces, group, ["Xception"])
    for key in {key for s in found.values() for key in s.weights}:
        p = draw.uniform(size=120) + gains.get(key[0], 0.0) * rows.label
        values[key] = [rows.assign(p_fake=p)]
    srm, rfm, others = group.rows(Question(faces, backbones=["Xception"]), values)
    assert srm["verdict"] == rfm["verdict"] == others["verdict"] == "holds"
    assert srm["value"] < others["value"] and srm["note"] == ""
    values["srm", "none", "all", TARGETS[0]] = Gap("the loss became nan")
    notes = [row["note"] for row in group.rows(Question(faces, backbones=["Xception"]), values)]
    assert notes == ["the loss became nan", "", "the loss became nan"]


@pytest.mark.parametrize(
    "first, last, says",
    [
        (36, 24, "holds"),
        (24, 24, "does not hold"),
        (40, 36, "does not hold"),
        (20, 12, "does not hold"),
    ],
)
def test_where_masked_accuracy_ends(faces, first, last, says):
    faces.manifest = pd.DataFrame(dict(subset=["real", "DF"]))
    rows = pd.DataFrame(dict(label=[0, 1] * 200, identity=np.repeat(np.arange(200), 2)))
    values = {}
    for alpha, right in ((0.0, first), (1.0, last)):
        wrong = np.tile(np.arange(40), 10) >= right
        values["DF", alpha] = [rows.assign(p_fake=np.where(wrong, 1 - rows.label, rows.label))]
    [row] = ConvergedClaim().rows(Question(faces), values)
    assert row["value"] == 100 * last / 40
    assert row["verdict"] == says


def known(**values):
    return lambda cells, measures, sums: pd.DataFrame(
        [dict(key=k, value=v[0], low=v[1], high=v[2], note="") for k, v in values.items()]
    )


@pytest.mark.parametrize(
    "fall, down, verdicts",
    [
        ((-20, -25, -15), (3, 1, 5), ["holds", "holds"]),
        ((-4, -8, 1), (3, 1, 5), ["undecided", "undecided"]),
        ((5, 2, 8), (3, 1, 5), ["does not hold", "does not hold"]),
        ((-4, -8, 1), (-3, -6, -1), ["undecided", "does not hold"]),
        ((-20, -25, -15), (1, -1, 3), ["holds", "undecided"]),
    ],
)
def test_levelling_off_needs_a_fall(faces, monkeypatch, fall, down, verdicts):
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    drop = [-end for end in (fall[0], fall[2], fall[1])]
    sums = known(fall=fall, drop=drop, down=down, up=(4, 2, 6))
    monkeypatch.setattr(module, "estimate_sums", sums)
    rows = MaskedClaims().rows(Question(faces), {})
    assert [row["verdict"] for row in rows] == verdicts
    shown = rows[1]
    said = verdict(shown["estimate"], MORE, module.MARGIN)
    assert said == shown["verdict"], "the number is that of the part that decides"


def test_the_part_that_decides_is_shown(faces, monkeypatch):
    "Where accuracy rises in the end for certain, and whether it falls once more is open."
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    sums = known(fall=(-20, -25, -15), drop=(20, 15, 25), down=(-5, -12, 3), up=(-3, -4, -2.5))
    monkeypatch.setattr(module, "estimate_sums", sums)
    levels = MaskedClaims().rows(Question(faces), {})[1]
    assert (levels["value"], levels["verdict"]) == (-3, "does not hold")


@pytest.mark.parametrize(
    "accuracy, value, says",
    [
        ((95, 65, 62), 4.5, "holds"),
        ((95, 65, 40), -17.5, "does not hold"),
        ((95, 65, 68), 4.5, "holds"),
        ((95, 65, 90), -17.5, "does not hold"),
    ],
)
def test_levelling_off_is_no_further_fall_and_no_rise(faces, monkeypatch, accuracy, value, says):
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    at = dict(zip((0.0, 0.7, 1.0), accuracy))

    def sums_of(cells, measures, sums):
        assert all(abs(sum(weights.values())) < 1e-9 for weights in sums.values()), "differences"
        return pd.DataFrame(
            [
                dict(
                    key=k,
                    value=(v := sum(w * at[a] for (_, a), w in weights.items())),
                    low=v - 1,
                    high=v + 1,
                    note="",
                )
                for k, weights in sums.items()
            ]
        )

    monkeypatch.setattr(module, "estimate_sums", sums_of)
    falls, levels = MaskedClaims().rows(Question(faces), {})
    assert (
        falls["value"] == pytest.approx(accuracy[2] - accuracy[0])
        and levels["value"] == pytest.approx(value)
        and levels["verdict"] == says
    )


def test_a_slower_training_costs_time(faces, monkeypatch):
    change = pd.DataFrame(
        dict(
            arm="change",
            backbone="Xception",
            quantity=["train", "infer"],
            value=[-2.95, 0.0],
            low=[-20.0, -1.0],
            high=[25.0, 1.0],
            paper=[-2.70651, 0.0],
        )
    )
    monkeypatch.setattr(module, "efficiency", lambda lab, rounds: change)
    monkeypatch.setattr(module, "static_run", lambda lab, rounds: None)
    speed = pd.DataFrame(dict(round=[1, 2, 3], static=[9.0, 30.0, 31.0]))
    monkeypatch.setattr(module, "read_throughput", lambda run: speed)
    train, infer, static = TimeClaims().rows(Question(faces), {})
    assert (static["value"], static["verdict"], static["paper"]) == (30, "undecided", 10)
    assert (
        train["value"] == pytest.approx(100 * (1 / 0.9705 - 1))
        and train["value"] > 3
        and train["paper"] == pytest.approx(2.7818, abs=1e-4)
    )
    assert (train["low"], train["high"]) == pytest.approx((-20, 25)) and train[
        "verdict"
    ] == "undecided", "a fifth less throughput is a quarter more time"
    assert infer["verdict"] == "holds"


def test_claims_about_people_need_people(faces, tmp_path):
    with pytest.raises(ValueError, match="there is no user study yet"):
        PeopleClaims().rows(Question(faces), {})
    made = study(tmp_path / "made", participants=12, images=8, n=20)
    folder = tmp_path / "mini/userstudy"
    folder.parent.mkdir()
    made.path.rename(folder)
    with pytest.raises(ValueError, match="no responses that count"):
        PeopleClaims().rows(Question(faces), {})
    simulate(read_study(folder), lambda key: 0.97 if key["mask"] == "none" else 0.55)
    with pytest.raises(ValueError, match="simulated"):
        PeopleClaims().rows(Question(faces), {})
    for path in (folder / "responses").iterdir():
        path.write_text(path.read_text().replace('"simulated": true', '"simulated": false'))
    people, of_fakes, of_reals, grows = PeopleClaims().rows(Question(faces), {})
    assert of_fakes["value"] < 0 and of_reals["value"] < 0 and np.isnan(of_fakes["paper"])
    assert (
        people["value"] < -20
        and people["verdict"] == "holds"
        and people["paper"] == -10
        and people["low"] < people["value"] < people["high"]
    )
    assert np.isnan(grows["paper"]) and grows["verdict"] != "holds", "as hard at every alpha"


class Told(ClaimGroup):
    "Claims with a known answer."

    def __init__(self, names, rows):
        self.names, self.rows = names, lambda q, values: rows()


def test_what_cannot_be_tested_is_undecided_and_says_why(faces, monkeypatch):
    def row(name):
        return claim_row(name, (2.0, 1.0, 3.0), MORE)

    def fail():
        raise RunFailed("detectors/VGG-DF-none-s0", "the loss became nan")

    groups = [
        Told(tuple(CONTRASTS), lambda: []),
        Told(["cross"], lambda: [row("cross")]),
        Told(["falls", "levels"], fail),
        PeopleClaims(),
        Told(["share"], lambda: [row("share")]),
        Told(["train", "infer"], lambda: [row("train"), row("infer")]),
        Told(["inside", "hit"], fail),
    ]
    monkeypatch.setattr(module, "CLAIM_GROUPS", groups)
    found = module.claims(Question(faces), {}).set_index("name")
    assert (
        len(found) == 41
        and set(found.verdict[["cross", "share", "train"]]) == {"holds"}
        and set(found.verdict[["prle", "falls", "hit"]]) == {"undecided"}
    )
    assert (
        "the loss became nan" in found.note["levels"]
        and found.note["people"] == "there is no user study yet"
        and "lack what the test compares" in found.note["zoo"]
    )
    assert claims_table(found.reset_index()).ours.str.contains("gap: ").sum() == 37


def test_each_claim_is_tested_by_one_group_with_its_own_cells(faces):
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    assert sorted(name for group in CLAIM_GROUPS for name in group.names) == sorted(
        claim_list().name
    )
    faces._sets = None, {}
    cells = Claims().cells(faces, **Claims().settings())
    groups = {type(CLAIM_GROUPS[number]).__name__ for number, _ in cells}
    wanted = {"CrossClaim", "MaskedClaims", "ConvergedClaim", "ShareClaim", "LookClaims"}
    assert groups == wanted | {"PlaceClaims"} and all(
        isinstance(name, tuple) for _, name in cells
    ), "people and time need no runs; this data has no target sets"


def test_no_difference_is_made_of_other_networks(faces):
    "Those of Tables I and III where the preset's zoo is not the paper's, and of Figure 6."
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    paper = Lab("smoke", outputs=faces.outputs)  # networks of the paper's names

    def unlike(q):
        groups = [group for group in CLAIM_GROUPS if not group.same_networks(q)]
        return {name for group in groups for name in group.names}

    of_figure6, cross = {"more", "slows"}, {"cross", "cross_ours"}
    assert unlike(Question(faces)) == of_figure6 | cross | {"share"}
    assert unlike(Question(faces, backbones="all")) == of_figure6 | {"share"}
    assert unlike(Question(paper)) == of_figure6
    assert {"prle", "cross", "zoo"} <= unlike(Question(paper, backbones=["VGG", "vgg16"]))
    rows = claim_list().query("name in ['prle', 'share']")
    numbers = dict(value=3.0, low=1.0, high=5.0, verdict="holds", needs="", paper=6.0, note="")
    shown = claims_table(rows.assign(**numbers), ["share"])
    assert shown["ours - paper"].tolist() == ["-3.0", ""]
    assert shown.paper.tolist() == ["+6.0", "+6.0%"]


def test_localization_can_be_equivalent_to_none(faces):
    "The interval of 90%, which says so, is that of the same estimate."
    faces.manifest = pd.DataFrame(dict(subset=["real", "DF"]))
    people = np.repeat(np.arange(20), 4)
    near = 0.5 + 0.01 * (-1) ** people
    table = pd.DataFrame(dict(area=0.5, share=near, hit=near, identity=people))
    inside, hit = PlaceClaims().rows(Question(faces), {("neighbour", "DF"): [table]})
    assert inside["verdict"] == hit["verdict"] == "equivalent"
    excess = forgery_localization({("neighbour", "DF"): [table]}).excess
    assert inside["value"] == excess[0] and inside["estimate"].people == 20


def test_the_claims(faces):
    faces.manifest = pd.DataFrame(dict(subset=["real", *SUBSETS]))
    listed = claim_list()
    assert (
        len(listed) == 41
        and listed.name.is_unique
        and listed.notna().all(axis=None)
        and set(listed.unit) == {"points", "%", "images/s"}
    )
    assert {a.name for a in TargetClaims().arms(Question(faces))} >= {
        "none",
        "primary",
        "random",
        "landmark",
        "neighbour",
        "low",
        "high",
        "X+E+V",
        "X",
        "dynamic",
        "static",
        "ours",
    }
    rows = listed.head(2).assign(
        value=[1.0, np.nan],
        low=[0.5, np.nan],
        high=[2.0, np.nan],
        verdict=["holds", "undecided"],
        needs=["", "8 seeds, 40 people"],
        paper=[6.8, np.nan],
        note=["", "it diverged"],
    )
    shown = claims_table(rows)
    assert (
        shown.ours.tolist() == ["+1.0 [+0.5, +2.0]", "gap: it diverged"]
        and shown["ours - paper"].tolist() == ["-5.8", ""]
        and shown.verdict.tolist()
        == ["**holds**", "**undecided**: 8 seeds, 40 people would decide"]
    )


@pytest.mark.parametrize(
    "noise, needs",
    [
        (dict(seed_variance=4.0, person_variance=20.0, seeds=4), "10 seeds, 4 people"),
        (dict(seed_variance=np.nan, person_variance=20.0, seeds=1), "2 seeds or more"),
        (dict(seed_variance=4.0, person_variance=2000.0, seeds=4), "people"),
    ],
)
def test_an_undecided_claim_says_what_it_needs(faces, noise, needs):
    faces.manifest = pd.DataFrame(dict(identity=list("abcd")))
    e = Estimate(1.0, -4.0, 6.0, -3.0, 5.0, variance=6.0, freedom=8.0, people=4, **noise)
    row = claim_row("prle", e, MORE)
    found = module._needs(faces, row)
    assert row["verdict"] == "undecided" and found.endswith(needs.removeprefix("10 seeds, "))
    assert module._needs(faces, claim_row("prle", e._replace(low=0.5), MORE)) == ""
    assert module._needs(faces, claim_row("share", Estimate(19, 15, 25), (0, 20))) == ""
    within = claim_row("prle", e._replace(inner_low=-1.9, inner_high=1.8), MORE)
    assert within["verdict"] == "equivalent" and module._needs(faces, within) == ""

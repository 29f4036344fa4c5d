"The controls: traces where they belong and nowhere else, masks that know, and what a lab makes of them."

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from prle.data.crops import read_mask, read_rgb
from prle.data.faces import Face, orl_folder, write_png
from prle.data.pictures import read_image
from prle.data.manifest import check_crops, fold_count, of_seed, read_manifest, select
from prle.lab.configs import PRESETS, RunConfig
from prle.lab.experiments import Lab
from prle.mini import controls
from prle.mini.controls import (
    FRAMES,
    PLACES,
    PLANTED_SUBSETS,
    PlantedMask,
    build_controls,
    frame,
    place_region,
    plant,
    shared_trace,
    strong_trace,
)
from prle.paper import controls as module
from prle.paper import sensitivity
from prle.paper.exhibits import Gap
from prle.paper.sensitivity import Sensitivity
from prle.paper.controls import (
    MASK_MEASURES,
    CONTROL_VARIANTS,
    STUDENT,
    attention_inside,
    control_arms,
    control_numbers,
    control_table,
    make_controls,
    planted_coverage,
    zoo_apart,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_controls(tmp_path_factory.mktemp("controls") / "made", people=6)


@pytest.fixture(scope="module")
def rows(built):
    return read_manifest(built)


def test_a_frame_and_a_photograph_of_one_name_are_two_videos():
    def face(photo, frame=None):
        person = photo.split("/")[0]
        return Face(np.zeros((8, 8, 3)), np.zeros((68, 2)), 1, photo, person, frame)

    others = [face(f"p{i}/1.png") for i in range(6)] + [face("p1/clip.mp4", i) for i in (0, 4)]
    clash = [face("p0/clip.mp4", 4), face("p0/clip-0004.png")]
    videos = [plan.video for plan in controls._plans([*others, *clash], 0)]
    assert len(set(videos)) == 10
    plain = [f"p{i}-1" for i in range(6)] + ["p1-clip", "p1-clip-0004"]
    assert list(dict.fromkeys(videos))[:8] == plain


def picture(rows, row):
    return read_rgb(f"{rows.attrs['root']}/{row.path}").astype(int)


def test_every_frame_is_there_once_as_real_and_once_in_every_manipulation(built, rows):
    photos = rows[rows.subset == "real"].groupby("split").video.nunique()
    for split, count in photos.items():
        there = rows[rows.split == split].subset.value_counts()
        assert set(there.index) == {"real", *PLANTED_SUBSETS}
        assert set(there) == {count * FRAMES}
    assert rows.groupby("identity").split.nunique().max() == 1
    assert check_crops(built)[0].empty


def test_the_seeds_test_all_people_once_each(rows):
    tested = [set(select(of_seed(rows, seed), "test").identity) for seed in range(fold_count(rows))]
    assert len(tested) == 3 and sum(map(len, tested)) == rows.identity.nunique()
    assert set.union(*tested) == set(rows.identity)


def test_a_fake_differs_from_its_real_by_the_traces_alone(rows):
    "What the JPEG smears may lie a block beyond the place."
    keys = ["identity", "video", "frame"]
    both = rows[rows.subset.isin(["shared", "nose"])].groupby(keys)
    for _, pair in list(both)[:20]:
        shared, nose = pair.set_index("subset").loc[["shared", "nose"]].itertuples()
        far = ~place_region(np.reshape(nose.landmarks, (68, 2)), "nose", 64, margin=12)
        change = np.abs(picture(rows, shared) - picture(rows, nose)).max(-1)
        assert change[far].max() == 0
        assert change[read_mask(f"{rows.attrs['root']}/{nose.mask}", (64, 64)) > 0].mean() > 10


def test_what_has_no_trace_comes_from_frames_of_its_own(rows):
    "Otherwise fakes would be copies of the reals, and chance would be exact."
    frames = rows[rows.split == "train"].groupby("subset").frame.agg(set)
    assert not frames["none"] & frames["real"]
    assert all(frames[place] == frames["real"] for place in (*PLACES, "shared"))


def test_the_same_settings_give_the_same_pictures_and_are_not_made_again(
    built, tmp_path, capsys, shown
):
    again = read_manifest(build_controls(tmp_path / "again", people=6))
    first = read_manifest(built)
    pd.testing.assert_frame_equal(first, again)
    for path in first.path[::97]:
        assert (built.parent / path).read_bytes() == (tmp_path / "again" / path).read_bytes()
    capsys.readouterr()
    build_controls(tmp_path / "again", people=6)
    assert "HIT" in capsys.readouterr().out
    (tmp_path / "again" / first.path[0]).unlink()
    build_controls(tmp_path / "again", people=6)
    assert "1 of" in capsys.readouterr().out
    assert (tmp_path / "again" / first.path[0]).exists()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="mine"):
        build_controls(tmp_path / "mine", people=6)
    assert (tmp_path / "mine/thesis.txt").read_text() == "mine"


def landmarks(size):
    "Plausible landmarks: eyes, nose and mouth in their places."
    points = np.full((68, 2), size / 2, np.float32)
    points[36:42], points[42:48] = (0.33 * size, 0.4 * size), (0.67 * size, 0.4 * size)
    points[30:36], points[48:68] = (0.5 * size, 0.58 * size), (0.5 * size, 0.75 * size)
    points[21:23], points[13] = (0.5 * size, 0.32 * size), (0.85 * size, 0.62 * size)
    return points


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [48, 64, 128])
def test_a_strong_trace_lies_in_its_place_and_the_oracle_covers_it(place, size):
    points = landmarks(size)
    trace, region = strong_trace(points, place, size), place_region(points, place, size)
    assert np.abs(trace[~region]).max() < 1e-9
    assert np.abs(trace).max() > 40
    image = torch.randint(256, (2, 3, size, size)).float()
    planted = image + torch.from_numpy(trace).float()
    mask, both = PlantedMask(place, p=1.0), np.stack([points, points])
    torch.testing.assert_close(mask(image, both), mask(planted, both), rtol=0, atol=1e-9)
    assert mask(image, both).eq(0).all(1).float().mean() < 0.2


def test_the_shared_trace_takes_detail_and_leaves_the_rest():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.float32)
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.float32)[:, None, None], (1, 64, 3))
    assert shared_trace(noise).std() < 0.8 * noise.std()
    assert np.abs(shared_trace(smooth) - smooth)[2:-2].max() < 1


def test_frames_are_drawn_from_their_numbers(monkeypatch):
    face = Face(np.zeros((128, 128, 3), np.uint8), landmarks(128), 1, "a/1.png", "a")
    one, two = frame(face, 1, 64), frame(face, 2, 64)
    assert (one.landmarks == frame(face, 1, 64).landmarks).all()
    assert np.abs(one.landmarks - two.landmarks).max() > 0.2
    assert np.abs(one.landmarks - face.landmarks / 2).max() < 64 / 24 + 6
    assert (frame(face, 1, 64, seed=1).landmarks != one.landmarks).any()


def test_nothing_is_planted_where_nothing_is_asked_for():
    face = Face(np.full((64, 64, 3), 90, np.uint8), landmarks(64), 1)
    assert (plant(face, "none") == face.crop).all()
    with pytest.raises(ValueError, match="unknown manipulation 'ear'"):
        plant(face, "ear")


@pytest.mark.parametrize("place, subset", [("shared", "shared"), ("none", "none"), ("DF", "DF")])
def test_there_is_no_oracle_of_what_has_no_place(place, subset):
    with pytest.raises(ValueError, match="place of the controls"):
        RunConfig("meso4", subset, "controls", mask="oracle")


def test_an_oracle_knows_the_place_of_its_training():
    config = RunConfig("meso4", "cheek", "controls", mask="oracle", p=0.25, fill="mean")
    policy = config.policy()
    assert (policy.place, policy.p, policy.fill) == ("cheek", 0.25, "mean")
    assert config.key()["mask"] == "oracle"


def test_a_lab_makes_the_controls_and_has_no_target_sets(built):
    lab = Lab("controls", data=built)
    assert lab.subsets == list(PLANTED_SUBSETS)
    assert Lab("controls").targets == []
    assert PRESETS["controls"].benchmark == "controls"
    assert controls.RECIPE >= 1


def scores(seed, subset_gain):
    "Made-up scores of ten people's reals and fakes; a gain lifts the fakes of a subset."
    draw, rows = np.random.default_rng(seed), []
    for person in range(10):
        for subset in ("real", "nose", "mouth", "shared", "none"):
            for _ in range(3):
                score = draw.normal() + subset_gain.get(subset, 0.0)
                rows.append((subset, f"p{person}", int(subset != "real"), score))
    return pd.DataFrame(rows, columns=["subset", "identity", "label", "p_fake"])


def auc_on(table, subset):
    "By counting pairs."
    real, fake = (table.p_fake[table.subset == name].to_numpy() for name in ("real", subset))
    return 100 * (fake[:, None] > real).mean()


def test_gains_are_those_on_the_places_that_were_not_trained_on():
    places, values = ("nose", "mouth"), {}
    for number, arm in enumerate(control_arms(places)):
        lifted = {"nose": 0.5, "mouth": 1.0} if arm.name == "oracle" else {}
        values[arm.key] = [scores(10 * number + seed, lifted) for seed in range(2)]
    rows = control_numbers(values, places).set_index(["arm", "train", "what"])

    def mean(arm, train, test):
        return np.mean([auc_on(table, test) for table in values[STUDENT, arm, train]])

    nose = mean("oracle", "nose", "mouth") - mean("none", "nose", "mouth")
    mouth = mean("oracle", "mouth", "nose") - mean("none", "mouth", "nose")
    assert rows.value["oracle", "nose", "gain"] == pytest.approx(nose)
    assert rows.value["oracle", "places", "gain"] == pytest.approx((nose + mouth) / 2)
    lead = np.mean([mean("ours", a, b) - mean("oracle", a, b) for a, b in (places, places[::-1])])
    assert rows.value["oracle", "places", "lead of ours"] == pytest.approx(lead)
    own = (mean("oracle", "nose", "nose") + mean("oracle", "mouth", "mouth")) / 2
    assert rows.value["oracle", "places", "own"] == pytest.approx(own)
    shared = mean("published", "shared", "shared") - mean("none", "shared", "shared")
    assert rows.value["published", "shared", "gain"] == pytest.approx(shared)
    assert (rows.low <= rows.value).all() and (rows.value <= rows.high).all()
    found = dict.fromkeys(MASK_MEASURES, [50.4]) | dict(masked=[20.0], covered=[80.0])
    masks = pd.DataFrame(found, index=["ours"])
    shown = control_table(rows.reset_index(), masks).set_index("arm")
    assert len(shown) == len(CONTROL_VARIANTS)
    assert shown.covered["PRLE, our reading"] == "80"
    assert shown["of the oracle's"]["oracle: the planted place"] in ("100%", "")


@pytest.mark.parametrize(
    "inner, said",
    [
        ((-1.9, 1.9), "-1.0 [-9.0, +9.0] (equivalent)"),
        ((-2.55, 0.5), "-1.0 [-9.0, +9.0] (within 2.6)"),
        ((-1.0, 3.0), "-1.0 [-9.0, +9.0] (within 3.0)"),
        ((np.nan, np.nan), "-1.0 [-9.0, +9.0]"),
    ],
)
def test_without_a_strong_trace_the_table_says_within_how_many_points_no_mask_matters(inner, said):
    known = dict(value=-1.0, low=-9.0, high=9.0, inner_low=inner[0], inner_high=inner[1])
    keys = [("oracle", "places", "gain"), ("ours", "shared", "gain")]
    rows = pd.DataFrame([dict(arm=a, train=t, what=w) | known for a, t, w in keys])
    shown = control_table(rows, pd.DataFrame(columns=MASK_MEASURES)).set_index("arm")
    assert shown["shared alone"]["PRLE, our reading"] == said


@pytest.mark.parametrize("folds", [3, 4])
def test_the_zoo_is_apart_and_tests_whom_its_student_tests(folds):
    ours = next(arm for arm in control_arms() if arm.name == "ours")
    seeds = [zoo_apart(ours, seed % folds).changes["zoo_seed"] for seed in range(12)]
    assert [seed % folds for seed in seeds] == [seed % folds for seed in range(12)]
    assert len(set(seeds)) == folds and min(seeds) > 50, "one a fold, and no student's seed"
    for arm in control_arms():
        has_zoo = arm.changes.get("mask", "oracle") != "oracle"
        assert ("zoo_seed" in zoo_apart(arm).changes) == has_zoo


def test_coverage_is_that_of_the_face_and_of_the_planted_place():
    draw = np.random.default_rng(0)
    masked, planted = draw.random((2, 5, 8, 8)) < 0.4
    covered = [(m & p).sum() / p.sum() for m, p in zip(masked, planted)]
    expected = dict(masked=masked.mean(), covered=np.mean(covered))
    assert planted_coverage(masked, planted) == pytest.approx(expected)


def test_attention_that_is_the_same_everywhere_is_chance_and_that_of_the_place_is_not():
    draw = np.random.default_rng(1)
    planted = np.zeros((6, 8, 8), bool)
    for place, (y, x) in zip(planted, draw.integers(0, 6, (6, 2))):
        place[y : y + 2, x : x + 2] = True
    even = attention_inside(np.ones(planted.shape), planted)
    assert even == pytest.approx(dict.fromkeys(even, 4 / 64))
    own = attention_inside(planted * 0.7, planted)
    others = [(planted[k - 3] & planted[k]).sum() / 4 for k in range(6)]
    assert own["inside"] == pytest.approx(1) and own["uniform"] == pytest.approx(4 / 64)
    assert own["other face"] == pytest.approx(np.mean(others)) and own["mean map"] < 1


def test_a_sibling_shares_the_store_and_is_dry_where_the_lab_is(tmp_path):
    lab = Lab("smoke", outputs=tmp_path)
    beside = lab.sibling("controls-smoke")
    assert beside.name == "controls-smoke" and beside.store is lab.store
    assert lab.sibling("controls-smoke") is beside
    vars(lab)["fingerprint"] = "0" * 16
    assert lab.dry().sibling("controls-smoke").store is not lab.store
    assert lab.sibling("controls-smoke").store is lab.store


def test_the_controls_are_made_of_ones_own_photographs(tmp_path, monkeypatch, capsys, shown):
    "With two arms; asked again, nothing is made."
    for number in range(1, 7):
        (tmp_path / f"faces/p{number}").mkdir(parents=True)
        for photo in (1, 2, 3):
            picture = read_image(orl_folder() / f"s{number}/{photo}.pgm")
            write_png(tmp_path / f"faces/p{number}/{photo}.png", picture)
    monkeypatch.setattr(module, "CONTROL_VARIANTS", CONTROL_VARIANTS[:2])
    monkeypatch.setattr(module, "NEGATIVE", CONTROL_VARIANTS[:1])
    settings = dict(trainings=1, preset="controls-smoke", outputs=tmp_path / "out")
    made = make_controls(tmp_path / "faces", **settings)
    assert "oracle: the planted place" in made.paths[0].read_text()
    assert "18 real" not in made.paths[0].read_text(), "only test people are tested on"
    before = sorted((tmp_path / "out/runs").glob("*/*"))
    capsys.readouterr()
    make_controls(tmp_path / "faces", **settings)
    assert "MISS" not in capsys.readouterr().out
    assert sorted((tmp_path / "out/runs").glob("*/*")) == before
    with pytest.raises(ValueError, match="at least 6"):
        shutil.rmtree(tmp_path / "faces/p1")
        make_controls(tmp_path / "faces", **settings)


def test_readings_on_own_data_stand_beside_those_on_the_controls(monkeypatch):
    "Of gaps alone, since what is made is the same as elsewhere."
    lab = Lab("smoke")
    monkeypatch.setattr(sensitivity, "target_cells", lambda lab, arms, seeds: own_cells(arms))
    monkeypatch.setattr(sensitivity, "describe", lambda *args, **kwargs: "")
    settings = dict(trainings=1, seeds=1, backbone="VGG")
    values = dict.fromkeys(Sensitivity().cells(lab, **settings), Gap("not made"))
    assert ("own data", "VGG", "ours", "all", "mini-DFDC") in values
    (part,) = Sensitivity().parts(lab, values, **settings)
    shown = part.shown.set_index("arm")["own data"]
    assert shown["all three: our reading"] == "not made"
    assert shown["oracle: the planted place"] == ""


def own_cells(arms):
    return {(*arm.key, "mini-DFDC"): Gap("not made") for arm in arms}

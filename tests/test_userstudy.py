"""prle.study: the design, the pictures, what is served and stored, and what the numbers are."""

import asyncio
import http.client
import json
import os
import re
import shutil
import socket
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import studies
from studies import FIVE, SECRET, signed, simulate
from test_figures import letters

from prle import cli
from prle.study import analysis as studyanalysis
from prle.core import rng
from prle.paper.numbers import PAGE_WIDTH
from prle.study.analysis import (
    accuracy_table,
    crossed_bootstrap,
    detector_answers,
    detector_table,
    draw_figure10,
    exclude,
    harder_with_alpha,
    masked_is_harder,
    participants_needed,
    power,
    read_responses,
    report,
    robust_difference,
    study_detectors,
)
from prle.study.page import (
    SIGNED,
    _connect,
    check_page,
    is_host,
    make_study,
    plan_name,
    sealed_plans,
    unseal,
    write_page,
)
from prle.study.server import (
    FIELDS,
    LARGEST,
    LIMIT,
    LONGEST,
    Refused,
    Responses,
    _called,
    _server,
    read_lines,
    serve,
)
from prle.trust import Damaged
from prle.study.images import (
    ALPHAS,
    SUMS,
    build_study,
    conditions,
    keyed,
    largest_design,
    plan_study,
    read_study,
)


# ---- the design ----


@pytest.mark.parametrize("images", [10, 20, 30, 40, 50])
def test_every_condition_stands_at_every_position_equally_often(images):
    plan = conditions(250, images, FIVE)
    assert len(plan) == 250 * images
    blocks = images // 10
    counts = plan.groupby(["subset", "mask", "position"]).size().unstack(fill_value=0)
    for (subset, mask), at in counts.iterrows():
        assert (
            at
            == 25
            * {"none": 2, "dynamic": 2, "fixed": 1}[mask]
            // 5
            * (5 if subset == "real" else 1)
        ).all() and len(at) == images, (subset, mask)
    block = plan.assign(block=plan.position // 10).groupby(["block", "subset", "mask"]).size()
    for b in range(blocks):  # real is five times as frequent as a manipulation
        assert all(
            block[b, s, m]
            == 250 * {"none": 2, "dynamic": 2, "fixed": 1}[m] * (5 if s == "real" else 1) // 5
            for s in ("real", *FIVE)
            for m in ("none", "dynamic", "fixed")
        )
    masks = plan.groupby(["position", "mask"]).size().unstack()
    assert (masks.nunique() == 1).all(), masks
    reals = plan[plan.subset == "real"].groupby("position").size()
    assert reals.nunique() == 1 and len(counts) == 6 * 3


@pytest.mark.parametrize("subsets", [FIVE[:m] for m in (2, 3, 4)], ids=len)
@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_fewer_manipulations_are_balanced_over_positions_too(subsets, blocks):
    plan = conditions(86, 2 * len(subsets) * blocks, subsets)
    counts = (
        plan.groupby(["position", "subset", "mask"])
        .size()
        .unstack(["subset", "mask"], fill_value=0)
    )
    assert counts.shape[1] == 3 * (len(subsets) + 1) and counts.min().min() > 0, (
        "every condition stands at every position"
    )
    masks = plan.groupby(["position", "mask"]).size().unstack() / 86
    assert (masks[["none", "fixed", "dynamic"]].sub([0.4, 0.2, 0.4]).abs().max() < 0.08).all()


def test_fifty_images_are_the_same_mixture_for_everybody_and_each_alpha_once():
    plan = conditions(86, 50, FIVE)
    for _, p in plan.groupby("participant"):
        assert p["mask"].value_counts().to_dict() == {"none": 20, "dynamic": 20, "fixed": 10}
        assert (p.subset == "real").sum() == 25 and (
            p.subset.value_counts().loc[list(FIVE)] == 5
        ).all()
        assert sorted(p.alpha.dropna()) == list(ALPHAS)
        assert (p.position == np.arange(50)).all()
        for m, share in (("none", 10), ("dynamic", 10), ("fixed", 5)):
            assert ((p["mask"] == m) & (p.subset == "real")).sum() == share
    cells = plan.groupby(["subset", "alpha"]).size().unstack(fill_value=0)
    assert (cells.loc[list(FIVE)].max(axis=1) - cells.loc[list(FIVE)].min(axis=1) <= 2).all(), (
        "each alpha on each manipulation equally often, to within the 86 participants"
    )


def test_the_balance_over_positions_is_close_for_86_participants():
    plan = conditions(86, 50, FIVE)
    masks = plan.groupby(["position", "mask"]).size().unstack() / 86
    assert (masks.sub([0.4, 0.2, 0.4]).abs().max() < 0.08).all()
    reals = (plan.subset == "real").groupby(plan.position).mean()
    assert (reals - 0.5).abs().max() < 0.06


def test_neighbours_differ_between_participants():
    plan = conditions(10, 10, FIVE)
    order = [tuple(p.subset) for _, p in plan.groupby("participant")]
    assert len(set(order)) == 10


@pytest.mark.parametrize(
    "bad", [dict(participants=0), dict(images=0), dict(images=52), dict(images=5)]
)
def test_sizes_that_cannot_be_balanced(bad):
    with pytest.raises(ValueError, match="participants|multiple"):
        conditions(**dict(participants=10, images=10, subsets=FIVE) | bad)


@pytest.mark.parametrize("n, images", [(24, 10), (40, 20), (140, 50)])
def test_nobody_sees_a_person_twice_and_practice_faces_come_nowhere_else(n, images):
    faces = studies.people(n)
    plan, trial = plan_study(faces, 12, images)
    of = faces.set_index("path").apply(lambda r: {r.identity, r.source_identity} - {""}, axis=1)
    assert faces.set_index("path").subset[plan.path].tolist() == plan.subset.tolist()
    practised = set().union(*of[trial.path])
    for _, p in plan.groupby("participant"):
        shown = [person for path in p.path for person in of[path]]
        assert len(shown) == len(set(shown)) and not practised & set(shown)
    assert trial.label.tolist().count(0) == 2 and set(trial["mask"]) == {"none", "dynamic"}


def test_faces_and_masks_are_used_evenly():
    plan, _ = plan_study(studies.people(40), 40, 20)
    use = plan.groupby(["subset", "path"]).size()
    assert use.groupby("subset").agg(lambda u: u.max() - u.min()).max() <= 6 and use.min() >= 1
    shares = plan[plan.subset == "real"].groupby("path")["mask"].agg(lambda m: (m == "none").mean())
    assert (shares - 0.4).abs().max() < 0.2, (
        "the same face is seen masked by some and unmasked by others"
    )


@pytest.mark.parametrize("images", [0, 12])
def test_a_number_of_images_that_cannot_be_balanced_is_told_with_those_that_can(images):
    said = f"images must be 10 or a multiple of that, not {images}"
    with pytest.raises(ValueError, match=said):
        conditions(86, images, FIVE)


def test_fewer_than_no_practice_images_are_refused():
    for plan in (plan_study, largest_design):
        with pytest.raises(ValueError, match="^practice must be 0 or more, not -1"):
            plan(studies.people(12), subsets=FIVE, practice=-1)


def test_too_few_people_are_told_and_the_largest_design_is_possible():
    with pytest.raises(
        ValueError,
        match="more people than the 24 there are, with one face drawn .+ "
        "The largest balanced design has 10 images a participant, with DF, FS, F2F",
    ):
        plan_study(studies.people(24), 5, 50)
    with pytest.raises(ValueError, match="No design of any size"):
        plan_study(studies.people(4), 5, 50)
    for n in (8, 12, 40):
        some, images = largest_design(studies.people(n), FIVE)
        plan_study(studies.people(n), 5, images, some)
        with pytest.raises(ValueError):
            plan_study(studies.people(n), 5, images + 2 * len(some), some)


def test_a_swap_shows_two_people():
    "One block of DF needs a real person and the two of a swap, besides those practised on."
    rows = studies.people(4, ("DF",))
    assert largest_design(rows, ("DF",), practice=0) == (("DF",), 2)
    assert largest_design(rows[rows.identity.isin(["p000", "p001"])], ("DF",), practice=0) == (
        (),
        0,
    )


# ---- the pictures ----


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return studies.study(
        tmp_path_factory.mktemp("study"), participants=10, images=10, subsets=FIVE, n=24
    )


def test_picture_files_give_nothing_away(study):
    files = sorted((study.path / "page" / "images").iterdir())
    assert len(files) == len(study.pictures) and all(
        re.fullmatch(r"[0-9a-f]{16}\.png", f.name) for f in files
    )
    assert (
        len({f.stat().st_size for f in files}) == 1 and len({f.stat().st_mtime for f in files}) == 1
    )
    for f in files:
        data = f.read_bytes()
        assert (
            PIL.Image.open(f).info == {}
            and re.findall(
                rb"(IHDR|PLTE|tEXt|zTXt|iTXt|tIME|pHYs|eXIf|gAMA|sRGB|iCCP|IDAT|IEND)", data
            )[0]
            == b"IHDR"
        )
        kinds, at = [], 8
        while at < len(data):
            kinds.append(data[at + 4 : at + 8])
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
    names, labels = study.pictures.picture.str[:16].map(lambda x: int(x, 16)), study.pictures.label
    assert abs(np.corrcoef(names.rank(), labels)[0, 1]) < 0.3, (
        "the order of the names does not tell"
    )


def test_the_page_folder_holds_no_key(study):
    words = set(study.pictures.path) | set(study.pictures.identity) | {"quantiles", "p_fake", "F2F"}
    for f in (study.path / "page").rglob("*"):
        if f.suffix in (".js", ".html", ".css") and not {"jspsych", "js-sha256"} & set(f.parts):
            text = f.read_text()
            assert not [w for w in words if w in text], f
    tested = set(study.pictures.picture[~study.pictures.practice])
    settings = json.loads(
        (study.path / "page" / "settings.js").read_text().split(" = ", 1)[1].rstrip(";\n")
    )
    assert (
        not tested & {p["picture"] for p in settings["practice"]} and len(settings["practice"]) == 2
    )


def test_pictures_are_the_faces_masked_as_the_key_says(study):
    for r in study.pictures.itertuples():
        face = cv2.imread(str(study.path.parent / "faces" / r.path))[..., ::-1]
        picture = np.asarray(PIL.Image.open(study.path / "page" / "images" / r.picture)).astype(int)
        q = cv2.imread(str(study.path.parent / "faces" / "quantiles.png"), cv2.IMREAD_UNCHANGED)
        where = (q > 0) & (q <= np.floor(65535 * r.alpha))
        assert (picture == np.where(where[..., None], 0, face)).all()
        assert (
            (r.alpha == 0) == (r.mask == "none")
            and (r.mask != "fixed" or r.alpha == r.fixed)
            and 0 <= r.alpha <= 1
        )
    assert study.pictures.query("mask == 'dynamic'").alpha.nunique() > 5


def test_the_key_and_the_plan_agree(study):
    plan, key = study.plan, study.pictures.set_index("picture")
    real = plan[plan.picture != ""]
    assert (
        key.label[real.picture].map({0: "real", 1: "fake"}).to_numpy() == real.expected.to_numpy()
    ).all()
    assert (
        not key.practice[real.picture].any() and plan.groupby("code").size().tolist() == [12] * 10
    )
    checks = plan[plan.picture == ""]
    assert checks.groupby("code").expected.agg(list).map(tuple).unique().tolist() == [
        ("real", "fake")
    ]
    assert read_study(study.path).plan.equals(plan) and len(set(study.codes)) == 10
    assert (
        study.settings["seed"] == 0
        and study.settings["provenance"]["packages"]
        and study.settings["people"] == 24
    )


def test_the_same_secret_makes_the_same_study_and_a_folder_is_never_overwritten(study, tmp_path):
    again = studies.study(
        tmp_path, participants=10, images=10, subsets=FIVE, n=24, secret=study.settings["secret"]
    )
    assert again.pictures.equals(study.pictures) and again.plan.equals(study.plan)

    def same(f):
        return f.read_bytes() == (study.path / f.relative_to(again.path)).read_bytes()

    assert all(same(f) for f in (again.path / "page").rglob("*") if f.is_file())
    assert all(
        same(again.path / "key" / name) for name in ("pictures.csv", "plan.csv", "codes.txt")
    )
    assert (
        studies.study(
            tmp_path / "maps", participants=10, images=10, subsets=FIVE, n=24, top=20
        ).codes
        != study.codes
    ), "other quantile maps are another study"
    faces = studies.faces(tmp_path / "faces", 24)
    with pytest.raises(FileExistsError, match="may hold responses"):
        build_study(faces, again.path, 10, 10)
    assert (
        build_study(faces, tmp_path / "other", 10, 10, practice=2, seed=1, secret=SECRET).codes
        != study.codes
    )
    with pytest.raises(FileNotFoundError, match="no study in"):
        read_study(tmp_path)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        build_study(faces, tmp_path / "weak", 10, 10, secret="0")


def test_faces_of_different_sizes_are_refused(tmp_path):
    faces = studies.faces(tmp_path / "faces", 12, ("F2F",))
    for path in faces.path[faces.subset == "F2F"]:
        cv2.imwrite(str(tmp_path / "faces" / path), np.zeros((48, 40, 3), np.uint8))
    faces["quantiles"] = [str(tmp_path / f"{s}.png") for s in faces.subset]
    for s, w in (("real", 48), ("F2F", 40)):
        cv2.imwrite(str(tmp_path / f"{s}.png"), np.ones((48, w), np.uint16))
    with pytest.raises(ValueError, match="differ in size"):
        build_study(faces, tmp_path / "study", 2, 2, ("F2F",), 2)
    assert not (tmp_path / "study").exists()


# ---- what nobody can compute ----


def public_bytes(study):
    "Every byte that a stranger has: names and contents of the page's files."
    page = study.path / "page"
    return {
        str(f.relative_to(page)): f.read_bytes() for f in sorted(page.rglob("*")) if f.is_file()
    }


def public_words(study):
    "Numbers and words from which somebody might start: all that the page's own files say, and small seeds."
    text = " ".join(
        data.decode()
        for name, data in public_bytes(study).items()
        if name in ("settings.js", "index.html")
    )
    names = [f.stem for f in (study.path / "page").rglob("*.*")]
    return [
        *range(500),
        *sorted({*re.findall(r"[0-9a-f]{6,}", text), *names}),
        "",
        study.settings["seed"],
    ]


def test_two_studies_of_the_same_faces_and_seed_have_nothing_in_common(tmp_path, monkeypatch):
    faces = studies.faces(tmp_path / "faces", 24)
    # of secrets that are drawn freely, one pair in 26 gives the same order of reals and fakes
    drawn = iter(["1a" * 32, "2b" * 32])
    monkeypatch.setattr("secrets.token_hex", lambda size: next(drawn))
    one, two = (build_study(faces, tmp_path / name, 10, 10, practice=2) for name in ("one", "two"))
    assert (
        one.settings["seed"] == two.settings["seed"]
        and one.settings["study"] != two.settings["study"]
    )
    assert not set(one.codes) & set(two.codes) and not set(one.pictures.picture) & set(
        two.pictures.picture
    )
    orders = [
        s.plan[s.plan.picture != ""].groupby("code", sort=False).expected.agg("".join).tolist()
        for s in (one, two)
    ]
    assert not set(orders[0]) & set(orders[1]), "the order of reals and fakes is another one"
    drawn = [
        s.pictures[s.pictures["mask"] == "dynamic"].set_index("path").alpha for s in (one, two)
    ]
    both = drawn[0].index.intersection(drawn[1].index)
    assert len(both) > 5 and not np.isclose(drawn[0][both], drawn[1][both]).any(), (
        "nor does a visible alpha tell the face"
    )


def test_no_byte_of_the_page_holds_a_part_of_the_key(study):
    key, page = study.pictures, public_bytes(study)
    practice = set(key.picture[key.practice])
    secret = [
        *study.codes,
        study.settings["secret"],
        *key.path,
        *key.identity,
        *(f"{a}" for a in key.alpha if 0 < a < 1),
    ]
    readable = {
        name: data
        for name, data in page.items()
        if not name.startswith(("jspsych", "js-sha256", "images"))
    }
    for name, data in page.items():
        for word in secret[: len(study.codes) + 1]:
            assert word.encode() not in data and word not in name
    for name, data in readable.items():
        for word in {w for w in secret if len(w) > 3} | (set(key.picture) - practice):
            assert word.encode() not in data, (name, word)
    assert len({len(data) for name, data in page.items() if name.startswith("plans/")}) == 1


def old_names(seed, kind, n, length, alphabet):
    "Names of a random stream, as they were once drawn."
    draw, found = rng(seed, kind), {}
    while len(found) < n:
        found["".join(draw.choice(list(alphabet), length))] = None
    return set(found)


def test_no_public_number_leads_to_codes_names_or_pairing(study):
    key, codes = study.pictures, set(study.codes)
    pictures, n = {p[:-4] for p in key.picture}, len(key)
    told = {name[6:-3] for name in public_bytes(study) if name.startswith("plans/")}
    cells = key[["path", "mask", "fixed"]].head(20)
    for word in public_words(study):
        for length in (8, 16):
            assert not old_names(word, "pictures", n, length, "0123456789abcdef") & pictures
            assert (
                not old_names(word, "codes", 10, length, "abcdefghjkmnpqrstuvwxyz23456789") & codes
            )
        guess = str(word)
        assert (
            keyed(guess, "name")[:16] != study.settings["study"]
            and keyed(guess, "file", study.settings["study"])[:32] not in told
        )
        assert (
            not {keyed(guess, "picture", *c)[:16] for c in cells.itertuples(index=False)} & pictures
        )
        assert not any(
            np.isclose(1 - rng(word, "alpha", r.path).random(), r.alpha, atol=1e-6)
            for r in key[key["mask"] == "dynamic"].head(5).itertuples()
        )


def test_who_knows_faces_and_design_cannot_check_a_guess_against_the_studys_name(study):
    from prle.core import digest, file_digest

    rows = studies.people(24)
    shown = set(study.pictures.path)
    text = (
        rows[rows.path.isin(shown)]
        .sort_values("path")[["path", "subset", "identity", "source_identity", "split"]]
        .to_csv(index=False)
    )
    design = [10, 10, list(FIVE), 2, 0]
    faces, maps = study.path.parent / "faces", study.path.parent / "faces" / "quantiles.png"
    files = [file_digest(p) for path in sorted(shown) for p in (faces / path, maps)]
    mark = digest([text, files, *design])
    own = keyed(study.settings["secret"], "study", mark)
    assert keyed(own, "name")[:16] == study.settings["study"], "with the secret it is this name"
    assert study.settings["study"] not in {
        mark,
        keyed("", "study", mark)[:16],
        keyed(mark, "name")[:16],
    }


def unknowns(blocks):
    "How many labels are left open by what everybody is told: half of a block is real."
    column = {p: k for k, p in enumerate(sorted(set().union(*blocks)))}
    equations = np.zeros((len(blocks), len(column)))
    for k, block in enumerate(blocks):
        equations[k, [column[p] for p in block]] = 1
    return len(column) - np.linalg.matrix_rank(equations)


def test_everybodys_lists_together_would_tell_the_truth(tmp_path):
    """Pictures of one face are recognised, and the balance of the design is a linear equation a block.

    One solution and its opposite are left, so no list may be read."""
    plan, _ = plan_study(studies.people(24), 86, 10)
    lists = [rows.tolist() for _, rows in plan.groupby(["participant", "mask"]).path]
    assert unknowns(lists) == 1 and unknowns(lists[:3]) > 5, (
        "of one participant's list much is left open"
    )


def test_a_list_is_read_with_its_own_code_alone(study):
    name, shown = study.settings["study"], study.plan[study.plan.picture != ""]
    text = b"".join(data for file, data in public_bytes(study).items() if file.startswith("plans/"))
    assert not [p for p in shown.picture if p.encode() in text or p.encode().hex().encode() in text]
    for owner in study.codes[:3]:
        file = study.path / "page" / "plans" / plan_name(owner, name)
        assert [i.get("picture", "") for i in unseal(owner, name, file)["items"]] == list(
            study.plan.picture[study.plan.code == owner]
        )
        for other in {*study.codes, name, owner[:-1], file.stem} - {owner}:
            with pytest.raises(ValueError):
                unseal(other, name, file)


def test_order_sizes_and_times_of_files_tell_nothing(study):
    key = study.pictures
    assert key.picture.is_monotonic_increasing, "written in the order of their names"
    plans = list((study.path / "page" / "plans").iterdir())
    assert len(plans) == 10 and len({(f.stat().st_size, f.stat().st_mtime) for f in plans}) == 1
    shown = study.plan[study.plan.picture != ""].drop_duplicates("picture").picture.rank()
    assert abs(np.corrcoef(shown, np.arange(len(shown)))[0, 1]) < 0.3, (
        "nor does the order in which they are shown first"
    )


@pytest.mark.parametrize("images, subsets", [(50, FIVE), (10, FIVE), (12, FIVE[:3])])
def test_a_fixed_alpha_tells_nothing_of_the_label(images, subsets):
    "Over secrets every alpha lies on reals and on fakes alike, also of one participant."
    plans = [
        conditions(2, images, subsets, f"secret {k}").query("mask == 'fixed' and participant == 1")
        for k in range(200)
    ]
    real = np.array([[(p.alpha[p.subset == "real"] == a).any() for a in ALPHAS] for p in plans])
    there = np.array([[(p.alpha == a).any() for a in ALPHAS] for p in plans])
    assert np.abs(real.sum(0) / there.sum(0) - 0.5).max() < 0.2

    def apart(block):
        return (
            block.alpha[block.subset == "real"].mean() - block.alpha[block.subset != "real"].mean()
        )

    pairs = [
        p.groupby(p.position // (2 * len(subsets)))[["alpha", "subset"]].apply(apart) for p in plans
    ]
    higher = np.concatenate([x.to_numpy() for x in pairs])
    assert 0.35 < np.mean(higher[~np.isnan(higher)] > 0) < 0.65


def test_the_key_is_readable_by_its_owner_alone(study, tmp_path):
    for part in ("key", "responses"):
        assert (study.path / part).stat().st_mode & 0o777 == 0o700
        assert all(f.stat().st_mode & 0o777 == 0o600 for f in (study.path / part).iterdir())


def key_and_pictures(study):
    return [
        *sorted((study.path / "key").iterdir()),
        *sorted((study.path / "page" / "images").iterdir())[::25],
    ]


def test_a_flipped_bit_of_the_key_or_a_picture_is_found_by_name(fresh, capsys):
    for k, file in enumerate(key_and_pictures(fresh)):
        whole = file.read_bytes()
        for bit in rng("bits", k).integers(0, 8 * len(whole), 12).tolist() + [
            0,
            8 * len(whole) - 1,
        ]:
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            with pytest.raises(
                Damaged,
                match=f"{re.escape(file.name)} has changed since it was written. Restore it",
            ):
                read_study(fresh.path)
        for command in ("serve", "analyse"):
            assert cli.main(["userstudy", command, str(fresh.path)]) == 2
            said = capsys.readouterr().err
            assert file.name in said and len(said.splitlines()) == 1
        file.write_bytes(whole[:-1])
        with pytest.raises(Damaged, match=re.escape(file.name)):
            read_study(fresh.path)
        file.unlink()
        with pytest.raises((Damaged, FileNotFoundError), match=re.escape(file.name)):
            read_study(fresh.path)
        file.write_bytes(whole)
    assert read_study(fresh.path).plan.equals(fresh.plan)


def test_checksums_name_no_file_outside(fresh, tmp_path):
    from prle.core import digest, file_digest

    (tmp_path / "else.txt").write_text("a")
    lines = f"{file_digest(tmp_path / 'else.txt')}  ../else.txt\n"
    (fresh.path / SUMS).write_text(f"{lines}{digest(lines)}  the lines above\n")
    with pytest.raises(ValueError, match="leads out of"):
        read_study(fresh.path)


def test_a_taken_port_is_named(fresh):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"the port {port} of 127.0.0.1 is taken; .*--port"):
            serve(fresh.path, port=port)


def test_a_damaged_page_is_not_served(fresh):
    page = fresh.path / "page"
    name, text = next(iter(sealed_plans(fresh)))
    for file, bad in (
        (page / "plans" / name, text.replace("1", "2")),
        (page / "settings.js", "window.SETTINGS = {"),
        (page / "settings.js", "[]"),
        (page / "study.js", "start();"),
        (page / "jspsych" / "jspsych.js", ""),
        (page / "js-sha256" / "sha256.min.js", "window.sha256 = {}"),
    ):
        whole = file.read_text()
        file.write_text(bad)
        with pytest.raises(Damaged, match=re.escape(file.name)):
            serve(fresh.path)
        file.write_text(whole)
    for file in (page / "plans" / name, page / "study.js"):
        file.unlink()
        with pytest.raises(Damaged, match=re.escape(file.name)):
            check_page(fresh)


def test_texts_and_looks_of_a_page_may_be_edited(fresh):
    for name in ("index.html", "study.css"):
        with open(fresh.path / "page" / name, "a") as f:
            f.write("\n")
    assert check_page(fresh)["post"] == "answers"


# ---- the page ----


def test_the_consent_is_the_researchers_and_the_policy_names_one_address(study, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(study.path, copy)
    (tmp_path / "consent.html").write_text("<h1>Our study</h1><p>{{images}} pictures.</p>")
    html = write_page(
        read_study(copy), tmp_path / "consent.html", post="https://lab.example/x"
    ).read_text()
    assert "<h1>Our study</h1><p>10 pictures.</p>" in html and "{{" not in html
    assert re.search(r"connect-src (.+?);", html)[1] == "https://lab.example"
    assert (
        re.search(r"connect-src (.+?);", write_page(read_study(copy), post=None).read_text())[1]
        == "'none'"
    )
    urls = re.findall(r"(?:src|href)=\"(.+?)\"", html)
    assert urls and all(u == "data:," or (copy / "page" / u).exists() for u in urls)
    for post in (
        "https://a.example; script-src *",
        "lab.example/x",
        "https://name:word@lab.example/x",
        "//lab.example/x",
        "htp://x",
        "https://*",
        "https://*.example/x",
        "https://*:443",
        "https://",
        "https://:80/x",
        "https://a..example",
        "https://-a.example",
        "https://lab.example:x/",
        "https://lab.example:99999/",
        "https://b\u00fccher.example",
        "https://lab.example\\\\x",
        "https://lab.example/a b",
        "https://[::1",
        "https://lab.example/\n",
        "https://_x",
        "https://" + "a" * 300,
    ):
        with pytest.raises(ValueError, match="no address"):
            _connect(post)


@pytest.mark.parametrize("kind", ["latin-1", "folder", "absent"])
def test_a_consent_text_that_cannot_be_read_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, kind
):
    consent = tmp_path / "consent.html"
    if kind == "latin-1":
        consent.write_bytes("Einverständnis".encode("latin-1"))
    elif kind == "folder":
        consent.mkdir()
    lab, made = SimpleNamespace(outputs=tmp_path, name="mini", subsets=FIVE), []
    for name in ("select_faces", "study_faces"):  # which forge and train
        monkeypatch.setattr(f"prle.study.page.{name}", lambda *a: made.append(a))
    with pytest.raises(ValueError, match=f"{re.escape(str(consent))} is no consent text"):
        make_study(lab, images=10, consent=consent)
    assert made == [] and not (tmp_path / "mini").exists()


@pytest.mark.parametrize("practice, confidence", [(0, False), (2, True)])
def test_the_texts_say_what_is_done(tmp_path, practice, confidence):
    html = (
        studies.study(tmp_path, practice=practice, confidence=confidence).path
        / "page"
        / "index.html"
    ).read_text()
    assert (
        ("First come 2 pictures to practise on" in html) == ("First come" in html) == bool(practice)
    )
    assert (
        ("how sure you were of it" in html) == confidence
        and "when each came" in html
        and "{{" not in html
    )


def test_the_page_sends_no_time_that_the_server_refuses():
    from prle.study.page import STATIC

    (longest,) = re.findall(r"const LONGEST = (\d+);", (STATIC / "study.js").read_text())
    assert int(longest) == LONGEST


def test_texts_have_enough_contrast():
    "WCAG's ratio of every colour of text against its ground, 4.5 or more."
    from prle.study.page import STATIC

    def linear(v):
        return v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4

    def light(c):
        return sum(
            w * linear(int(c[i : i + 2], 16) / 255)
            for w, i in zip((0.2126, 0.7152, 0.0722), (0, 2, 4))
        )

    def full(c):
        return c.lstrip("#") if len(c) == 7 else "".join(2 * x for x in c.lstrip("#"))

    found = 0
    for rule in re.findall(r"\{(.+?)\}", (STATIC / "study.css").read_text()):
        props = dict(p.split(":", 1) for p in rule.replace(" ", "").split(";") if ":" in p)
        if {"color", "background"} <= set(props):
            a, b = sorted(
                (light(full(props["color"])), light(full(props["background"]))), reverse=True
            )
            found += 1
            assert (a + 0.05) / (b + 0.05) >= 4.5, rule
    assert found >= 3


# ---- storing ----


@pytest.fixture
def fresh(study, tmp_path):
    shutil.copytree(study.path, tmp_path / "study")
    return read_study(tmp_path / "study")


def good(study, index=0, code=0, **changes):
    code = study.codes[code]
    row = study.plan[(study.plan.code == code) & (study.plan["index"] == index)].iloc[0]
    answer = dict(
        study=study.settings["study"],
        code=code,
        index=index,
        item=row.picture or "check",
        answer="fake",
        rt=1500,
        source="button",
        confidence=None,
    )
    return signed(answer | changes)


@pytest.mark.parametrize(
    "changes, status, why",
    [
        (dict(study="x"), 409, "another study"),
        (dict(code="nobody22"), 404, "no such code"),
        (dict(code="../../../etc/passwd"), 404, "no such code"),
        (dict(index=12), 400, "0 to 11"),
        (dict(index=-1), 400, "0 to 11"),
        (dict(index=True), 400, "wrong type"),
        (dict(index=1.0), 400, "wrong type"),
        (dict(item="0.png"), 400, "another one"),
        (dict(answer="maybe"), 400, "real or fake"),
        (dict(rt=-1), 400, "rt must"),
        (dict(rt=10**12), 400, "rt must"),
        (dict(rt="5"), 400, "wrong type"),
        (dict(source="mind"), 400, "button or keyboard"),
        (dict(confidence=4), 400, "confidence"),
        (dict(confidence=True), 400, "wrong type"),
        (dict(email="a@b.c"), 400, "unknown field 'email'"),
        (dict(simulated=True), 400, "unknown field 'simulated'"),
    ],
)
def test_malformed_answers_are_refused_with_a_reason_and_leave_nothing(fresh, changes, status, why):
    with pytest.raises(Refused, match=why) as e:
        Responses(fresh).add(signed(good(fresh) | changes))
    assert e.value.status == status and list((fresh.path / "responses").iterdir()) == []


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(fresh, field):
    with pytest.raises(Refused, match=f"'{field}' is missing"):
        Responses(fresh).add({k: v for k, v in good(fresh).items() if k != field})


def test_repeated_answers_are_refused_and_the_file_is_only_appended_to(fresh):
    responses, file = Responses(fresh), fresh.path / "responses" / f"{fresh.codes[0]}.jsonl"
    assert responses.add(good(fresh)) == 1
    before = file.read_bytes()
    for changed, same in ((dict(), True), (dict(answer="real"), False), (dict(rt=2), False)):
        with pytest.raises(Refused) as e:
            responses.add(good(fresh, **changed))
        assert e.value.status == 409 and e.value.same is same
    assert Responses(fresh).add(good(fresh, 1)) == 2, "another process goes on"
    assert file.read_bytes().startswith(before) and file.stat().st_mode & 0o077 == 0
    assert set(json.loads(before)) == {*FIELDS, "received"}


def test_a_line_cut_short_by_a_crash(fresh):
    responses, file = Responses(fresh), fresh.path / "responses" / f"{fresh.codes[0]}.jsonl"
    responses.add(good(fresh))
    with open(file, "ab") as f:
        f.write(json.dumps(good(fresh, 1)).encode()[:40])
    assert [a["index"] for a in responses.read(fresh.codes[0])] == [0]
    assert responses.add(good(fresh, 1)) == 2 and responses.add(good(fresh, 2)) == 3
    assert read_responses(fresh)["index"].tolist() == [0, 1, 2]


def test_a_full_disk_confirms_nothing(fresh, monkeypatch):
    responses, flush = Responses(fresh), os.fsync
    responses.add(good(fresh))
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("No space left on device"))
    )
    for _ in range(2):  # the second try finds nothing that the first has left
        with pytest.raises(OSError, match="No space"):
            responses.add(good(fresh, 1))
    assert responses.stored(fresh.codes[0]) == 1
    monkeypatch.setattr(os, "fsync", flush)
    assert responses.add(good(fresh, 1)) == 2


# ---- serving ----


@contextmanager
def serving(study):
    "The server's handlers in a thread of this process; yields a function that asks."
    import threading
    from tornado.netutil import bind_sockets

    loop, sockets = asyncio.new_event_loop(), bind_sockets(0, "127.0.0.1")

    async def run():
        server = _server(study)
        server.add_sockets(sockets)
        await stop.wait()
        server.stop()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()

    def ask(path, body=None, method=None, **headers):
        connection = http.client.HTTPConnection(
            "127.0.0.1", sockets[0].getsockname()[1], timeout=10
        )
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(
            method or ("POST" if data is not None else "GET"),
            path,
            data,
            {"Content-Type": "application/json", **headers} if data is not None else headers,
        )
        reply = connection.getresponse()
        try:
            return reply.status, reply.read(), reply.headers
        except ConnectionResetError:
            return reply.status, b"", reply.headers  # the server hangs up on what is too long

    try:
        yield ask
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def test_nothing_outside_the_page_is_served(fresh):
    secret = fresh.path / "key" / "plan.csv"
    (fresh.path / "page" / "link.csv").symlink_to(secret)
    (fresh.path / "page" / "folder").symlink_to(fresh.path / "key")
    with serving(fresh) as ask:
        status, body, headers = ask("/")
        assert (
            status == 200
            and b"Real or fake" in body
            and headers["X-Content-Type-Options"] == "nosniff"
        )
        assert ask(f"/plans/{plan_name(fresh.codes[0], fresh.settings['study'])}")[0] == 200
        for path in (
            "/../key/plan.csv",
            "/%2e%2e/key/plan.csv",
            "/..%2fkey%2fplan.csv",
            "//etc/passwd",
            "/images/../../key/plan.csv",
            "/link.csv",
            "/folder/plan.csv",
            "/plans/",
            "/images/",
            "/key/plan.csv",
            "/responses/",
            "/static/..%5c..%5ckey/plan.csv",
            "/plans/%00",
            "/images",
            "/index.html/..",
            "/index.html/../",
            "/images/../index.html",
            "/./index.html",
            "//index.html",
        ):
            status, body, _ = ask(path)
            assert (
                status in (400, 403, 404)
                and fresh.codes[0].encode() not in body
                and b"root:" not in body
            ), path


def test_what_the_server_says_names_no_version_and_no_page_may_hold_it(fresh):
    with serving(fresh) as ask:
        for path, body, method in (
            ("/", None, None),
            ("/settings.js", None, None),
            ("/nowhere", None, None),
            ("/answers", None, None),
            ("/answers", b"{", None),
            ("/answers", b"{}", "PUT"),
            ("/", b"{}", None),
            ("*", None, "OPTIONS"),
            ("/images", None, None),
            ("/", None, "TRACE"),
            ("/answers", good(fresh), None),
            ("/plans/%00", None, None),
        ):
            status, said, headers = ask(path, body, method)
            assert "Server" not in headers and b"ornado" not in said + str(headers).encode(), (
                path,
                status,
            )
            rules = headers["Content-Security-Policy"]
            assert (
                "default-src 'none'" in rules
                and "frame-ancestors 'none'" in rules
                and "connect-src 'self'" in rules
            )
            wanted = {
                "X-Frame-Options": "DENY",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
            }
            assert {name: headers[name] for name in wanted} == wanted
        html = ask("/")[1].decode()
        assert re.search(r'Content-Security-Policy" content="(.+?)"', html)[1] == rules.replace(
            "; frame-ancestors 'none'", ""
        ), "the page says the same"
    write_page(fresh, post="https://lab.example:444/x")
    with serving(fresh) as ask:
        assert "connect-src https://lab.example:444;" in ask("/")[2]["Content-Security-Policy"]


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:8787",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "localhost, evil.example",
        "evil@localhost.example",
        "[",
        "192.168.0.9",
        "localhost@evil.example",
    ],
)
def test_a_name_that_somebody_made_lead_here_is_not_answered(fresh, name):
    with serving(fresh) as ask:
        for path, body in (
            ("/", None),
            ("/answers", good(fresh)),
            (f"/answers?code={fresh.codes[0]}", None),
            ("/nowhere", None),
        ):
            status, said, _ = ask(path, body, Host=name)
            assert (
                status in (400, 421)
                and fresh.codes[0].encode() not in said
                and b"Real or fake" not in said
            )
        assert (
            ask("/", Host="localhost:1")[0]
            == ask("/", Host="LOCALHOST")[0]
            == ask("/", Host="127.0.0.1")[0]
            == 200
        )
    assert not list((fresh.path / "responses").iterdir())


@pytest.mark.parametrize(
    "header, host, names, called",
    [
        ("lab-pc:8787", "127.0.0.1", ("lab-pc",), True),
        ("lab-pc:8787", "127.0.0.1", (), False),
        ("192.168.0.9", "192.168.0.9", (), True),
        ("192.168.0.8", "192.168.0.9", (), False),
        ("192.168.0.8", "0.0.0.0", (), True),
        ("[fe80::1]:80", "::", (), True),
        (socket.gethostname(), "0.0.0.0", (), True),
        (socket.gethostname() + ".evil.example", "0.0.0.0", (), False),
        ("evil.example", "::", (), False),
        ("[::1]:1", "::1", (), True),
    ],
)
def test_which_names_the_server_goes_by(header, host, names, called):
    assert _called(header, host, names) is called


def test_a_name_of_the_server_is_a_name(fresh, capsys):
    assert (
        cli.main(["userstudy", "serve", str(fresh.path), "--name", "*"]) == 2
        and "'*' is no name of a machine" in capsys.readouterr().err
    )
    assert is_host("lab-pc") and is_host("10.0.0.1") and not is_host("*.lab") and not is_host("")


def test_serving_closes_the_key(fresh, monkeypatch):
    for part in ("key", "responses"):
        (fresh.path / part).chmod(0o755)
    (fresh.path / "key" / "plan.csv").chmod(0o644)
    monkeypatch.setattr(asyncio.Event, "wait", lambda self: asyncio.sleep(0))
    serve(fresh.path, port=0)
    assert not any(
        p.stat().st_mode & 0o077
        for part in ("key", "responses")
        for p in [fresh.path / part, *(fresh.path / part).iterdir()]
    )


@pytest.mark.parametrize(
    "post, said",
    [
        ("answers", "Answers go to {}."),
        ("https://lab.example/x", "Answers go to https://lab.example/x."),
        (None, "Participants save their answers as files; put these into {}."),
    ],
)
def test_where_answers_go_is_printed(fresh, monkeypatch, capsys, post, said):
    write_page(fresh, post=post)
    monkeypatch.setattr(asyncio.Event, "wait", lambda self: asyncio.sleep(0))
    serve(fresh.path, port=0)
    assert said.format(fresh.path / "responses") in capsys.readouterr().out.splitlines()


def test_a_copy_without_its_empty_folder_of_responses_is_served(fresh, monkeypatch):
    (fresh.path / "responses").rmdir()
    monkeypatch.setattr(asyncio.Event, "wait", lambda self: asyncio.sleep(0))
    serve(fresh.path, port=0)
    assert Responses(fresh).add(good(fresh)) == 1
    assert (fresh.path / "responses").stat().st_mode & 0o077 == 0


def test_a_damaged_file_of_answers_is_a_fault_of_the_server_and_no_refusal(fresh, capsys):
    with open(fresh.path / "responses" / f"{fresh.codes[0]}.jsonl", "wb") as f:
        f.truncate(LARGEST + 1)
    with serving(fresh) as ask:
        for path, body in (("/answers", good(fresh)), (f"/answers?code={fresh.codes[0]}", None)):
            status, said, _ = ask(path, body)
            assert status == 500 and json.loads(said) == dict(
                error="the server could not store this answer."
            ), "so the page tries again"
    assert f"{fresh.codes[0]}.jsonl has {LARGEST + 1:,} bytes" in capsys.readouterr().err


def test_nobody_holds_the_server_up(fresh):
    limits = _server(fresh).conn_params
    assert limits.body_timeout == 10 and limits.header_timeout == 60


@pytest.mark.parametrize(
    "host, name, open_to_all",
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("::1", "[::1]", False),
        ("0.0.0.0", socket.gethostname(), True),
    ],
)
def test_the_address_that_is_printed_can_be_opened(
    fresh, monkeypatch, capsys, host, name, open_to_all
):
    monkeypatch.setattr(asyncio.Event, "wait", lambda self: asyncio.sleep(0))
    try:
        serve(fresh.path, host, port=0)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    said = capsys.readouterr()
    assert (
        re.match(
            re.escape(f"http://{name}:") + rf"\d+/\?code={fresh.codes[0]} is the first", said.out
        )
        and ("Everybody in the network" in said.err) == open_to_all
    )


def test_answers_over_http(fresh):
    with serving(fresh) as ask:
        status, body, _ = ask("/answers", good(fresh))
        assert status == 201 and json.loads(body) == dict(stored=1)
        status, body, _ = ask("/answers", good(fresh))
        assert status == 409 and json.loads(body) == dict(
            error="this answer is stored already.", same=True
        )
        twice = json.dumps(good(fresh, 1))[:-1] + ', "answer": "real"}'
        for data, want in (
            (twice.encode(), 400),
            (b'{"study": ' * 300 + b"1" + b"}" * 300, 400),
            (b'{"rt": NaN}', 400),
            (b"{", 400),
            (b"\xff\xfe", 400),
            (b"[" * 4000, 400),
            (b"[]", 400),
            (b" " * (LIMIT + 1), 413),
            (json.dumps(good(fresh, 1)).encode() + b" " * 5 * LIMIT, 400),
        ):
            status, body, _ = ask("/answers", data)
            assert status == want, (data[:10], status)
        assert ask("/answers", good(fresh, 1), **{"Content-Type": "text/plain"})[0] == 415
        with pytest.raises(ConnectionError):
            ask("/answers", b"{}", **{"X-Long": "x" * 5 * LIMIT})
        status, body, _ = ask(f"/answers?study=x&code={fresh.codes[0]}")
        assert (
            status == 200
            and json.loads(body) == dict(stored=1)
            and json.loads(ask(f"/answers?code={fresh.codes[1]}")[1]) == dict(stored=0)
        )
        assert (
            ask("/answers")[0] == 404
            and ask("/answers?code=nobody22")[0] == 404
            and ask("/answers", b"{}", method="PUT")[0] == 405
        )
    assert [p.name for p in (fresh.path / "responses").iterdir()] == [f"{fresh.codes[0]}.jsonl"]
    assert len(read_responses(fresh)) == 1


# ---- the analysis ----


def word_across(figure):
    "The one word that is written over the picture: large, across it and inside it."
    (word,) = [t for t in figure.texts if t.get_rotation()]
    assert word.get_fontsize() > 40
    figure.canvas.draw()
    box = word.get_window_extent()
    assert (
        box.width > 0.3 * figure.bbox.width
        and 0 <= box.x0
        and box.x1 <= figure.bbox.width
        and 0 <= box.y0
        and box.y1 <= figure.bbox.height
    )
    return word.get_text()


def test_no_responses(fresh):
    assert "No responses in" in report(fresh)
    kept, out = exclude(read_responses(fresh))
    assert kept.empty and out.empty
    figure = draw_figure10(kept, FIVE)
    assert (
        word_across(figure) == "NO RESPONSES\nYET"
        and figure.get_figwidth() == PAGE_WIDTH
        and min(letters(figure)) >= 6
    )
    plt.close(figure)
    with pytest.raises(ValueError, match="no decisions"):
        masked_is_harder(kept)


def resave(file, saved):
    "Write a file of answers, signed anew."
    answers = [signed({k: v for k, v in a.items() if k != "seal"}) for a in saved["answers"]]
    file.write_text(json.dumps(saved | dict(answers=answers)))


def test_exclusions(fresh):
    simulate(fresh, lambda k: 0.8)
    folder = fresh.path / "responses"

    def change(code, edit):
        file = folder / f"{fresh.codes[code]}.json"
        saved = json.loads(file.read_text())
        for a in saved["answers"]:
            edit(a)
        resave(file, saved)

    flip = dict(real="fake", fake="real")
    change(0, lambda a: a.update(answer=flip[a["answer"]]) if a["item"] == "check" else None)
    change(1, lambda a: a.update(rt=400))
    change(2, lambda a: a.update(rt=150) if a["index"] == 0 else None)
    kept, out = exclude(read_responses(fresh))
    reasons = (
        "failed an attention check",
        "median time below 500 ms",
        "decisions faster than 200 ms",
    )
    assert dict(zip(out.code, out.reason)) == dict(zip(fresh.codes, reasons))
    assert dict(zip(out.code, out.decisions)) == {
        fresh.codes[0]: 10,
        fresh.codes[1]: 10,
        fresh.codes[2]: 1,
    }
    assert (
        len(kept) == 79
        and (kept.picture != "").all()
        and kept.groupby("code").size().to_dict()[fresh.codes[2]] == 9
    )


def test_what_does_not_belong_is_listed_and_costs_only_itself(fresh):
    simulate(fresh, lambda k: 0.8, codes=fresh.codes[:2])
    folder = fresh.path / "responses"
    other, zz = (
        [signed(good(fresh) | dict(study="x")), 7],
        [good(fresh), good(fresh, 1, item="0.png")],
    )
    odd = [
        signed(good(fresh, code=2) | c)
        for c in (dict(rt="900"), dict(index=[0]), dict(rt=-5), dict(rt=None))
    ]
    for name, answers in dict(other=other, zz=zz, odd=odd).items():
        (folder / f"{name}.json").write_text(json.dumps(dict(answers=answers)))
    (folder / "notes.txt").write_text("not read")
    table = read_responses(fresh)
    assert len(table) == 24 and table.attrs["dropped"] == [
        ("odd.json", "2 of 4 answers left out (answer 1, 4): the field 'rt' has the wrong type."),
        ("odd.json", "1 of 4 answers left out (answer 2): the field 'index' has the wrong type."),
        ("odd.json", f"1 of 4 answers left out (answer 3): rt must lie in 0 to {LONGEST} ms."),
        ("other.json", "1 of 2 answers left out (answer 1): this answer belongs to another study."),
        ("other.json", "1 of 2 answers left out (answer 2): an answer is a JSON object."),
        (
            "zz.json",
            "1 of 2 answers left out (answer 1): this picture was answered already, differently.",
        ),
        (
            "zz.json",
            "1 of 2 answers left out (answer 2): item 1 of this participant is another one.",
        ),
    ]
    assert len(exclude(table)[0]) == 20


def test_a_file_answers_for_one_code(fresh):
    "Even of somebody who has all codes; and of somebody who has one code and the page, for that code."
    simulate(fresh, lambda k: 0.8, codes=fresh.codes[1:3])
    folder = fresh.path / "responses"
    mine = [good(fresh, k) for k in range(12)]
    (folder / "all.json").write_text(
        json.dumps(dict(answers=mine + [good(fresh, 0, code=c) for c in range(3, 10)]))
    )
    (folder / "all.jsonl").write_text(
        "".join(json.dumps(good(fresh, 0, code=c)) + "\n" for c in (3, 4))
    )
    table = read_responses(fresh)
    assert set(table.code) == set(fresh.codes[1:3]) and table.attrs["dropped"] == [
        ("all.jsonl", "no file of answers (it answers for 2 codes; a participant has one)"),
        ("all.json", "no file of answers (it answers for 8 codes; a participant has one)"),
    ]
    (folder / "all.json").write_text(json.dumps(dict(answers=mine)))
    (folder / "all.jsonl").write_text("")
    nothing = ("all.jsonl", "no file of answers (it holds no answer)")
    assert read_responses(fresh).attrs["dropped"][0] == nothing
    (folder / "all.jsonl").unlink()
    guesses = [p.stem for p in (fresh.path / "page" / "plans").iterdir()] + [
        fresh.settings["study"],
        "0" * 16,
    ]
    for k, guess in enumerate(guesses):  # what the page says of the others, in place of a code
        stolen = [signed(a | dict(code=guess)) for a in mine] + [a | dict(code=guess) for a in mine]
        (folder / f"stolen{k}.json").write_text(json.dumps(dict(answers=stolen)))
    table = read_responses(fresh)
    assert set(table.code) == set(fresh.codes[:3]) and len(table) == 36
    assert all(
        "there is no such code in this study" in why for _, why in table.attrs["dropped"]
    ) and len(table.attrs["dropped"]) == len(guesses)


def test_an_answer_that_was_changed_is_found(fresh):
    """Whatever field it is, in a file and at the server.

    And so is one that somebody signs with a code of their own for another participant."""
    changes = dict(
        index=1,
        item="0.png",
        answer="real",
        rt=1501,
        source="keyboard",
        confidence=1,
        code=fresh.codes[1],
        study="x",
        seal="0" * 32,
    )
    assert set(changes) == {*SIGNED, "code", "seal"}
    for name, value in changes.items():
        with pytest.raises(Refused):
            Responses(fresh).add(good(fresh) | {name: value})
    with pytest.raises(Refused, match="changed after it was given"):
        Responses(fresh).add(good(fresh, code=1) | dict(seal=good(fresh)["seal"]))
    with pytest.raises(Refused, match="changed after it was given"):
        Responses(fresh).add(good(fresh) | dict(seal="\ud800"))
    assert not list((fresh.path / "responses").iterdir())


def test_every_line_that_can_be_read_is_kept_and_the_others_are_reported(fresh):
    responses, file = Responses(fresh), fresh.path / "responses" / f"{fresh.codes[0]}.jsonl"
    for k in range(12):
        responses.add(good(fresh, k))
    whole = file.read_bytes()
    lines, draw = whole.splitlines(keepends=True), rng("flips")
    for _ in range(60):
        bit = int(draw.integers(0, 8 * len(whole)))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        if b"received" not in flipped or flipped == whole:
            continue
        file.write_bytes(flipped)
        table, hit = read_responses(fresh), whole[: bit // 8].count(b"\n")
        expected = {k: json.loads(line)["rt"] for k, line in enumerate(lines)}
        assert all(expected[i] == rt for i, rt in zip(table["index"], table.rt)), (
            "what is kept is what was answered"
        )
        assert set(range(12)) - set(table["index"]) <= {hit, hit + 1}, (
            "a line costs itself, and its neighbour where the break between them is hit"
        )
        if len(table) < 12:
            assert any(f"line {hit + 1}" in why for _, why in table.attrs["dropped"]), (
                bit,
                table.attrs["dropped"],
            )
    file.write_bytes(whole + b"\xff\xfe{\n[]\n7\n" + b'{"study": "' * 3)
    table = read_responses(fresh)
    assert len(table) == 12 and [number for number, _ in read_lines(file)[1]] == [13, 14, 15, 16]
    assert all(re.search("line 1[3-6]", why) for _, why in table.attrs["dropped"])


ALIEN = {
    "null": b"null",
    "number": b"7",
    "text": b'"x"',
    "empty": b"",
    "zeros": b"\0" * 100,
    "not UTF-8": b"\xff\xfe\xfa",
    "deep": b"[" * 200_000,
    "deep answers": b'{"answers": ' + b"[" * 200_000,
    "answers no list": b'{"answers": {"a": 1}}',
    "answers a text": b'{"answers": "abc"}',
    "answers null": b'{"answers": null}',
    "a key twice": b'{"answers": [], "answers": []}',
    "numbers": b'{"answers": [1, null, "x", [], {}, NaN, 1e999]}',
    "long number": b'{"answers": [' + b"9" * 10_000 + b"]}",
    "surrogate": b'{"answers": [{"code": "\\ud800", "\\udfff": 1}]}',
    "lists where words belong": b'{"answers": [{"study": [], "code": {}, "index": [], "item": 1, "answer": [], '
    b'"rt": {}, "source": [], "confidence": [], "seal": []}]}',
}


@pytest.mark.parametrize("kind", ALIEN)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_alien_files_of_answers_cost_only_themselves(fresh, kind, suffix, capsys):
    simulate(fresh, lambda k: 0.8, codes=fresh.codes[:1])
    (fresh.path / "responses" / f"alien{suffix}").write_bytes(ALIEN[kind])
    table = read_responses(fresh)
    assert len(table) == 12 and all(
        name == f"alien{suffix}" and len(why) < 300 for name, why in table.attrs["dropped"]
    )
    assert table.attrs["dropped"]
    assert (
        cli.main(["userstudy", "analyse", str(fresh.path)]) == 0
        and len(capsys.readouterr().out) < 5000
    )
    file = fresh.path / "responses" / f"{fresh.codes[1]}.jsonl"
    file.write_bytes(ALIEN[kind] + b"\n")
    assert (
        Responses(fresh).stored(fresh.codes[1]) == 0
        and Responses(fresh).add(good(fresh, code=1)) == 1
    ), "nor does the server fall over one"


def test_large_files_links_and_folders_among_the_responses(fresh, tmp_path):
    simulate(fresh, lambda k: 0.8, codes=fresh.codes[:1])
    folder = fresh.path / "responses"
    with open(folder / "big.json", "wb") as f:
        f.truncate(300 * 2**20)
    (tmp_path / "else.json").write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "else.json")
    (folder / "zero.jsonl").symlink_to("/dev/zero")
    (folder / "folder.json").mkdir()
    (folder / "lost.json").symlink_to(folder / "nowhere.json")
    table = read_responses(fresh)
    assert len(table) == 12 and [name for name, _ in table.attrs["dropped"]] == [
        "zero.jsonl",
        "big.json",
        "folder.json",
        "link.json",
        "lost.json",
    ]
    assert (
        f"at most {LARGEST:,} are read" in table.attrs["dropped"][1][1]
        and "leads out of" in table.attrs["dropped"][3][1]
    )


def test_two_people_with_one_code_are_noticed_and_a_misfit_hides_nobody(fresh):
    simulate(fresh, lambda k: 0.8, codes=fresh.codes[:1])
    first = fresh.path / "responses" / f"{fresh.codes[0]}.json"
    second, copy = json.loads(first.read_text()), first.read_text()
    for a in second["answers"]:
        a["rt"] += 7
    resave(first.parent / f"{fresh.codes[0]} (1).json", second)
    (first.parent / "0.json").write_text(copy)
    (first.parent / "A misfit.json").write_text(
        json.dumps(dict(answers=[a | dict(item="0.png") for a in second["answers"]]))
    )
    table = read_responses(fresh)
    assert len(table) == 12
    dropped = table.attrs["dropped"]
    assert set(table.rt) == {2000}
    twice = (
        "12 of 12 answers left out (answer 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...): "
        "this picture was answered already, differently."
    )
    assert {name for name, _ in dropped[:-1]} == {"A misfit.json"} and dropped[-1] == (
        f"{first.stem} (1).json",
        twice,
    ), "the copy of the first is no other answer"


def test_all_excluded_is_said(fresh):
    simulate(fresh, lambda k: 0.8, rt=100)
    kept, out = exclude(read_responses(fresh))
    assert kept.empty and len(out) == 10
    figure = draw_figure10(kept, FIVE)
    assert (
        word_across(figure) == "ALL\nEXCLUDED"
        and "all 100 human decisions excluded" in figure.get_supxlabel()
    )
    plt.close(figure)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    "40 simulated participants who lose 15 points under masks, and more with alpha."
    made = studies.study(
        tmp_path_factory.mktemp("answered"), participants=40, images=20, subsets=FIVE, n=40
    )
    simulate(made, lambda k: {"none": 0.8, "dynamic": 0.65}.get(k["mask"], 0.85 - 0.3 * k.alpha))
    return made, exclude(read_responses(made))[0]


def test_accuracies_are_the_shares_of_right_decisions(answered):
    made, kept = answered
    table = accuracy_table(kept, FIVE, n=200).set_index(["panel", "name", "mask"])
    for name, rows in (
        ("F2F", kept.subset == "F2F"),
        ("fakes", kept.label == 1),
        ("real", kept.label == 0),
        ("all", kept.label >= 0),
    ):
        mine = kept[rows & (kept["mask"] == "dynamic")]
        assert table.loc[("a", name, "dynamic"), "accuracy"] == pytest.approx(
            100 * mine["right"].mean()
        ) and table.loc[("a", name, "dynamic"), "decisions"] == len(mine)
    assert (table.low <= table.accuracy).all() and (table.accuracy <= table.high).all()
    b = table.loc["b"].sort_values("alpha")
    assert (
        b.alpha.tolist() == pytest.approx([0, *ALPHAS])
        and b.decisions.sum() == (kept["mask"] != "dynamic").sum()
    )


def certain(right):
    "Decisions of four people on ten faces, half under a random mask and half at alpha 0.5: all right, or all wrong."
    n = np.arange(40)
    rows = pd.DataFrame(dict(code=n // 10, path=n % 10, subset="F2F", label=1, alpha=0.5))
    rows["mask"], rows["right"] = np.where(n % 2, "dynamic", "fixed"), right
    return rows


def test_where_all_or_none_are_right_there_is_no_interval(recwarn):
    rows = certain(True)
    rows.loc[0, "right"] = False
    table = accuracy_table(rows, ("F2F",), n=200)
    sure = table.query("name == 'all' and mask == 'dynamic'").squeeze()
    mixed, nothing = (table.query(f"panel == 'b' and alpha == {a}").squeeze() for a in (0.5, 0.1))
    assert sure.accuracy == 100 and sure[["low", "high"]].isna().all()
    assert mixed.accuracy == 95 and mixed.low < 95 < mixed.high
    assert nothing[["accuracy", "low", "high"]].isna().all() and nothing.decisions == 0
    none = accuracy_table(certain(False), ("F2F",), n=200)
    assert (none.accuracy.dropna() == 0).all() and none.low.isna().all() and none.high.isna().all()
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("right, which", [(True, "all"), (False, "none")])
def test_where_all_or_none_are_right_no_effect_is_estimated(right, which):
    rows = certain(right).assign(mask=np.where(np.arange(40) % 2, "dynamic", "none"))
    with pytest.raises(ValueError, match=f"{which} of the 40 decisions are right"):
        masked_is_harder(rows)
    rows = certain(right).assign(mask="fixed", alpha=np.where(np.arange(40) % 2, 0.1, 0.9))
    with pytest.raises(ValueError, match=f"{which} of the 40 decisions are right"):
        harder_with_alpha(rows)


def test_a_known_effect_is_found_and_its_direction_is_right(answered):
    effect, trend = masked_is_harder(answered[1]), harder_with_alpha(answered[1])
    assert (
        effect.p < 0.01
        and effect.odds < effect.high < 1
        and effect.points_low < -15 < effect.points_high < 0
    )
    assert trend.odds < 1 and trend.points < 0 and trend.p < 0.2
    kept = answered[1].assign(right=~answered[1]["right"])
    assert masked_is_harder(kept).p > 0.99, "the reverse is not found"


WIDE = dict(
    studyanalysis.SPREADS, participant_slope=0.6, face_slope=0.8
)  # twice the assumed spreads of what the mask does


def mixed(participants, images, faces, spreads, draw):
    "Slope and standard error of the mixed regression on a drawn study without an effect."
    part = conditions(participants, images, FIVE).query("mask != 'fixed'")
    right, x, who, what = studyanalysis._draw_study(part, faces, (0.75, 0.75), spreads, draw)
    return studyanalysis._mixed_logistic(right, x.astype(float), who, what)


def test_no_effect_is_rarely_found():
    """The mixed regression under the null, random slopes included.

    One-sided p is below 0.05 in about 5% of 40 drawn studies (at most 6)."""
    draw = rng("null")
    studies = [mixed(30, 20, 80, WIDE, draw) for _ in range(40)]
    assert sum(slope / error < -1.645 for slope, error in studies) <= 6


def test_the_standard_error_of_the_mixed_regression_grows_with_the_random_slopes():
    "At the paper's size: 0.083 without slopes, and the variance of each kind of slope over how many there are of it."
    draw, true = rng("slopes"), np.sqrt(0.083**2 + 0.6**2 / 86 + 0.8**2 / 240)
    assert np.mean([mixed(86, 50, 240, WIDE, draw)[1] for _ in range(3)]) == pytest.approx(
        true, rel=0.15
    ), "with the slopes taken as known it is 0.084"


def test_the_mixed_regression_gives_the_same_number_twice(answered):
    rows = answered[1][answered[1]["mask"] == "fixed"]
    one, two = (
        studyanalysis._mixed_logistic(
            rows["right"].to_numpy(), rows.alpha.to_numpy(float), rows.code, rows.path
        )
        for _ in range(2)
    )
    assert one == two


def test_the_crossed_bootstrap_has_the_spread_of_its_units():
    draw = rng("units")
    who, what = np.repeat(np.arange(40), 40), np.tile(np.arange(40), 40)

    def spread(right):
        return crossed_bootstrap(right, who, what, np.ones((1, 1600), bool), 800).std()

    by_person, by_face, each = (
        np.repeat(draw.random(40) < 0.5, 40),
        np.tile(draw.random(40) < 0.5, 40),
        draw.random(1600) < 0.5,
    )
    assert spread(by_person) == pytest.approx(0.5 / 40**0.5, rel=0.2) and spread(
        by_face
    ) == pytest.approx(0.5 / 40**0.5, rel=0.2)
    assert spread(each) < 0.4 * spread(by_face)


def test_the_robust_difference_against_the_formula_of_independent_decisions():
    draw = rng("robust")
    n = 4000
    right, x = draw.integers(0, 2, n), np.arange(n) % 2
    difference, error = robust_difference(right, x, np.arange(n), np.arange(n))
    p = [right[x == k].mean() for k in (0, 1)]
    assert difference == pytest.approx(p[1] - p[0]) and error == pytest.approx(
        sum(q * (1 - q) / (n / 2) for q in p) ** 0.5, rel=1e-3
    )


def test_power_rises_with_people_and_with_the_drop():
    table = power((5, 40, 86), studies=60)
    assert (
        table.is_monotonic_increasing
        and table[86] > 0.95
        and power((40,), only="DF", studies=60)[40] < table[40]
    )
    assert power((40,), points=0, studies=200)[40] < 0.1
    assert (
        participants_needed(table) == "40 participants for a power of 80%"
        and participants_needed(table[:1]) == "more than 5 participants for a power of 80%"
    )


def test_simulated_is_said_everywhere(answered):
    made, kept = answered
    figure = draw_figure10(kept, FIVE, n=100)
    assert word_across(figure) == "SIMULATED"
    plt.close(figure)
    assert "SIMULATED responses" in report(made)
    assert "No responses" in report(made, read_responses(made).iloc[:0]), "it reads none itself"
    real = draw_figure10(kept.assign(simulated=False), FIVE, n=100)
    assert "SIMULATED" not in [t.get_text() for t in real.texts]
    plt.close(real)


def test_detectors_judge_the_pictures_of_test_people(answered, tiny, tmp_path):
    made, kept = answered
    answers = detector_answers(made, dict(tiny=tiny))
    assert len(answers) == (~made.pictures.practice).sum() and answers.p_fake.between(0, 1).all()
    import torch

    image = (
        torch.from_numpy(
            np.array(PIL.Image.open(made.path / "page" / "images" / answers.picture[0]))
        ).permute(2, 0, 1)[None]
        / 255
    )
    assert answers.p_fake[0] == pytest.approx(tiny.eval()(image).sigmoid().item(), abs=1e-5)
    table = detector_table(answers, FIVE, kept)
    assert (
        table.query("panel == 'a' and name == 'all'").decisions.sum()
        == kept["mask"].isin(["none", "dynamic"]).sum()
    ), "each picture as often as people judged it"
    figure = draw_figure10(kept, FIVE, table, n=50)
    assert f"test people only, {len(kept)} of these decisions" in figure.get_supxlabel()
    plt.close(figure)
    trained = studies.study(tmp_path, split="train")
    assert study_detectors(trained, None, kept) is None, "no lab is asked to train"
    with pytest.raises(ValueError, match="no picture of this study shows a test person"):
        detector_answers(trained, dict(tiny=tiny))


# ---- the command ----


def test_the_command_analyses_and_explains(answered, fresh, tmp_path, capsys):
    figure = str(tmp_path / "f.png")
    assert cli.main(["userstudy", "analyse", str(answered[0].path), "--figure", figure]) == 0
    said = capsys.readouterr().out
    assert "Masked is harder?" in said and "SIMULATED" in said and (tmp_path / "f.png").exists()
    assert cli.main(["userstudy", "analyse", str(answered[0].path), "--figure", "x.jpgg"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "unknown kind of picture 'jpgg'" in said.err
    assert cli.main(["userstudy", "serve", str(tmp_path)]) == 2
    assert "no study in" in capsys.readouterr().err
    (fresh.path / "page" / "index.html").unlink()
    assert cli.main(["userstudy", "serve", str(fresh.path)]) == 2
    assert "has no page" in capsys.readouterr().err
    consent = str(tmp_path / "none.html")
    assert cli.main(["userstudy", "build", "--consent", consent, "--preset", "smoke"]) == 2
    assert "no consent text" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["userstudy", "build", "--splits", "holdout"])

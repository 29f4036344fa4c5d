"The target sets: shifted, tested on people that a seed has not trained on, free of trivial cues."

from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
from clips import write_people
from kills import contents
from PIL import Image

from prle.mini import benchmark
from prle.mini import targets
from prle.core import digest, file_digest, rng, write_json
from prle.data.degradations import jpeg
from prle.data.manifest import of_seed, read_manifest, write_manifest
from prle.data.distortions import parse_meta
from prle.data.faces import list_photos, orl_folder, read_faces
from prle.data.pictures import read_image
from prle.mini.forge import inner
from prle.trust import read_json

ORL = orl_folder()
SETS = {
    "mini-DFDC": ["pyramid", "parts", "bands"],
    "mini-DF1": ["relit"],
    "mini-Celeb": ["refined"],
}
POINTS = [0.0] * 136


def write_stub(root, photos, size, **more):
    "What `build_targets` reads of a benchmark: manifest (reals only), dropped.csv, forge.json; not its pictures."
    group = benchmark.deal_groups(list(dict.fromkeys(p.parent.name for p in photos)))
    splits = benchmark.group_splits(len(set(group.values())))
    rows = [
        dict(
            path=f"real/{p.parent.name}-{p.stem}.png",
            label=0,
            dataset="mini",
            subset="real",
            video=f"{p.parent.name}-{p.stem}",
            identity=p.parent.name,
            source_identity="",
            frame=0,
            split=splits[group[p.parent.name]],
            group=group[p.parent.name],
            compression="jpeg90",
            landmarks=POINTS,
            transform=[],
            mask="",
        )
        for p in photos
    ]
    root.mkdir(parents=True)
    for row in rows:
        (root / row["path"]).parent.mkdir(exist_ok=True)
        (root / row["path"]).touch()
    write_manifest(pd.DataFrame(rows), root / "manifest.parquet")
    pd.DataFrame(dict(path=[], reason=[])).to_csv(root / "dropped.csv", index=False)
    content = digest([(f"{p.parent.name}/{p.name}", file_digest(p)) for p in photos])
    config = dict(photographs=content, size=size, seed=0, quality=90, count=4) | more
    write_json(root / "forge.json", dict(config=config, digest=digest(config), pictures=len(rows)))
    return root


def all_photos(folder):
    return [p for photos in list_photos(folder).values() for p in photos]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Ten people at 64 px with target sets: (benchmark, its photographs, set -> manifest)."
    root = tmp_path_factory.mktemp("small")
    people = write_people(root / "people", 10)
    bench = write_stub(root / "bench", all_photos(people), 64)
    return (
        bench,
        people,
        {
            name: read_manifest(path)
            for name, path in targets.build_targets(bench, people, workers=2).items()
        },
    )


@pytest.fixture(scope="module")
def pair():
    photos = [ORL / "s16" / "1.pgm", ORL / "s5" / "1.pgm"]
    return {
        size: read_faces(photos, size, benchmark.SCALE, benchmark.LIFT)[0]
        for size in (64, 128, 201)
    }


# Forgeries


@pytest.mark.parametrize("size", [64, 128, 201])
@pytest.mark.parametrize("name", targets.RECIPES)
def test_the_mask_is_exact(pair, name, size):
    "Outside the mask nothing changed, inside much did, and the frame was never touched."
    target, source = pair[size]
    fake, mask = targets.RECIPES[name](target, source)
    changed = (fake != target.crop).any(-1)
    assert fake.shape == (size, size, 3) and fake.dtype == np.uint8 and mask.dtype == bool
    assert not changed[~mask].any() and changed[mask].mean() > 0.6
    assert not mask[~inner(size)].any() and 0.05 < mask.mean() < 0.6
    assert np.array_equal(fake, targets.RECIPES[name](target, source)[0])


def test_no_two_forgeries_share_their_mask(pair):
    masks = [recipe(*pair[128])[1] for recipe in targets.RECIPES.values()]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a & b).sum() / (a | b).sum() < 0.95


def test_a_pyramid_of_equal_pictures_is_the_picture(pair):
    picture, weight = np.float32(pair[201][0].crop), np.float32(inner(201))[..., None]
    assert np.abs(targets.pyramid_blend(picture, picture, weight, 4) - picture).max() < 1e-3
    assert (
        np.abs(targets.pyramid_blend(picture, 0 * picture, weight + 1 - weight, 4) - picture).max()
        < 1e-3
    )


def test_rigid_warp_undoes_a_similarity(pair):
    "A turned and shifted face with its landmarks comes back where it was."
    face = pair[128][0]
    turn = cv2.getRotationMatrix2D((64, 64), 8, 1.0) + [[0, 0, 3], [0, 0, -2]]
    turned = cv2.warpAffine(face.crop, turn, (128, 128), flags=cv2.INTER_CUBIC)
    back = targets.rigid_warp(turned, face.landmarks @ turn[:, :2].T + turn[:, 2], face.landmarks)
    assert np.abs(back.astype(int) - face.crop)[32:96, 32:96].mean() < 3


# Degradations


@pytest.mark.parametrize("name", targets.CAMERA)
def test_every_level_of_the_camera_degrades(pair, name):
    face = pair[128][0].crop
    for level in range(1, 6):
        out = targets.camera(face, f"{name}:{level}", rng(0))
        assert (
            out.shape == face.shape
            and out.dtype == np.uint8
            and 1 < np.abs(out.astype(int) - face).mean() < 80
        )
        assert np.array_equal(out, targets.camera(face, f"{name}:{level}", rng(0)))
    with pytest.raises(ValueError, match=f"unknown degradation '{name}s'"):
        targets.camera(face, f"{name}s:1", rng(0))


def test_draws():
    "One to three of the camera's six and two to four of DF-1.0's without VC, each level as often as any other."
    camera, mixed = (
        [draw(rng(i)).split() for i in range(2000)]
        for draw in (targets.draw_camera, targets.draw_mixed)
    )
    for lines, counts, names in (
        (camera, {1, 2, 3}, set(targets.CAMERA)),
        (mixed, {2, 3, 4}, {"CS", "CC", "BW", "GNC", "GB", "JPEG"}),
    ):
        assert {len(words) for words in lines} == counts
        words = [word.split(":") for words in lines for word in words]
        assert {name for name, _ in words} == names
        for share in Counter(level for _, level in words).values():
            assert abs(share / len(words) - 0.2) < 0.03
    assert all(
        [w.split(":")[0] for w in words] == [n for n in targets.CAMERA if n in " ".join(words)]
        for words in camera
    )  # in the camera's order


@pytest.mark.parametrize("size", [64, 512])
def test_mixed_is_df1_at_512(pair, size):
    face = cv2.resize(pair[201][0].crop, (size, size))
    out = targets.mixed(face, "BW:5 GB:1", rng(0))
    assert out.shape == face.shape and (out != face).any()
    if size == 512:
        assert np.array_equal(out, targets.distort_frame(face, "BW:5 GB:1", rng(0)))


# The sets


@pytest.mark.parametrize("name", SETS)
def test_every_seed_is_tested_on_its_own_people_only(small, name):
    bench, _, sets = small
    base, df, tested = read_manifest(bench / "manifest.parquet"), sets[name], []
    for seed in range(4):
        home = of_seed(base, seed).set_index("identity").split.to_dict()
        rows = of_seed(df, seed).query("split == 'test'")
        people = {person for person, split in home.items() if split == "test"}
        assert set(rows.identity) == people
        assert {*rows.identity, *rows.source_identity} == {*people, ""}
        tested += people
    assert sorted(tested) == sorted(set(base.identity))
    assert list(df.subset.unique()) == ["real", *SETS[name]] and df.dataset.eq(name).all()
    assert df.groupby("subset").size().to_dict() == dict.fromkeys(["real", *SETS[name]], 20)
    fakes = df[df.label == 1]
    assert set(fakes.target) == set(df.video[df.label == 0]) and len(fakes.target.unique()) == 20
    assert (fakes.identity != fakes.source_identity).all() and (
        df[df.label == 0][["source_identity", "mask"]] == ""
    ).all().all()
    assert (
        read_json(bench / "targets" / name / "target.json")["counts"]
        == df.subset.value_counts().to_dict()
    )


def test_pictures_are_those_of_the_rows(small):
    "The undegraded set can be made again from the faces: forged, compressed, written, with the forgery's mask."
    bench, people, sets = small
    df = sets["mini-Celeb"]
    found, _ = read_faces(
        [p for p in all_photos(people) if p.parent.name in set(df.identity)],
        64,
        benchmark.SCALE,
        benchmark.LIFT,
        benchmark.SOFT,
    )
    home = df.groupby("identity").group.first().to_dict()
    together = benchmark.tested_by(home)
    jobs = targets.plan_targets(found, "mini-Celeb", 0, home)
    assert [job.video for job in jobs] == df.video.tolist()
    for job, row in zip(jobs, df.itertuples()):
        image, mask = (
            targets.refined(job.target, job.source) if job.source else (job.target.crop, None)
        )
        assert (
            np.array_equal(read_image(bench / "targets/mini-Celeb" / row.path), jpeg(image, 90))
            and row.compression == "jpeg90"
        )
        if job.source:
            assert np.array_equal(
                cv2.imread(str(bench / "targets/mini-Celeb" / row.mask), -1), mask * np.uint8(255)
            )
        if job.source:
            assert job.source is min(
                (
                    f
                    for f in found
                    if f.identity != row.identity and together[f.identity] == together[row.identity]
                ),
                key=lambda f: np.abs(f.landmarks - job.target.landmarks).mean(),
            )


@pytest.mark.parametrize("name", ["mini-DFDC", "mini-DF1"])
def test_reals_and_fakes_are_degraded_alike(small, name):
    "The same lines for every subset, in an order of its own; each line can be read back."
    df = small[2][name]
    lines = df.compression.str.removesuffix(" jpeg90").groupby(df.subset).agg(list)
    assert all(Counter(hand) == Counter(lines["real"]) for hand in lines) and len(
        {tuple(hand) for hand in lines}
    ) == len(lines)
    assert df.compression.str.endswith(" jpeg90").all()
    for line in lines["real"]:
        steps = (
            parse_meta(line) if name == "mini-DF1" else [word.split(":") for word in line.split()]
        )
        assert 1 <= len(steps) <= 4 and "VC" not in line


def test_same_bytes_whatever_the_workers(small):
    bench, people, _ = small
    again = write_stub(bench.parent / "again", all_photos(people), 64)
    targets.build_targets(again, people, workers=1)
    assert contents(again / "targets") == contents(bench / "targets")


# The folder


@pytest.fixture
def tiny(tmp_path):
    "Six people, two of them tested, at 64 px: (benchmark without target sets, its photographs)."
    people = write_people(tmp_path / "people", 6, photos=1)
    return write_stub(tmp_path / "bench", all_photos(people), 64), people


def test_hit_and_miss(tiny, capsys, shown, monkeypatch):
    bench, people = tiny

    def build():
        return (targets.build_targets(bench, people, workers=1), capsys.readouterr().out)[1]

    assert build().count("(none there yet)") == 3
    before = {p: p.stat().st_mtime_ns for p in bench.rglob("*")}
    assert build().count("HIT") == 3 and before == {
        p: p.stat().st_mtime_ns for p in bench.rglob("*")
    }
    assert (
        targets.build_targets(bench / "manifest.parquet", people)["mini-DF1"]
        == bench / "targets" / "mini-DF1" / "manifest.parquet"
    )
    assert capsys.readouterr().out.count("HIT") == 3
    next((bench / "targets" / "mini-DF1" / "masks").rglob("*.png")).unlink()
    said = build()
    assert (
        "mini-DF1: MISS" in said and "(1 of 19 pictures missing)" in said and said.count("HIT") == 2
    )
    monkeypatch.setattr(targets, "RECIPE", targets.RECIPE + 1)
    assert build().count(f"recipe was {targets.RECIPE - 1}, is {targets.RECIPE}") == 3


def test_other_photographs_are_refused(tiny):
    bench, people = tiny
    with pytest.raises(ValueError, match="bench was not made from the ORL faces.*faces="):
        targets.build_targets(bench)
    Image.fromarray(read_image(people / "s1" / "1.png")[::-1]).save(people / "s1" / "1.png")
    with pytest.raises(
        ValueError,
        match="was not made from the photographs in .*people, or they have changed since",
    ):
        targets.build_targets(bench, people)
    assert not (bench / "targets").exists()


def test_photographs_without_a_face_count_too(tiny):
    "Somebody whose only photograph was dropped stands in dropped.csv alone; the digest covers that photograph too."
    bench, people = tiny
    df = read_manifest(bench / "manifest.parquet")
    someone = df.identity[df.split == "train"].iloc[0]
    left = df[df.identity != someone].replace(dict(split="train"), "test")
    left["group"] = left.split.map(dict(test=0, val=1))  # nobody is alone
    write_manifest(left, bench / "manifest.parquet")
    with pytest.raises(ValueError, match="was not made from"):
        targets.build_targets(bench, people)
    pd.DataFrame([(f"{someone}/1.png", "no face found.")], columns=["path", "reason"]).to_csv(
        bench / "dropped.csv", index=False
    )
    assert set(targets.build_targets(bench, people, workers=1)) == set(SETS)


def test_targets_are_made_of_the_photographs_that_the_benchmark_has(tmp_path):
    "Of each person as many, though there are more."
    people = write_people(tmp_path / "people", 6)
    photos = [path for path in all_photos(people) if path.stem == "1"]
    bench = write_stub(tmp_path / "bench", photos, 64, most=1)
    for path in targets.build_targets(bench, people, workers=1).values():
        reals = read_manifest(path).query("label == 0").video
        assert set(reals.str.split("-").str[1]) == {"1"}


def test_a_foreign_folder_is_never_replaced(tiny):
    bench, people = tiny
    notes = bench / "targets" / "mini-DF1" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(
        FileExistsError, match="mini-DF1 holds files that were not made by this command"
    ):
        targets.build_targets(bench, people, workers=1)
    assert notes.read_text() == "mine" and len(list(notes.parent.iterdir())) == 1


def test_a_full_disk_leaves_nothing_half_made(tiny, monkeypatch):
    bench, people = tiny

    def full(path, image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmark, "write_png", full)
    with pytest.raises(OSError, match="No space"):
        targets.build_targets(bench, people, workers=1)
    assert not list((bench / "targets").iterdir())


def test_no_benchmark(tmp_path):
    with pytest.raises(FileNotFoundError, match="no benchmark in .*nothing.*prle forge"):
        targets.build_targets(tmp_path / "nothing")
    with pytest.raises(ValueError, match="unknown target set 'DFDC'.*mini-DFDC"):
        targets.plan_targets([], "DFDC", 0, {})


# Contact sheet


def test_contact_sheet(small, tmp_path):
    df = small[2]["mini-DFDC"]
    sheet = benchmark.contact_sheet(df, tmp_path / "sheet.png", people=2, tile=64)
    assert sheet.shape == (20 + 4 * 64, 72 + 2 * 64, 3) and sheet.dtype == np.uint8
    assert np.array_equal(read_image(tmp_path / "sheet.png"), sheet)
    first = df[(df.identity == df.identity.iloc[0])].groupby("subset").path.first()
    for y, name in enumerate(["real", "pyramid", "parts", "bands"]):
        assert np.array_equal(
            sheet[20 + 64 * y : 84 + 64 * y, 72:136],
            read_image(f"{df.attrs['root']}/{first[name]}"),
        )
        assert sheet[20 + 64 * y : 84 + 64 * y, :72].min() < 100  # the label
    assert benchmark.contact_sheet(
        small[0] / "targets" / "mini-DF1" / "manifest.parquet", people=9
    ).shape == (20 + 2 * 112, 72 + 9 * 112, 3)


def test_what_could_not_be_made_stays_white(small):
    df = small[2]["mini-DFDC"]
    rows = df[(df.subset != "parts") | (df.identity != df.identity.iloc[0])]
    sheet, gap = (
        benchmark.contact_sheet(rows, people=2, tile=64),
        20 + 64 * rows.subset.unique().tolist().index("parts"),
    )
    assert (sheet[gap : gap + 64, 72:136] == 255).all() and sheet[
        gap : gap + 64, 136:200
    ].min() < 255


# Trivial cues


def check_cues(sets):
    for name, path in sets.items():
        table = benchmark.cue_table(read_manifest(path))
        assert list(table.index) == SETS[name] and table.shape == (len(SETS[name]), 7)
        assert (table < 0.65).all().all(), f"{name}\n{table.round(3).to_string()}"


def test_no_trivial_cue_on_orl(tmp_path):
    "Twelve people at 128 px, five of their ten photographs."
    people = write_people(tmp_path / "people", 12, photos=5)
    check_cues(
        targets.build_targets(
            write_stub(tmp_path / "bench", all_photos(people), 128), people, workers=2
        )
    )


def test_no_trivial_cue_in_colour(tmp_path):
    "Coloured photographs at 256 px, every person of another tint."
    people = write_people(tmp_path / "people", 12, photos=2, size=256, tint=(1.0, 0.78, 0.62))
    sets = targets.build_targets(
        write_stub(tmp_path / "bench", all_photos(people), 256), people, workers=2
    )
    red, _, blue = (
        read_image(sets["mini-Celeb"].parent / read_manifest(sets["mini-Celeb"]).path[0])
        .reshape(-1, 3)
        .mean(0)
    )
    assert blue / red < 0.85
    check_cues(sets)

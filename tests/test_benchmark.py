"The mini benchmark: its split, its folder, and the cues it must not have."

import cv2
import numpy as np
import pandas as pd
import pytest
from clips import write_clip, write_people
from kills import contents
from PIL import Image

from prle.mini import benchmark
from prle.mini import controls
from prle.data import faces
from prle.mini import generators
from prle.mini import targets
from prle.cli import main
from prle.core import rng
from prle.data.crops import read_rgb
from prle.data.manifest import check_crops, of_seed, read_manifest, write_manifest
from prle.data.pairs import partners
from prle.mini.generators import STEPS, train_networks
from prle.mini.targets import TARGETS
from prle.trust import mark_folder, read_json

NAMES = ["DF", "FS", "F2F", "Fsh", "NT"]
ORL = faces.orl_folder()


SMOKE = dict(size=64, people=8, most=4, steps=2)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    "Eight people at 64 px, four photographs of each, as the preset smoke has it."
    return benchmark.build_benchmark(tmp_path_factory.mktemp("smoke") / "bench", **SMOKE, workers=2)


HARDLY_TRAINED = 60  # steps: what is hardly trained is the hardest case for DF and Fsh


@pytest.fixture(
    scope="session", params=[HARDLY_TRAINED, pytest.param(STEPS, marks=pytest.mark.long)]
)
def test_split(request, tmp_path_factory):
    """The test split of the 40-people benchmark at 128 px.

    With all `STEPS`, the very pictures of `build_benchmark`: four minutes on two cores, most of them training."""
    root = tmp_path_factory.mktemp("test_split")
    framing = benchmark.SCALE, benchmark.LIFT, benchmark.SOFT
    found, _ = faces.read_faces(benchmark.choose_photos(), 128, *framing)
    jobs = [job for job in benchmark.plan(found, 0)[0] if job.split == "test"]
    networks, _ = train_networks(found, request.param)
    rows = benchmark._make_all(jobs, root, networks, seed=0, quality=90, workers=2)
    return read_manifest(write_manifest(pd.DataFrame(rows), root / "manifest.parquet"))


def test_the_faces_of_orl_are_its_own_400():
    "The package keeps a picture that is none of ORL's beside those of s10."
    assert (ORL / "s10" / "target.jpg").exists()
    photos = benchmark.choose_photos()
    assert len(photos) == 400
    assert {path.name for path in photos} == {f"{k}.pgm" for k in range(1, 11)}
    few = benchmark.choose_photos(people=6, most=2)
    assert len(few) == 12 and {path.name for path in few} == {"1.pgm", "2.pgm"}


# The folder


def test_groups_are_dealt_evenly_and_from_the_seed():
    people = [f"s{i}" for i in range(40)]
    home = benchmark.deal_groups(people, 0)
    assert set(pd.Series(home).value_counts()) == {5}
    assert benchmark.deal_groups(people, 0) == home != benchmark.deal_groups(people, 1)
    with pytest.raises(ValueError, match="5 people with a usable face.*at least 6"):
        benchmark.deal_groups(people[:5])


@pytest.mark.parametrize("people, sizes", [(40, (25, 5, 10)), (17, (10, 2, 5)), (12, (6, 3, 3))])
def test_four_seeds_test_all_people(people, sizes):
    "Once each, trained on others, with sources from the same split."
    photos = [f"p{i}/{k}.png" for i in range(people) for k in range(2)]
    jobs = [job for job in benchmark.plan(made_up(*photos), 0)[0] if job.subset in ("real", "DF")]
    table = pd.DataFrame(
        dict(
            identity=[job.target.identity for job in jobs],
            source=[(job.source or job.target).identity for job in jobs],
            split=[job.split for job in jobs],
            group=[job.group for job in jobs],
        )
    )
    tested, seen = [], None
    for seed in range(4):
        rows = of_seed(table, seed)
        home = rows.groupby("identity").split.first()
        assert (rows.source.map(home) == rows.split).all()
        counts = home.value_counts()
        assert all(abs(counts[s] - n) <= 1 for s, n in zip(("train", "val", "test"), sizes))
        now = set(home.index[home == "test"])
        assert now.isdisjoint(seen or ())
        tested, seen = [*tested, *now], now
    assert len(tested) == len(set(tested)) == people
    assert of_seed(table, 5).split.equals(of_seed(table, 1).split)


def test_smoke_benchmark(smoke):
    df = read_manifest(smoke)
    assert (
        set(df.subset) == {"real", *NAMES}
        and df.dataset.eq("mini").all()
        and df.compression.eq("jpeg90").all()
    )
    assert df.groupby("split").identity.nunique().to_dict() == {"train": 4, "val": 2, "test": 2}
    assert df.groupby("subset").size().nunique() == 1
    home = df.set_index("identity").split.to_dict()
    swaps = df[df.subset.isin(["DF", "FS", "Fsh"])]
    assert (swaps.identity != swaps.source_identity).all() and (
        swaps.source_identity.map(home) == swaps.split
    ).all()
    own = df[df.subset.isin(["F2F", "NT"])]
    assert (own.identity == own.source_identity).all() and (
        df[df.label == 0][["source_identity", "mask"]] == ""
    ).all().all()
    reals = set(df.video[df.label == 0])
    assert set(df.target[df.label == 1]) == reals and set(df.target[df.label == 0]) == {""}
    fake = df.iloc[partners(df)]
    assert (fake.label == 1).all() and (fake.identity.values == df.identity.values).all()
    for row in df.itertuples():
        assert faces.read_image(smoke.parent / row.path).shape == (64, 64, 3)
        if row.mask:
            assert set(np.unique(cv2.imread(str(smoke.parent / row.mask), -1))) == {0, 255}
    assert (
        len(pd.read_csv(smoke.parent / "dropped.csv")) + (df.label == 0).sum() == 32
    )  # nothing is lost


def test_far_from_the_mask_reals_and_fakes_are_the_same_file_content(smoke):
    "After compression too: JPEG works in blocks of 8 (chroma 16), so 16 px from the mask nothing differs."
    df = read_manifest(smoke).query("subset == 'NT'")
    for row in df.head(10).itertuples():
        fake, real = (
            cv2.imread(str(smoke.parent / p))
            for p in (row.path, f"real/{row.video.split('_')[0]}.png")
        )
        near = (
            cv2.dilate(cv2.imread(str(smoke.parent / row.mask), 0), np.ones((33, 33), np.uint8)) > 0
        )
        assert (fake[~near] == real[~near]).all() and not near.all()


def test_complete_and_same_is_reused(smoke, capsys, shown):
    before = {p: p.stat().st_mtime_ns for p in smoke.parent.rglob("*")}
    assert benchmark.build_benchmark(smoke.parent, **SMOKE) == smoke
    assert "HIT" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in smoke.parent.rglob("*")}


@pytest.fixture
def quick(monkeypatch, smoke):
    "A benchmark that is made in no time: faces are read once, of six people two photographs each."
    photos = [ORL / f"s{i}" / f"{k}.pgm" for i in range(1, 7) for k in (1, 2)]
    found = faces.read_faces(photos, 64, benchmark.SCALE, benchmark.LIFT)
    monkeypatch.setattr(benchmark, "choose_photos", lambda *a: photos)
    monkeypatch.setattr(benchmark, "read_faces", lambda *a: found)


def test_what_cannot_be_made_is_said_and_what_it_costs(monkeypatch):
    "With one photograph a person, before anything is trained."
    photos = [path for path in benchmark.choose_photos(people=6) if path.stem == "1"]
    found = faces.read_faces(photos, 64)[0]
    told = benchmark._tell_impossible(benchmark.plan(found, seed=0)[1], len(found))
    reason = "no other photograph of this person"
    assert told == [f"cannot be made of 6 of 6 faces: {m}: {reason}" for m in ("F2F", "NT")]
    assert generators._cost(found, 99) == ""
    monkeypatch.setattr(generators, "perf_counter", iter([0, 9, 9, 34]).__next__)
    trained = []
    monkeypatch.setattr(generators, "train_networks", lambda faces, steps: trained.append(steps))
    said = generators._cost(found, 1000)  # 16 s for 8 steps
    assert trained == [1, 1, 9], "the first step of all is not timed"
    assert said == ": 3 networks, 1000 steps each, about 33 minutes here"


def test_workers_do_not_change_a_byte(quick, tmp_path):
    for n in (1, 3):
        benchmark.build_benchmark(tmp_path / str(n), size=64, steps=1, workers=n)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_why_a_benchmark_is_made_again(quick, tmp_path, capsys, shown):
    out = tmp_path / "bench"

    def build(**kw):
        return (
            benchmark.build_benchmark(out, **{"size": 64, "steps": 1, **kw}),
            capsys.readouterr().out,
        )[1]

    said = build()
    assert (
        f"forge: MISS {out} (none there yet)" in said
        and "generators: MISS (none there yet)" in said
    )
    trained = contents(out / "generators")
    said = build(quality=80)
    assert (
        f"forge: MISS {out} (quality was 90, is 80)" in said
        and "generators: HIT" in said
        and contents(out / "generators") == trained
    )
    said = build(quality=80, seed=1)
    assert "(seed was 0, is 1)" in said and "generators: MISS (seed was 0, is 1)" in said
    next((out / "DF").iterdir()).unlink()
    said = build(quality=80, seed=1)
    assert "(1 of 132 pictures missing)" in said and "generators: HIT" in said
    assert build(quality=80, seed=1) == f"forge: HIT {out}\n"
    said = build(quality=80, seed=1, steps=2)
    assert "(steps was 1, is 2)" in said and "generators: MISS (steps was 1, is 2)" in said
    assert read_json(out / "forge.json")["config"]["steps"] == 2


def test_a_full_disk_leaves_nothing_half_made(quick, tmp_path, monkeypatch, capsys):
    benchmark.build_benchmark(tmp_path / "bench", size=64, steps=1)
    whole, calls, write = contents(tmp_path), [], benchmark.write_png

    def full(path, image):
        calls.append(path)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        write(path, image)

    monkeypatch.setattr(benchmark, "write_png", full)
    with pytest.raises(OSError, match="No space"):
        benchmark.build_benchmark(tmp_path / "bench", size=64, steps=1, seed=5)
    with pytest.raises(OSError, match="No space"):
        benchmark.build_benchmark(tmp_path / "new", size=64, steps=1)
    assert contents(tmp_path) == whole  # the earlier benchmark stands, and no trace of the new ones


def test_a_foreign_folder_is_never_replaced(quick, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="holds files that were not made by this command"):
        benchmark.build_benchmark(tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_too_few_people(tmp_path):
    with pytest.raises(ValueError, match="people must lie between 6 and 40, not 5"):
        benchmark.build_benchmark(tmp_path / "b", people=5)
    with pytest.raises(ValueError, match="not 41"):
        benchmark.build_benchmark(tmp_path / "b", people=41)


def test_own_photographs_in_colour(tmp_path):
    "Any folder of photographs; a person with one usable photograph lacks F2F and NT, and the report says so."
    for i in range(1, 7):
        folder = tmp_path / "people" / f"person {i}"
        folder.mkdir(parents=True)
        for k in (1, 2):
            grey = faces.read_image(ORL / f"s{i}" / f"{k}.pgm")
            Image.fromarray((grey * [1, 0.8, 0.6]).astype(np.uint8)).resize((184, 224)).save(
                folder / f"{k}.jpg", quality=95
            )
    (tmp_path / "people" / "person 3" / "2.jpg").write_bytes(b"broken")
    manifest = read_manifest(
        benchmark.build_benchmark(tmp_path / "out", tmp_path / "people", size=64, steps=1)
    )
    dropped = pd.read_csv(tmp_path / "out" / "dropped.csv")
    broken = "cannot be read (not a picture, or damaged from its beginning)."
    assert manifest.groupby("subset").size().to_dict() == {
        "real": 11,
        "DF": 11,
        "FS": 11,
        "Fsh": 11,
        "F2F": 10,
        "NT": 10,
    }
    assert dropped.path.tolist() == ["person 3/2.jpg", "person 3/1.jpg", "person 3/1.jpg"]
    assert dropped.reason.str.split(":").str[0].tolist() == [broken, "F2F", "NT"]
    red, _, blue = faces.read_image(tmp_path / "out" / manifest.path[0]).reshape(-1, 3).mean(0)
    assert blue / red < 0.8


def test_videos_keep_their_order(tmp_path):
    "A person's folder may hold videos: their frames stay together and in order, with one source for a whole video."
    for i in range(1, 7):
        write_clip(
            tmp_path / "people" / f"p{i}" / "walk.mp4", person=f"s{i}", frames=9, size=(224, 180)
        )
    write_clip(tmp_path / "people" / "p1" / "other.mp4", person="s1", frames=9, size=(224, 180))
    (tmp_path / "people" / "p2" / "broken.mp4").write_bytes(b"")
    assert (
        main(
            [
                "forge",
                "--faces",
                str(tmp_path / "people"),
                "--out",
                str(tmp_path / "out"),
                "--size",
                "64",
                "--steps",
                "1",
                "--count",
                "3",
            ]
        )
        == 1
    )  # one of the files gave no face
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert manifest.groupby("subset").size().to_dict() == dict.fromkeys(["real", *NAMES], 21)
    for _, rows in manifest.groupby(["subset", "video"]):
        assert (
            rows.frame.tolist() == [0, 4, 8]
            and rows.source_identity.nunique() == 1
            and rows.path.str.endswith(tuple(f"/{f:04d}.png" for f in (0, 4, 8))).all()
        )
    assert {"p1-walk_p1-other", "p2-walk_p2-walk"} <= set(manifest[manifest.subset == "F2F"].video)
    dropped = pd.read_csv(tmp_path / "out" / "dropped.csv")
    assert dropped.path.tolist() == ["p2/broken.mp4"] and "empty file" in dropped.reason[0]
    assert all(
        (tmp_path / "out" / p).exists()
        for p in [*manifest.path, *manifest["mask"][manifest["mask"] != ""]]
    )
    sheet = faces.read_image(
        tmp_path / "out" / "contact_sheet.png"
    )  # six people, the real face and five fakes of each
    assert sheet.shape == (20 + 6 * 112, 72 + 6 * 112, 3)
    assert all(
        tile.std() > 10 for row in np.split(sheet[20:, 72:], 6) for tile in np.split(row, 6, axis=1)
    )
    for name in TARGETS:
        shifted = read_manifest(tmp_path / "out" / "targets" / name / "manifest.parquet")
        assert set(shifted.subset) == {"real", *TARGETS[name].recipes}
        assert set(shifted.identity) == set(manifest.identity)
        assert all(
            rows.frame.tolist() == [0, 4, 8] and rows.source_identity.nunique() == 1
            for _, rows in shifted.groupby(["subset", "video"])
        )


def made_up(*photos, frames=(None,)):
    "Faces of no content, for the plan."
    return [
        faces.Face(
            np.zeros((8, 8, 3), np.uint8),
            rng(p, frame).uniform(0, 8, (68, 2)),
            1,
            p,
            p.split("/")[0],
            frame,
        )
        for p in photos
        for frame in frames
    ]


def test_sources_of_expressions_advance_with_their_targets():
    "From another video of the person frame by frame; from the only video half of it later, and round its end."
    clips = made_up(*(f"p{i}/walk.mp4" for i in range(1, 7)), "p1/other.mp4", frames=(0, 4, 8))
    jobs, _ = benchmark.plan(clips, seed=0)
    for name in ("F2F", "NT"):
        sources = {
            clip: [job.source for job in jobs if job.subset == name and job.target.photo == clip]
            for clip in ("p1/walk.mp4", "p2/walk.mp4")
        }
        assert [(face.photo, face.frame) for face in sources["p1/walk.mp4"]] == [
            ("p1/other.mp4", frame) for frame in (0, 4, 8)
        ]
        assert [(face.photo, face.frame) for face in sources["p2/walk.mp4"]] == [
            ("p2/walk.mp4", frame) for frame in (4, 8, 0)
        ]


def test_photographs_that_would_share_a_name_stay_apart():
    "The same stem twice, a photograph beside a video, and the same name with the hyphen elsewhere."
    people = [f"{p}/{name}" for p in "abcdef" for name in ("1.jpg", "1.png", "2.jpg")]
    jobs, _ = benchmark.plan(made_up(*people, "a-b/c.jpg", "a/b-c.jpg"), seed=0)
    names = {job.target.photo: job.video for job in jobs if job.subset == "real"}
    assert len(set(names.values())) == len(names) == 20 and len(
        {(job.subset, job.file) for job in jobs}
    ) == len(jobs)
    assert (names["a/1.jpg"], names["a/1.png"], names["a/2.jpg"]) == (
        "a-1.jpg",
        "a-1.png",
        "a-2",
    ) and names["a-b/c.jpg"].startswith("a-b-c.jpg-")
    doubled = [*jobs, benchmark.Job("real", jobs[0].target, 0, "val", jobs[0].names)]
    with pytest.raises(ValueError, match="a/1.jpg and a/1.jpg would both become real/a-1.jpg.png"):
        benchmark.check_jobs(doubled)


def test_several_faces_are_written_down(quick, tmp_path, monkeypatch):
    found, dropped = benchmark.read_faces()
    crowd = [faces.replace(found[0], found=3), *found[1:]]
    monkeypatch.setattr(benchmark, "read_faces", lambda *a: (crowd, dropped))
    out = benchmark.build_benchmark(tmp_path / "bench", size=64, steps=1).parent
    assert read_json(out / "forge.json")["several_faces"] == {"s1/1.pgm": 3}


def test_fakes_of_other_photographs_say_what_they_are(quick, tmp_path):
    "XMP with IPTC's DigitalSourceType, in fakes and no real; the pixels and ORL's own files stay."
    made = {}
    for name, given in dict(plain={}, own=dict(faces=ORL)).items():
        manifest = benchmark.build_benchmark(tmp_path / name, size=64, steps=1, **given)
        made[name] = read_manifest(manifest)
    own, plain = tmp_path / "own", tmp_path / "plain"
    for row in made["own"].itertuples():
        with Image.open(own / row.path) as picture:
            picture.load()
            said = picture.info.get("XML:com.adobe.xmp", "")
        assert ("digitalsourcetype/compositeSynthetic" in said) == bool(row.label)
        assert (read_rgb(own / row.path) == read_rgb(plain / row.path)).all()
    assert b"compositeSynthetic" in (own / "contact_sheet.png").read_bytes()
    assert not any(b"iTXt" in (plain / path).read_bytes() for path in made["plain"].path)
    assert check_crops(own)[0].empty


# Use


@pytest.mark.slow
def test_no_trivial_cue(test_split):
    "AUC of each cue alone, real against fake, on the test identities of the real benchmark: no exception."
    table = benchmark.cue_table(test_split)
    assert list(table.index) == NAMES and table.shape == (5, 7)
    assert (table < 0.65).all().all(), table.round(3).to_string()


@pytest.mark.slow
def test_the_cue_table_sees_a_cue(test_split, monkeypatch):
    "The table is no rubber stamp: brighten the fakes and it says so."
    cues = benchmark.trivial_cues(test_split)
    monkeypatch.setattr(
        benchmark,
        "trivial_cues",
        lambda manifest: cues.assign(brightness=cues.brightness + 300 * manifest.label),
    )
    assert (benchmark.cue_table(test_split).brightness == 1).all()


@pytest.mark.slow
def test_no_trivial_cue_in_colour(tmp_path):
    "All five manipulations of coloured photographs, every person under a light of another tint."
    people = write_people(tmp_path / "people", 40, photos=2, size=184, tint=(1.0, 0.78, 0.62))
    manifest = read_manifest(
        benchmark.build_benchmark(tmp_path / "bench", people, size=128, steps=HARDLY_TRAINED)
    )
    red, _, blue = faces.read_image(tmp_path / "bench" / manifest.path[0]).reshape(-1, 3).mean(0)
    table = benchmark.cue_table(manifest)
    assert (
        blue / red < 0.85
        and list(table.index) == NAMES
        and manifest.groupby("subset").size().min() >= 75
    )
    assert (table < 0.65).all().all(), table.round(3).to_string()


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "",
        '{"config": []}',
        '{"config": {}, "digest": 3, "pictures": 1}',
        '{"config": {}, "digest": "x", "pictures": 1}',
        "[" * 10**5,
        "null",
    ],
)
@pytest.mark.parametrize("name", ["forge.json", "target.json", "controls.json"])
def test_a_damaged_record_is_a_reason(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    reason = benchmark.why_not(tmp_path / name, dict(size=64), [])
    assert reason.startswith("the record is damaged: ") and name in reason and len(reason) < 500
    if name == "forge.json":
        with pytest.raises(ValueError, match="forge.json"):
            targets.build_targets(tmp_path)


@pytest.mark.parametrize("record", [None, "{", '{"config": {}, "digest": "x", "pictures": 1}'])
def test_what_nobody_can_tell_is_not_replaced_unasked(tmp_path, record):
    "One's own benchmark with a damaged record is not the preset's; where nothing is, one is made."
    folder = tmp_path / "data"
    for _ in range(2):
        benchmark.check_alike(folder / "forge.json", dict(size=64), ())
        folder.mkdir(exist_ok=True)
    (folder / "manifest.parquet").touch()
    if record:
        (folder / "forge.json").write_text(record)
    mark_folder(folder, "benchmark")
    before = contents(folder)
    for build in (benchmark.build_benchmark, controls.build_controls):
        with pytest.raises(FileExistsError, match="cannot be told .*json.* move it away"):
            build(folder, people=6, keep=True)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "setting", [dict(size=0), dict(size=-5), dict(steps=0), dict(count=0), dict(most=0)]
)
def test_numbers_out_of_range_are_named_before_any_work(tmp_path, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be at least"):
        benchmark.build_benchmark(tmp_path / "b", **setting)
    assert not (tmp_path / "b").exists()

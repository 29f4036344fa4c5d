"The five manipulations, their masks, the benchmark's folder, and the cues it must not have."

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prle import faces, forge
from prle.core import file_digest, read_json, rng
from prle.datasets import read_manifest, write_manifest

NAMES = ["DF", "FS", "F2F", "Fsh", "NT"]
ORL = faces.orl_folder()


def read(name, size=128):
    return faces.read_face(ORL/f"{name}.pgm", size, forge.SCALE, forge.LIFT)


@pytest.fixture(scope="module")
def trio():
    "A target, another person, the same person again."
    return read("s16/1"), read("s5/1"), read("s16/7")


@pytest.fixture(scope="module")
def fakes(trio):
    target, other, same = trio
    made = {}
    for name in NAMES:
        source = other if forge._MANIPULATIONS[name].source == "other" else same
        made[name] = forge.manipulate(name, target.crop, target.landmarks, source.crop, source.landmarks, rng(0, name))
    return made


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    "Eight people at 64 px, as the preset smoke has it."
    return forge.build_benchmark(tmp_path_factory.mktemp("smoke")/"bench", size=64, people=8, workers=2)


@pytest.fixture(scope="session")
def test_split(tmp_path_factory):
    "The test split of the 40-people benchmark at 128 px, the very pictures of `build_benchmark` (about 20 s)."
    root = tmp_path_factory.mktemp("test_split")
    found, _ = faces.read_faces(forge._choose(None, None, 0), 128, forge.SCALE, forge.LIFT)
    jobs = [job for job in forge.plan(found, 0)[0] if job.split == "test"]
    rows = forge._make_all(jobs, root, seed=0, quality=90, workers=2)
    return read_manifest(write_manifest(pd.DataFrame(rows), root/"manifest.parquet"))


def files(root):
    return {p.relative_to(root).as_posix(): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


# Tools

def test_warp_carries_landmarks_to_landmarks(trio):
    target, other, _ = trio
    dot = np.zeros_like(other.crop)
    x, y = np.rint(other.landmarks[30]).astype(int)
    cv2.circle(dot, (int(x), int(y)), 2, (255, 255, 255), -1)
    moved = forge.warp(dot, other.landmarks, target.landmarks)[..., 0].clip(0)
    yy, xx = np.mgrid[:128, :128]
    centre = (moved * xx).sum() / moved.sum(), (moved * yy).sum() / moved.sum()
    assert np.hypot(*(centre - target.landmarks[30])) < 2


def test_warp_to_itself_is_the_identity(trio):
    face = trio[0]
    assert np.abs(forge.warp(face.crop, face.landmarks, face.landmarks) - face.crop).max() < 1


def test_warp_covers_landmarks_outside_the_crop(trio):
    target, other, _ = trio
    out = forge.warp(other.crop, other.landmarks + (0, 40), target.landmarks - (60, 0))
    assert out.shape == (128, 128, 3) and np.isfinite(out).all()


def test_membrane_solves_laplace():
    g = rng(0, "membrane")
    region = np.zeros((24, 24), bool)
    region[4:19, 6:15] = True
    border = g.normal(0, 50, (24, 24, 3))
    u = forge.membrane(border, region)
    assert np.array_equal(u[~region], border[~region])
    mean = (np.roll(u, 1, 0) + np.roll(u, -1, 0) + np.roll(u, 1, 1) + np.roll(u, -1, 1)) / 4
    assert np.allclose(u[region], mean[region])


def test_match_sharpness_reaches_the_energy(trio):
    face, region = trio[0].crop, forge.inner(128)
    energy = lambda p: (cv2.Laplacian(np.float32(p), cv2.CV_32F)[region].astype(np.float64) ** 2).sum()
    for sigma in (0.6, 0.9):
        blurred = cv2.GaussianBlur(face, (0, 0), sigma).astype(np.float32)
        assert abs(energy(forge.match_sharpness(blurred, face, region, limits=(-1, 20))) / energy(face) - 1) < 1e-3


def test_matching_survives_flat_pictures():
    flat, region = np.full((64, 64, 3), 9, np.float32), forge.inner(64)
    assert np.isfinite(forge.match_sharpness(flat, flat.astype(np.uint8), region)).all()
    assert np.allclose(forge.match_colour(flat, np.full((64, 64, 3), 77, np.uint8), region)[region], 77)


# Manipulations

def test_the_registry_and_its_error():
    assert forge.list_manipulations() == NAMES
    with pytest.raises(ValueError, match="unknown manipulation 'F2f'.*Did you mean 'F2F'.*Known: DF, FS, F2F, Fsh, NT"):
        forge.manipulate("F2f", None, None, None, None, None)
    with pytest.raises(ValueError, match="unknown source 'others'"): forge.register("X", source="others")(lambda: None)
    assert forge.list_manipulations() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_exact(trio, fakes, name):
    "Outside the mask nothing changed, inside most did, and the frame was never touched."
    real, (fake, mask) = trio[0].crop, fakes[name]
    changed = (fake != real).any(-1)
    assert fake.shape == real.shape and fake.dtype == np.uint8 and mask.dtype == bool
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.75
    assert not mask[~forge.inner(128)].any()
    assert 0.05 < mask.mean() < 0.6


def test_manipulations_are_where_they_should_be(trio, fakes):
    eyes = np.rint(trio[0].landmarks[36:48].mean(0)).astype(int)
    mouth = np.rint(trio[0].landmarks[48:].mean(0)).astype(int)
    masks = {name: mask for name, (_, mask) in fakes.items()}
    assert all(mask[mouth[1], mouth[0]] for mask in masks.values())
    assert {name for name, mask in masks.items() if mask[eyes[1], eyes[0]]} == {"DF", "FS", "F2F", "Fsh"}
    rows, cols = np.nonzero(masks["DF"])
    assert masks["DF"].sum() == (np.ptp(rows) + 1) * (np.ptp(cols) + 1) # a full rectangle


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 200])
def test_any_size_and_repeatable(name, size):
    target, source = read("s16/1", size), read("s16/7", size)
    args = (target.crop, target.landmarks, source.crop, source.landmarks)
    (a, mask), (b, _) = (forge.manipulate(name, *args, rng(1)) for _ in range(2))
    assert a.shape == (size, size, 3) and mask.any() and np.array_equal(a, b)


def test_colour_stays_colour(trio):
    tint = np.array([1, 0.7, 0.4])
    crops = [(f.crop * tint).astype(np.uint8) for f in trio[:2]]
    for name in NAMES:
        fake, mask = forge.manipulate(name, crops[0], trio[0].landmarks, crops[1], trio[1].landmarks, rng(0))
        red, _, blue = fake[mask].mean(0)
        assert 0.3 < blue / red < 0.5


# The folder

def test_split_is_by_identity_in_proportion():
    people = [f"s{i}" for i in range(40)]
    split = pd.Series(forge.split_people(people, 0))
    assert split.value_counts().to_dict() == {"train": 24, "test": 12, "val": 4}
    assert forge.split_people(people, 0) == split.to_dict() != forge.split_people(people, 1)
    assert pd.Series(forge.split_people(people[:8])).value_counts().min() == 2
    with pytest.raises(ValueError, match="5 people with a usable face.*at least 6"): forge.split_people(people[:5])


def test_smoke_benchmark(smoke):
    df = read_manifest(smoke)
    assert set(df.subset) == {"real", *NAMES} and df.dataset.eq("mini").all() and df.compression.eq("jpeg90").all()
    assert df.groupby("split").identity.nunique().to_dict() == {"train": 4, "val": 2, "test": 2}
    assert df.groupby("subset").size().nunique() == 1
    home = df.set_index("identity").split.to_dict()
    swaps = df[df.subset.isin(["DF", "FS", "Fsh"])]
    assert (swaps.identity != swaps.source_identity).all() and (swaps.source_identity.map(home) == swaps.split).all()
    own = df[df.subset.isin(["F2F", "NT"])]
    assert (own.identity == own.source_identity).all() and (df[df.label == 0][["source_identity", "mask"]] == "").all().all()
    for row in df.itertuples():
        assert faces.read_image(smoke.parent/row.path).shape == (64, 64, 3)
        if row.mask: assert set(np.unique(cv2.imread(str(smoke.parent/row.mask), -1))) == {0, 255}
    assert len(pd.read_csv(smoke.parent/"dropped.csv")) + (df.label == 0).sum() == 80 # nothing is lost


def test_far_from_the_mask_reals_and_fakes_are_the_same_file_content(smoke):
    "After compression too: JPEG works in blocks of 8 (chroma 16), so 16 px from the mask nothing differs."
    df = read_manifest(smoke).query("subset == 'NT'")
    for row in df.head(10).itertuples():
        fake, real = (cv2.imread(str(smoke.parent/p)) for p in (row.path, f"real/{row.video.split('_')[0]}.png"))
        near = cv2.dilate(cv2.imread(str(smoke.parent/row.mask), 0), np.ones((33, 33), np.uint8)) > 0
        assert (fake[~near] == real[~near]).all() and not near.all()


def test_complete_and_same_is_reused(smoke, capsys):
    before = {p: p.stat().st_mtime_ns for p in smoke.parent.rglob("*")}
    assert forge.build_benchmark(smoke.parent, size=64, people=8) == smoke
    assert "HIT" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in smoke.parent.rglob("*")}


@pytest.fixture
def quick(monkeypatch, smoke):
    "A benchmark that is made in no time: faces are read once, of six people two photographs each."
    photos = [ORL/f"s{i}"/f"{k}.pgm" for i in range(1, 7) for k in (1, 2)]
    found = faces.read_faces(photos, 64, forge.SCALE, forge.LIFT)
    monkeypatch.setattr(forge, "_choose", lambda *a: photos)
    monkeypatch.setattr(forge, "read_faces", lambda *a: found)


def test_workers_do_not_change_a_byte(quick, tmp_path):
    for n in (1, 3): forge.build_benchmark(tmp_path/str(n), size=64, workers=n)
    assert files(tmp_path/"1") == files(tmp_path/"3")


def test_why_a_benchmark_is_made_again(quick, tmp_path, capsys):
    out = tmp_path/"bench"
    build = lambda **kw: (forge.build_benchmark(out, **{"size": 64, **kw}), capsys.readouterr().out)[1]
    assert "MISS" in (said := build()) and "none there yet" in said
    assert "quality was 90, is 80" in build(quality=80)
    assert "seed was 0, is 1" in build(quality=80, seed=1)
    next((out/"DF").iterdir()).unlink()
    assert "1 of 132 pictures missing" in build(quality=80, seed=1)
    assert "HIT" in build(quality=80, seed=1)


def test_a_full_disk_leaves_nothing_half_made(quick, tmp_path, monkeypatch, capsys):
    forge.build_benchmark(tmp_path/"bench", size=64)
    whole, calls, write = files(tmp_path), [], forge.write_png

    def full(path, image):
        calls.append(path)
        if len(calls) > 20: raise OSError(28, "No space left on device")
        write(path, image)
    monkeypatch.setattr(forge, "write_png", full)
    with pytest.raises(OSError, match="No space"): forge.build_benchmark(tmp_path/"bench", size=64, seed=5)
    with pytest.raises(OSError, match="No space"): forge.build_benchmark(tmp_path/"new", size=64)
    assert files(tmp_path) == whole # the earlier benchmark stands, and no trace of the new ones


def test_a_foreign_folder_is_never_replaced(quick, tmp_path):
    (tmp_path/"notes.txt").touch()
    with pytest.raises(FileExistsError, match="holds other files"): forge.build_benchmark(tmp_path)
    assert (tmp_path/"notes.txt").exists()


def test_too_few_people(tmp_path):
    with pytest.raises(ValueError, match="people must lie between 6 and 40, not 5"): forge.build_benchmark(tmp_path/"b", people=5)
    with pytest.raises(ValueError, match="not 41"): forge.build_benchmark(tmp_path/"b", people=41)


def test_own_photographs_in_colour(tmp_path):
    "Any folder of photographs; a person with one usable photograph lacks F2F and NT, and the report says so."
    for i in range(1, 7):
        folder = tmp_path/"people"/f"person {i}"
        folder.mkdir(parents=True)
        for k in (1, 2):
            grey = faces.read_image(ORL/f"s{i}"/f"{k}.pgm")
            Image.fromarray((grey * [1, 0.8, 0.6]).astype(np.uint8)).resize((184, 224)).save(folder/f"{k}.jpg", quality=95)
    (tmp_path/"people"/"person 3"/"2.jpg").write_bytes(b"broken")
    manifest = read_manifest(forge.build_benchmark(tmp_path/"out", tmp_path/"people", size=64))
    dropped = pd.read_csv(tmp_path/"out"/"dropped.csv")
    assert manifest.groupby("subset").size().to_dict() == {"real": 11, "DF": 11, "FS": 11, "Fsh": 11, "F2F": 10, "NT": 10}
    assert dropped.path.tolist() == ["person 3/2.jpg", "person 3/1.jpg", "person 3/1.jpg"]
    assert dropped.reason.str.split(":").str[0].tolist() == ["not a picture.", "F2F", "NT"]
    red, _, blue = faces.read_image(tmp_path/"out"/manifest.path[0]).reshape(-1, 3).mean(0)
    assert blue / red < 0.8


def test_several_faces_are_written_down(quick, tmp_path, monkeypatch):
    found, dropped = forge.read_faces()
    crowd = [faces.replace(found[0], found=3), *found[1:]]
    monkeypatch.setattr(forge, "read_faces", lambda *a: (crowd, dropped))
    out = forge.build_benchmark(tmp_path/"bench", size=64).parent
    assert read_json(out/"forge.json")["several_faces"] == {"s1/1.pgm": 3}


# Use

def test_no_trivial_cue(test_split):
    "AUC of each cue alone, real against fake, on the test identities of the real benchmark: no exception."
    table = forge.cue_table(test_split)
    assert list(table.index) == NAMES and table.shape == (5, 6)
    assert (table < 0.65).all().all(), table.round(3).to_string()


def test_the_cue_table_sees_a_cue(test_split, monkeypatch):
    "The table is no rubber stamp: brighten the fakes and it says so."
    cues = forge.trivial_cues(test_split)
    monkeypatch.setattr(forge, "trivial_cues", lambda manifest: cues.assign(brightness=cues.brightness + 300 * manifest.label))
    assert (forge.cue_table(test_split).brightness == 1).all()

"""Data of one's own: what folders are called, how they are split, what is copied between splits; parts of DFDC.

Of prle.data.layouts."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from prle.data.videos import crop_videos
from prle.cli import main
from prle.core import rng
from prle.data.faces import orl_folder, write_png
from prle.data.layouts import check, list_dataset
from prle.data.layouts.copies import find_copies
from clips import draw_frame, photograph, write_frames


def picture(*key, size=(96, 80)):
    "A picture like no other, with more of the slow waves than of the fast ones, as photographs have them."
    draw, found = rng("picture", *key), np.zeros((*size, 3))
    for waves in (3, 6, 12, 24, 48):
        part = draw.standard_normal((waves, waves, 3)) / waves
        found += cv2.resize(part, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 200 * found, 0, 255).astype(np.uint8)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def put(root, *names):
    "Write a picture of its own under each name."
    for name in names:
        write_png(root / name, picture(name))


def shown(listing, *columns):
    return [tuple(row) for row in listing.videos[list(columns)].values.tolist()]


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_splits_go_by_their_usual_names(tmp_path, val):
    touch(tmp_path, "Training/real/a.mp4", f"{val}/real/b.mp4", "test/real/c.mp4")
    for split in ("Training", val, "test"):
        (tmp_path / split / "fake").mkdir()
    listing = list_dataset("folder", tmp_path)
    assert [row[0] for row in shown(listing, "split")] == ["train", "val", "test"]
    assert listing.problems == []


def test_what_means_nothing_is_named(tmp_path, capsys):
    touch(tmp_path, "train/real/a.mp4", "train/fake/b.mp4", "train/unsure/c.mp4", "train/d.mp4")
    touch(tmp_path, "holdout/real/e.mp4", "f.png", "notes.txt", "real/g.mp4", ".git/h.mp4")
    touch(tmp_path, "crops/extraction.json")
    problems = dict(list_dataset("folder", tmp_path).problems)
    named = {str(Path(file).relative_to(tmp_path)): why for file, why in problems.items()}
    assert named == {
        "train/unsure": "not one of the folders real and fake; left out",
        "train/d.mp4": "in none of the folders real and fake; left out",
        "holdout": "not one of the folders train, val, test; left out",
        "real": "not one of the folders train, val, test; left out",
        "f.png": "in none of the folders train, val, test; left out",
    }
    assert main(["check", "folder", str(tmp_path)]) == 1
    assert f"{tmp_path}/holdout: not one of" in capsys.readouterr().out


def people(root, names, *places):
    touch(root, *(f"{place}/{name}/{i}.mp4" for place in places for name in names for i in (1, 2)))


def test_people_are_split_as_people(tmp_path, capsys):
    "A sub-folder is a person; in fake it may lie in that of the manipulation. Whoever splits again gets the same."
    names = "ann bea cleo dora eve fay gina hana ida jill".split()
    people(tmp_path, names, "real", "fake", "fake/swap")
    listing = list_dataset("folder", tmp_path, split="70/10/20")
    videos = listing.videos
    assert videos.groupby("identity").split.first().value_counts().to_dict() == {
        "train": 7,
        "test": 2,
        "val": 1,
    }
    assert (videos.groupby("identity").split.nunique() == 1).all()
    assert videos.groupby("subset").size().to_dict() == {"real": 20, "fake": 20, "swap": 20}
    assert set(videos.identity) == set(names)
    again = list_dataset("folder", tmp_path, split="70/10/20").videos
    assert again.split.tolist() == videos.split.tolist()
    assert len(set(list_dataset("folder", tmp_path, split="40/30/30").videos.split)) == 3
    main(["check", "folder", str(tmp_path), "--split", "70/10/20"])
    said = capsys.readouterr().out
    assert "no person in more than one split" in said and "split by person: 10 sub-folders" in said


def test_without_people_files_are_split_and_that_is_said(tmp_path, capsys):
    "A fake goes with the real of its name; that nobody knows who is in the videos is said wherever it is so."
    touch(tmp_path, *(f"{place}/{i:02d}.mp4" for place in ("real", "fake/swap") for i in range(20)))
    touch(tmp_path, "real/ann/x.mp4")
    listing = list_dataset("folder", tmp_path, split="50/20/30")
    videos = listing.videos[listing.videos.identity != "real-ann-x"]
    stems = videos.file.map(lambda file: Path(file).stem)
    assert (videos.groupby(stems).split.nunique() == 1).all()
    counted = videos[videos.subset == "real"].split.value_counts().to_dict()
    assert counted == {"train": 10, "test": 6, "val": 4}
    assert main(["check", "folder", str(tmp_path), "--split", "50/20/30"]) == 1
    said = capsys.readouterr().out
    assert "WARNING: 40 of 41 videos lie in no person's sub-folder and are split by file" in said
    assert "cannot be known" in said and "no person in more than" not in said


def test_without_splits_nobody_claims_to_know_who_is_who(tmp_path):
    touch(tmp_path, "train/real/a.mp4", "test/real/a.mp4", "train/fake/b.mp4", "test/fake/c.mp4")
    report = str(check("folder", tmp_path))
    assert "whether a person is in more than one split cannot be known" in report
    assert "no person in more than one split" not in report


@pytest.mark.parametrize(
    "split, message",
    [
        ("80/20", "e.g. 70/10/20, not '80/20'"),
        ("70/20/20", "e.g. 70/10/20, not '70/20/20'"),
        ("110/-20/10", "e.g. 70/10/20"),
        ("most/some/few", "e.g. 70/10/20"),
        ("70/10/20", "2 are too few to be split: (test|val) is empty"),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path, split, message):
    people(tmp_path, ["ann", "bea"], "real", "fake")
    with pytest.raises(ValueError, match=message):
        list_dataset("folder", tmp_path, split=split)


def test_splits_of_ones_own_are_not_split_again(tmp_path, capsys):
    touch(tmp_path, "train/real/a.mp4")
    assert main(["check", "folder", str(tmp_path), "--split", "70/10/20"]) == 2
    assert "has splits of its own (train, ...)" in capsys.readouterr().err
    assert main(["check", "celeb-df", str(tmp_path), "--split", "70/10/20"]) == 2
    assert "unknown option of celeb-df 'split'" in capsys.readouterr().err


# Copies


@pytest.fixture
def clean(tmp_path):
    "Pictures of which no two are alike."
    root = tmp_path / "mine"
    put(
        root,
        *(
            f"{split}/{kind}/{i}.png"
            for split in ("train", "val", "test")
            for kind in ("real", "fake")
            for i in "ab"
        ),
    )
    return root


def test_no_copies_no_leak(clean, capsys):
    assert main(["check", "folder", str(clean)]) == 0
    assert capsys.readouterr().out.endswith("complete\n")


def recompressed(image):
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda image: np.clip(image * 0.9 + 20, 0, 255).astype(np.uint8),
    ],
    ids=["compressed again", "halved", "brighter"],
)
def test_what_looks_the_same_in_two_splits_is_a_leak(clean, capsys, change):
    write_png(clean / "val/fake/c.png", change(picture("train/real/b.png")))
    assert main(["check", "folder", str(clean)]) == 1
    said = capsys.readouterr().out
    assert "1 problems" in said
    assert (
        f"{clean}/val/fake/c.png: looks the same as {clean}/train/real/b.png: a leak from train to val"
        in said
    )


def test_the_same_file_in_two_splits_is_a_leak_under_any_name(clean):
    shutil.copyfile(clean / "train/real/a.png", clean / "test/real/other.png")
    ((file, why),) = check("folder", clean).bad.values.tolist()
    assert file == f"{clean}/test/real/other.png"
    assert why == f"the same file as {clean}/train/real/a.png: a leak from train to test"


def test_copies_in_one_split_are_no_leak_unless_they_contradict_each_other(clean):
    shutil.copyfile(clean / "train/real/a.png", clean / "train/real/c.png")
    assert check("folder", clean).complete
    shutil.copyfile(clean / "train/real/a.png", clean / "train/fake/c.png")
    ((file, why),) = check("folder", clean).bad.values.tolist()
    assert Path(file).parent.name == "real" or why.endswith("which has the other label")
    assert "which has the other label" in why


def test_folders_of_frames_are_compared_as_a_whole(tmp_path):
    "Frames in the same order are the same video; one that differs in the middle looks different."
    for place, keys in {"train/real/v": "abc", "test/real/w": "abc", "test/real/x": "adc"}.items():
        for i, key in enumerate(keys):
            write_png(tmp_path / place / f"{i}.png", picture(key))
    put(tmp_path, "train/fake/a.png", "test/fake/b.png")
    ((file, why),) = check("folder", tmp_path).bad.values.tolist()
    assert file.endswith("test/real/w") and "the same file as" in why


def test_flat_pictures_are_not_taken_for_each_other(tmp_path):
    "Black frames tell nothing; only the content does."
    for place, value in {"train/real/a": 0, "test/real/b": 3, "train/fake/c": 200}.items():
        write_png(tmp_path / f"{place}.png", np.full((48, 48, 3), value, np.uint8))
    put(tmp_path, "test/fake/d.png")
    assert check("folder", tmp_path).complete


def test_portraits_of_different_people_are_not_taken_for_copies(tmp_path):
    "All of the ORL faces, which are framed alike: half of the people train, the others test."
    files = sorted(Path(orl_folder()).glob("s*/[15].pgm"))
    number = [int(file.parent.name[1:]) for file in files]
    table = pd.DataFrame(dict(file=map(str, files), label=0))
    table["split"] = ["train" if n <= 20 else "test" for n in number]
    assert find_copies(table) == []
    table["split"] = ["test" if file.name == "1.pgm" else "train" for file in files]
    assert len(find_copies(table)) < 3, "other pictures of the same people are no copies either"


def test_people_before_one_wall_are_not_taken_for_copies_but_films_that_were_encoded_again_are(
    tmp_path,
):
    "A frame of which the face takes a hundredth; the same film in another size has another file."
    size, half = (640, 480), (320, 240)
    films = {
        name: [draw_frame(size, [photograph(name, 80)], 4 * i)[0] for i in range(5)]
        for name in ("s1", "s2")
    }
    write_frames(tmp_path / "train/real/a.mp4", films["s1"], size)
    write_frames(tmp_path / "test/real/b.mp4", films["s2"], size)
    put(tmp_path, "train/fake/a.png", "test/fake/b.png")
    assert check("folder", tmp_path).complete
    smaller = [cv2.resize(frame, half, interpolation=cv2.INTER_AREA) for frame in films["s1"]]
    write_frames(tmp_path / "test/fake/c.mp4", smaller, half)
    ((file, why),) = check("folder", tmp_path).bad.values.tolist()
    assert file.endswith("test/fake/c.mp4") and "looks the same as" in why
    assert why.endswith("train/real/a.mp4: a leak from train to test")


# DFDC


METADATA = {
    "a.mp4": dict(label="REAL", split="train", original=None),
    "b.mp4": dict(label="FAKE", split="train", original="a.mp4"),
    "c.mp4": dict(label="FAKE", split="train", original="elsewhere.mp4"),
}


@pytest.mark.parametrize(
    "home", ["train_sample_videos", "dfdc_train_part_7", "kaggle/train_sample_videos"]
)
def test_a_single_folder_of_dfdc_is_enough(tmp_path, home):
    "Recognized by the metadata.json in it, or in Kaggle's folder."
    touch(tmp_path / home, *METADATA)
    (tmp_path / home / "metadata.json").write_text(json.dumps(METADATA))
    root = tmp_path / home.split("/")[0]
    listing = list_dataset("dfdc", root)
    assert shown(listing, "video", "label", "identity", "target", "split") == [
        ("a", 0, "a", "", "train"),
        ("b", 1, "a", "a", "train"),
        ("c", 1, "elsewhere", "elsewhere", "train"),
    ]
    assert listing.videos.file[0] == str(tmp_path / home / "a.mp4") and not listing.problems
    if "part" in home:
        assert not listing.expected and not listing.totals
    else:
        assert listing.expected == {("train", "real"): 77, ("train", "fake"): 323}
    assert list_dataset("dfdc", root, part="train").videos.equals(listing.videos)


def test_a_test_part_of_dfdc_is_no_training_part(tmp_path):
    "Its folder has a metadata.json as well; labels.csv decides."
    touch(tmp_path / "test", "a.mp4")
    (tmp_path / "test/labels.csv").write_text("filename,label\na.mp4,0\n")
    (tmp_path / "test/metadata.json").write_text("{}")
    for root in (tmp_path, tmp_path / "test"):
        assert shown(list_dataset("dfdc", root), "video", "split") == [("a", "test")]
    with pytest.raises(ValueError, match="only its training parts can be split"):
        list_dataset("dfdc", tmp_path, split="70/10/20")


def test_training_parts_of_dfdc_are_split_by_original(tmp_path):
    metadata = {f"r{i}.mp4": dict(label="REAL") for i in range(10)}
    metadata |= {f"f{i}.mp4": dict(label="FAKE", original=f"r{i % 10}.mp4") for i in range(30)}
    touch(tmp_path, *metadata)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    listing = list_dataset("dfdc", tmp_path, split="70/10/20")
    counted = listing.videos.groupby(["split", "label"]).size().to_dict()
    assert counted == {("train", 0): 7, ("train", 1): 21, ("val", 0): 1, ("val", 1): 3} | {
        ("test", 0): 2,
        ("test", 1): 6,
    }
    assert any(re.search("an actor .* may be in several splits", note) for note in listing.notes)
    assert "cannot be known" in str(check("dfdc", tmp_path, split="70/10/20"))


def test_photographs_of_a_person_are_no_video(tmp_path):
    "Pictures of any names and sizes; numbered ones of one size are frames."
    for kind in ("real", "fake"):
        for k, name in enumerate(("beach", "party", "work")):
            write_png(tmp_path / kind / "ann" / f"{name}.png", picture(kind, k, size=(40 + k, 30)))
        for k in range(3):
            write_png(tmp_path / kind / "clip" / f"{k:03d}.png", picture(kind, "clip", k))
    listing = list_dataset("folder", tmp_path)
    names = [Path(row["file"]).name for row in listing.rows]
    assert names == ["beach.png", "party.png", "work.png", "clip"] * 2
    assert [row["file"].split("/")[-2] for row in listing.rows[:3]] == ["ann"] * 3


def test_a_link_to_nothing_costs_its_frame(tmp_path, capsys):
    for kind in ("real", "fake"):
        for k in range(3):
            write_png(tmp_path / "own" / kind / "v" / f"{k:03d}.png", picture(kind, k))
    (tmp_path / "own/real/v/003.png").symlink_to(tmp_path / "nowhere.png")
    assert main(["check", "folder", str(tmp_path / "own")]) == 1
    assert "real/v: unreadable" in capsys.readouterr().out
    videos = list_dataset("folder", tmp_path / "own").videos
    assert find_copies(videos) == []
    crop_videos(videos, tmp_path / "out", cropped=True, workers=0, size=32)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6


def test_videos_beside_pictures_are_not_lost(tmp_path):
    "Neither beside one picture nor beside frames."
    for kind in ("real", "fake"):
        write_png(tmp_path / kind / "ann/cover.png", picture(kind))
        for k in range(3):
            write_png(tmp_path / kind / "bea" / f"{k:03d}.png", picture(kind, k))
        touch(tmp_path / kind, "ann/a.mp4", "bea/b.mp4")
    names = [Path(row["file"]).name for row in list_dataset("folder", tmp_path).rows]
    assert names == ["a.mp4", "cover.png", "bea", "b.mp4"] * 2

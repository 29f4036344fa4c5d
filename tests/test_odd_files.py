"""Files as people have them: odd names, things that are no pictures, places that cannot be written.

What the commands make of them, what they print where, and their exit codes."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from clips import photograph, write_clip

from prle import cli
from prle.core import FAKE, REAL, log, show_messages
from prle.data import layouts
from prle.data.faces import list_photos, photo_name, write_png
from prle.data.manifest import read_manifest
from prle.lab.claims import beside
from prle.mini.benchmark import video_names
from prle.trust import check_destination, file_name, safe_name

NAMES = [
    "x" * 250,
    "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 125,
    "two\nlines",
    " blank before",
    "blank and dot after. ",
    "back\\slash",
    "per%cent 'quote\" *?|<>:;&$",
    "con",
]
NO_TEXT = os.fsdecode(b"not text \xff")


@pytest.fixture(scope="module")
def face():
    return np.pad(photograph("s5", 92), ((20, 20), (20, 20), (0, 0)), "edge")


def faces(*words):
    options = ["--size", "64", "--workers", "0", "--count", "2"]
    return cli.main(["faces", *map(str, words), *options])


# Names


@pytest.mark.parametrize("text", [*NAMES, NO_TEXT, "", ".", "..", "a/b", "nul.txt", "x" * 10_000])
def test_any_text_becomes_a_name_of_its_own(text):
    assert file_name(safe_name(text)) == safe_name(text) == safe_name(safe_name(text))
    assert len(safe_name(text).encode()) <= 160 and safe_name(text) != safe_name(f"{text}!")
    assert safe_name(text, 85).encode()[85:] == b""


def test_good_names_stay():
    for name in ("071_054", "Anna Ähre", "a.b-c", "日本"):
        assert safe_name(name) == name


def test_folders_of_any_name_are_cropped_and_a_bad_file_costs_itself(face, tmp_path, capsys):
    root = tmp_path / "mine"
    for name in NAMES:
        (root / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "1.png"), face)
        shutil.copy(tmp_path / "1.png", root / name / "1.png")
    write_clip(tmp_path / "clip.mp4", frames=2)
    shutil.copy(tmp_path / "clip.mp4", root / f"{'y' * 246}.mp4")
    (root / "torn").mkdir()
    (root / "torn" / "1.png").write_bytes(b"\x89PNG torn")
    (root / "notes.txt").touch()
    shutil.copy(tmp_path / "1.png", root / f"{NO_TEXT}.png")
    assert faces(root, "--frames", "--out", tmp_path / "out") == 1
    made = pd.read_parquet(tmp_path / "out" / "faces.parquet")
    assert len(made) == len(NAMES) + 2 and made.video.nunique() == len(NAMES) + 1
    for path in made.path:
        assert cv2.imread(str(tmp_path / "out" / path)).shape == (64, 64, 3)
    dropped = pd.read_csv(tmp_path / "out" / "dropped.csv")
    told = dict(zip(dropped.file.map(os.path.basename), dropped.reason))
    reasons = [told.pop("notes.txt"), told.pop("not text \\udcff.png"), *told.values()]
    assert [reason.split(",")[0].split(" (")[0] for reason in reasons] == [
        "neither a picture nor a video",
        "its name",
        "1.png: cannot be read",
    ]
    said = capsys.readouterr()
    assert said.out == "" and "2 files left over" in said.err and "notes.txt: neither" in said.err
    shutil.rmtree(root / "torn")
    assert faces(root, "--out", tmp_path / "again") == 0, "what is left over is no failure"
    made = pd.read_parquet(tmp_path / "again" / "faces.parquet")
    assert len(made) == len(NAMES) + 2 and made.subset.nunique() == len(NAMES) + 1


def test_a_plain_folder_with_files_of_any_name_is_complete(face, tmp_path):
    for kind, picture in (("real", face), ("fake", 255 - face)):
        for name in NAMES:
            (tmp_path / "mine" / kind / name).mkdir(parents=True)
            write_png(tmp_path / "mine" / kind / name / "1.png", picture)
    (tmp_path / "mine" / "real" / "labels.csv").touch()
    report = layouts.check("folder", tmp_path / "mine")
    assert report.bad.empty and report.counts.found.sum() == 2 * len(NAMES)
    assert [Path(file).name for file in report.left.file] == ["labels.csv"]
    assert "labels.csv: neither a picture nor a video" in str(report)
    assert "1 files left over" in str(report)


def test_photographs_of_any_name_name_the_crops_of_forge(tmp_path):
    for person in NAMES:
        (tmp_path / person).mkdir()
        for name in NAMES:
            (tmp_path / person / f"{name}.jpg").touch()
        (tmp_path / person / f"{NO_TEXT}.jpg").touch()
    people = list_photos(tmp_path)
    photos = [photo_name(path) for paths in people.values() for path in paths]
    names = video_names(photos)
    assert len(photos) == len(set(names.values())) == len(NAMES) ** 2
    for name in names.values():
        assert file_name(f"{name}_{names[photos[0]]}.png")


def test_a_lock_beside_a_long_name_fits(tmp_path):
    lock = beside(tmp_path / ("x" * 250), "lock")
    lock.touch()
    assert lock != beside(tmp_path / ("x" * 249), "lock")
    assert beside(tmp_path / "run", "lock").name == ".run.lock"


# Exit codes and streams


def test_faces_says_with_its_exit_code_what_became_of_the_work(face, tmp_path, capsys):
    write_png(tmp_path / "ann" / "1.png", face)
    write_png(tmp_path / "bob" / "1.png", np.full_like(face, 90))
    assert faces(tmp_path / "ann", "--out", tmp_path / "a") == 0
    assert faces(tmp_path / "ann", tmp_path / "bob", "--out", tmp_path / "b") == 1
    assert faces(tmp_path / "bob", "--out", tmp_path / "c") == 1
    assert capsys.readouterr().out == ""
    assert faces(tmp_path / "none", "--out", tmp_path / "d") == 2 and not (tmp_path / "d").exists()
    folder = ["folder", "--root", tmp_path / "own", "--out"]
    write_png(tmp_path / "own" / "real" / "1.png", np.full_like(face, 90))
    assert faces(*folder, tmp_path / "e") == 1, "the work is done and found nothing"
    assert "no face in any" in capsys.readouterr().err
    write_png(tmp_path / "own" / "fake" / "1.png", face)
    assert faces(*folder, tmp_path / "f") == 1
    assert read_manifest(tmp_path / "f" / "manifest.parquet").label.tolist() == [FAKE]
    shutil.copy(tmp_path / "ann" / "1.png", tmp_path / "own" / "real" / "1.png")
    assert faces(*folder, tmp_path / "g") == 0
    assert set(read_manifest(tmp_path / "g" / "manifest.parquet").label) == {REAL, FAKE}


def test_a_full_disk_is_no_wrong_word(monkeypatch):
    for error, code in ((OSError(28, os.strerror(28)), 1), (OSError(2, "no"), 2)):

        def stop(error=error):
            "Stop."
            raise error

        monkeypatch.setattr(cli, "COMMANDS", {"stop": stop})
        assert cli.main(["stop"]) == code


@pytest.mark.parametrize("name", ["check", "faces", "convert", "forge", "predict", "reproduce"])
def test_every_help_states_the_exit_codes(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert cli.EXIT_CODES in capsys.readouterr().out


def test_messages_go_where_they_went_before(capsys):
    show_messages()
    assert cli.main(["check", "folder", "nowhere"]) == 2
    capsys.readouterr()
    log.info("as before")
    assert capsys.readouterr() == ("as before\n", "")


# Destinations


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert check_destination(tmp_path / "new" / "a.csv").parent.is_dir()
    assert check_destination(tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "new") == []
    for place, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.csv", "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ):
        with pytest.raises(OSError, match=f"{told}.*name"):
            check_destination(place)


@pytest.mark.parametrize(
    "words, told",
    [
        ("predict run a.png --csv FILE/a.csv", "cannot be written"),
        ("predict run a.png --csv FOLDER", "is a folder"),
        ("audit --subset DF --figure FOLDER", "is a folder"),
        ("audit --subset DF --figure FILE/a.png", "cannot be written"),
        ("audit --subset DF --figure a.gif2", "unknown kind of picture 'gif2'"),
        ("convert a.json --root . --out FILE/m.parquet", "cannot be written"),
        ("userstudy analyse FOLDER --figure FILE/a.png", "cannot be written"),
        ("userstudy build --out FILE/study", "cannot be written"),
        ("faces FOLDER --out FILE/crops", "cannot write"),
        ("forge --people 6 --out FILE/mini", "FILE"),
    ],
)
def test_destinations_are_tried_before_the_work(tmp_path, monkeypatch, capsys, words, told):
    def work(*args, **kwargs):
        raise AssertionError("the work has begun")

    for name in ("open_detector", "open_lab", "_from_deepfakebench"):
        monkeypatch.setattr(cli, name, work)
    for place in ("lab.experiments.Lab", "study.images.read_study", "data.videos._in_processes"):
        monkeypatch.setattr(f"prle.{place}", work)
    monkeypatch.setattr("prle.mini.benchmark.read_crops", work)
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    write_png(Path("FOLDER/a.png"), np.zeros((9, 9, 3), np.uint8))
    assert cli.main(words.split()) == 2
    said = capsys.readouterr()
    assert told in said.err and said.out == ""

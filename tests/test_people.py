"Several people in a video: who is followed, whom the mask touches, and what pictures in folders are."

import sys
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from clips import background, photograph
from PIL import Image

from prle.core import rng
from prle.data import faces as F
from prle.data import tracks as T
from prle.data import videos as V
from prle.data.tracks import Tracks, touched

SIZE = (640, 360)


def scene(*people):
    "A frame with people (name, left, width of the photograph), who stand on one line."
    frame = background(SIZE).copy()
    for name, left, width in people:
        picture = photograph(name, width)
        frame[340 - len(picture) : 340, left : left + width] = picture
    return frame


def mask_of(left, width):
    "The mask of a person in a `scene`."
    mask = np.zeros((*SIZE[::-1], 3), np.uint8)
    mask[340 - width * 112 // 92 : 340, left : left + width] = 255
    return mask


def extract(tmp_path, frames, masks=None, out="out", **settings):
    "Crop a folder of frames; return the rows, and the reasons for what was dropped by frame."
    for folder, pictures in (("frames", frames), ("masks", masks or [])):
        for i, picture in enumerate(pictures):
            F.write_png(tmp_path / folder / f"{i:02d}.png", picture)
    table = pd.DataFrame(dict(file=[str(tmp_path / "frames")], subset="DF", video="a"))
    if masks:
        table["mask_file"] = str(tmp_path / "masks")
    rows = V.extract(table, tmp_path / out, size=64, workers=0, **settings)
    dropped = pd.read_csv(tmp_path / out / "dropped.csv")
    return rows, dict(zip(dropped.frame, dropped.reason))


def middles(rows, out):
    "Where the middles of the crops lie in their frames, px from the left."
    middle = []
    for row in rows.itertuples():
        back = cv2.invertAffineTransform(row.transform.reshape(2, 3))
        middle.append(F.move_points(np.array([(32.0, 32.0)]), back)[0, 0])
        assert F.read_image(out / row.path).shape == (64, 64, 3)
    return np.array(middle)


# Who is followed


def test_a_person_is_followed_though_another_face_is_larger_now_and_then(tmp_path, capsys, shown):
    widths = [(200, 150), (150, 200), (200, 150)]
    frames = [scene(("s5", 30 + 4 * i, a), ("s1", 380, b)) for i, (a, b) in enumerate(widths)]
    rows, dropped = extract(tmp_path, frames)
    assert (middles(rows, tmp_path / "out") < 320).all() and len(rows) == 3 and not dropped
    assert rows.found.tolist() == [2] * 3 and set(rows.path) == {
        f"DF/a/{i:04d}.png" for i in range(3)
    }
    assert "1 with several people, up to 2; taken: one of them in each (--faces all" in (
        capsys.readouterr().out
    )
    assert sorted(p.name for p in (tmp_path / "out/DF/a").iterdir()) == [
        ".prle.json",
        *(f"{i:04d}.png" for i in range(3)),
        "faces.parquet",
        "video.json",
    ]


def test_everybody_is_taken_when_asked_for(tmp_path):
    frames = [scene(("s5", 30, 200), ("s1", 380, 150)), scene(("s5", 30, 150), ("s1", 370, 200))]
    rows, _ = extract(tmp_path, frames, faces="all")
    assert list(zip(rows.frame, rows.person)) == [(0, 0), (0, 1), (1, 1), (1, 0)]
    assert rows.path.tolist() == [f"DF/a/{p}/{i:04d}.png" for i, p in zip(rows.frame, rows.person)]
    assert ((middles(rows, tmp_path / "out") > 320) == rows.person).all()


def test_frames_without_the_person_are_named_and_another_is_not_taken_instead(tmp_path):
    "The larger person leaves, and only then is the smaller one noticed, who was there before."
    beside = ("s1", 440, 110)
    frames = [scene(("s5", 20, 260), beside)] * 3 + [scene(beside)]
    rows, dropped = extract(tmp_path, frames)
    assert rows.frame.tolist() == [0, 1, 2]
    assert dropped == {3: "the person who is followed is not in this frame."}


def test_who_moves_far_between_two_frames_is_the_same_person():
    tracks = Tracks()
    seen = [tracks.see(scene(("s5", left, 170))) for left in (20, 430, 200)]
    assert [list(faces) for faces in seen] == [[0]] * 3 and list(tracks.boxes) == [0]
    assert Tracks().see(background(SIZE)) == {} and Tracks().largest() is None


def test_where_a_face_is_found_again_nothing_else_is_searched_three_frames_in_four(monkeypatch):
    searched = []
    monkeypatch.setattr(T, "find_all", lambda *a: searched.append(a) or F.find_all(*a))
    tracks = Tracks()
    for i in range(9):
        others = [("s1", 430, 190)] if i >= 5 else []
        frame = scene(("s5", 20 + 6 * i, 170), *others)
        faces = tracks.see(frame)
        assert len(searched) == 1 + i // 4 and sorted(faces) == [0, 1][: 1 + i // 8]
        left = min(F.find_all(frame), key=lambda face: face.box[0])
        assert F.gap(faces[0].box, left.box) <= 0.3 * (
            i == 8
        )  # then it is looked for in its old place


# Whom the mask touches


def test_the_face_is_the_one_that_the_mask_touches(tmp_path):
    frames = [scene(("s5", 30, 220), ("s1", 420, 110))] * 3
    touching = mask_of(420, 110)
    elsewhere = np.zeros_like(touching)
    elsewhere[:20, :20] = 255
    rows, dropped = extract(tmp_path, frames, [touching, 0 * touching, elsewhere])
    assert rows.frame.tolist() == [0] and middles(rows, tmp_path / "out") > 320
    assert dropped == {
        1: "its mask is empty: nothing in this frame is manipulated.",
        2: "its mask touches none of the faces found (of 2).",
    }
    for row in rows.itertuples():
        assert F.read_image(tmp_path / "out" / row.mask).max() == 255
    everybody, _ = extract(tmp_path, frames, [touching] * 3, "all", faces="all")
    assert len(everybody) == 3 and (middles(everybody, tmp_path / "all") > 320).all()
    kept, dropped = extract(
        tmp_path, frames, [touching, 0 * touching, elsewhere], "kept", keep_empty=True
    )
    assert kept.frame.tolist() == [0, 1, 2] and not dropped


def test_the_grain_of_a_mask_video_touches_nobody():
    face = F.find_largest(scene(("s5", 30, 220)))
    grain = (rng("grain").random(SIZE[::-1]) < 0.005).astype(np.uint8) * 3
    assert not touched({0: face}, grain)
    nose = np.zeros(SIZE[::-1], np.uint8)
    x, y = face.landmarks[30].astype(int)
    nose[y - 12 : y + 12, x - 12 : x + 12] = 255
    assert list(touched({0: face}, nose)) == [0]


# Pictures and frames


@pytest.mark.parametrize(
    "names, frames",
    [
        (["1.png", "2.png", "3.png"], True),
        (["f_00.png", "f_10.png", "f_20.png"], True),
        (["00.png", "09.png", "19.png", "29.png"], True),  # four of thirty, evenly
        (["1.png", "2.png", "4.png"], False),
        (["ann.png", "bob.png"], False),
        (["1.png", "2.bmp"], False),
        (["a1.png", "b2.png"], False),
        (["1.png", "01.png"], False),
        (["1.png"], False),
    ],
)
def test_numbered_pictures_are_frames(tmp_path, names, frames):
    for name in names:
        Image.new("L", (40, 30)).save(tmp_path / name)
    files = sorted(tmp_path.iterdir())
    assert F.are_frames(files) == frames
    Image.new("L", (30, 40)).save(files[0])
    assert not F.are_frames(files), "of two sizes"


def test_photographs_of_a_folder_count_one_by_one(tmp_path, capsys, shown):
    names = ["ann", "bob", "cleo", "dan"]
    for name, person in zip(names, ("s1", "s2", "s5", "s7")):
        F.write_png(tmp_path / "album" / f"{name}.png", photograph(person, 120))
    rows = V.extract(
        V.list_videos(tmp_path / "album"), tmp_path / "out", size=64, count=2, workers=0
    )
    assert rows.video.tolist() == names
    assert "4 pictures: 4 frames, 4 faces, 0 dropped" in capsys.readouterr().out
    whole = V.list_videos(tmp_path / "album", "frames")
    assert whole.video.tolist() == ["album"]
    rows = V.extract(whole, tmp_path / "whole", size=64, count=2, workers=0)
    said = capsys.readouterr().out
    assert len(rows) == 2 and "2 of 4 pictures (--count, --every: how many; --pictures" in said
    assert "1 folders of frames: 2 frames, 2 faces" in said
    for i in range(3):
        F.write_png(tmp_path / "clip" / f"{i}.png", photograph("s1", 120))
    assert V.list_videos(tmp_path / "clip").video.tolist() == ["clip"]
    assert V.list_videos(tmp_path / "clip", "pictures").video.tolist() == ["0", "1", "2"]


# Pictures that are crops


def test_a_crop_without_any_margin_is_found():
    "Cut to six tenths of the box, as no detector draws it."
    found = []
    for person in ("s1", "s2", "s4", "s7", "s8"):
        image = photograph(person, 460)
        box = F.find_largest(image).box
        middle, half = box.reshape(2, 2).mean(0), 0.3 * (box[2:] - box[:2])
        left, top, right, bottom = np.concatenate([middle - half, middle + half]).astype(int)
        crop = np.ascontiguousarray(image[top:bottom, left:right])
        found.append(bool(F.find_all(crop)) - bool(F.find_faces(crop)))
    assert min(found) >= 0 and sum(found) >= 1, "more than padding with repeated pixels finds"


def test_crops_are_taken_as_they_are(tmp_path):
    crop = photograph("s5", 92)[10:102]
    for name, picture in (("face", crop), ("tall", np.pad(crop, ((9, 9), (0, 0), (0, 0)), "edge"))):
        F.write_png(tmp_path / "crops" / f"{name}.png", picture)
    F.write_png(tmp_path / "crops" / "none.png", np.full((50, 50, 3), 99, np.uint8))
    videos = V.list_videos(tmp_path / "crops")
    rows = V.extract(videos, tmp_path / "out", size=92, workers=0, cropped=True).set_index("video")
    for name in ("face", "tall"):
        assert np.array_equal(F.read_image(tmp_path / "out" / rows.path[name]), crop)
        nose = F.find_largest(photograph("s5", 92)).landmarks[30] - (0, 10)
        assert np.abs(rows.landmarks[name][60:62] - nose).max() < 3
    assert np.isnan(rows.landmarks["none"]).all() and rows.found["none"] == 0


def test_a_crop_at_the_border_has_no_streaks(tmp_path):
    "What lies outside is out of focus, in crops of videos as in those of photographs."
    frame = scene(("s5", 0, 170))[60:300, 8:300]
    rows, _ = extract(tmp_path, [frame, frame])
    crop = F.read_image(tmp_path / "out" / rows.path[0]).astype(int)
    matrix = rows["transform"][0].reshape(2, 3)
    beyond, streaks = F.outside(frame.shape, matrix, 64), F.warp_crop(frame, matrix, 64).astype(int)
    assert beyond.mean() > 0.05 and np.array_equal(crop[~beyond], streaks[~beyond])
    steps = [
        np.abs(np.diff(image, axis=0))[beyond[1:] & beyond[:-1]].mean() for image in (crop, streaks)
    ]
    assert steps[0] < 0.7 * steps[1]


# The second detector


def test_the_second_detector_stands_faces_up(monkeypatch):
    "Its five points are enough to place the landmarks, however the face is turned."
    upright = scene(("s5", 200, 230))
    points = F.find_largest(upright).landmarks
    for degrees in (0, 60, 90, 180):
        matrix = cv2.getRotationMatrix2D((320, 180), degrees, 0.7)
        turned = cv2.warpAffine(upright, matrix, SIZE, borderMode=cv2.BORDER_REPLICATE)
        truth = F.move_points(points, matrix)
        eyes = [truth[[36, 39]].mean(0), truth[[42, 45]].mean(0)]
        five = np.array([*eyes, truth[30], truth[48], truth[54]])

        found = np.zeros((1, 4)), np.ones(1), five[None]
        mtcnn = SimpleNamespace(detect=partial(lambda found, *frame, **how: found, found))
        monkeypatch.setattr(F, "load_mtcnn", partial(lambda it: it, mtcnn))
        face = F.find_largest(turned, "mtcnn")
        distance = np.linalg.norm(eyes[0] - eyes[1])
        assert np.linalg.norm(face.landmarks - truth, axis=1).mean() < 0.1 * distance
        assert F.gap(face.box, np.concatenate([truth.min(0), truth.max(0)])) < 0.6


def test_a_missing_detector_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    F.load_mtcnn.cache_clear()
    with pytest.raises(ImportError, match=r"prle\[mtcnn\]"):
        extract(tmp_path, [scene(("s5", 200, 230))], finder="mtcnn")
    with pytest.raises(ValueError, match="Did you mean 'mtcnn'"):
        F.find_all(np.zeros((9, 9, 3), np.uint8), 0, "mtcn")
    with pytest.raises(ValueError, match="unknown choice of faces 'al'"):
        extract(tmp_path, [scene()], out="b", faces="al")


def test_both_detectors_find_nothing_where_nothing_is(monkeypatch):
    class Mtcnn:
        def detect(self, frame, landmarks):
            return None, [None], None

    monkeypatch.setattr(F, "load_mtcnn", Mtcnn)
    for finder in F.FINDERS:
        assert F.find_all(background(SIZE), 0, finder) == []


def test_all_faces_are_those_of_dlibs_full_search():
    frame = scene(("s5", 20, 240), ("s1", 450, 120))
    boxes = sorted(F.load_dlib()[1](frame, 0), key=lambda box: box.area(), reverse=True)
    edges = [[box.left(), box.top(), box.right(), box.bottom()] for box in boxes]
    assert len(edges) == 2 and [face.box.tolist() for face in F.find_all(frame)] == edges
    assert [face.box.tolist() for face in F.find_all(frame, 1)] == edges[:1]
    near = F.find_near(frame, np.array(edges[1]) + 15)
    assert F.gap(near.box, np.array(edges[1])) < 0.3
    assert F.find_near(frame, np.array([300, 0, 380, 80])) is None

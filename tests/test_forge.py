"The tools, the registry and the two graphics-based manipulations."

from dataclasses import replace

import cv2
import numpy as np
import pytest

from prle.data import faces
from prle.mini import forge
from prle.core import rng

NAMES = ["FS", "F2F"]
ORL = faces.orl_folder()


def read(name, size=128):
    return faces.read_face(ORL / f"{name}.pgm", size, 1.1, 0.08)


@pytest.fixture(scope="module")
def trio():
    "A target, another person, the same person again."
    return read("s16/1"), read("s5/1"), read("s16/7")


@pytest.fixture(scope="module")
def fakes(trio):
    target, other, same = trio
    return {
        name: forge.manipulate(name, target, source, rng(0, name))
        for name, source in (("FS", other), ("F2F", same))
    }


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

    def energy(p):
        return (cv2.Laplacian(np.float32(p), cv2.CV_32F)[region].astype(np.float64) ** 2).sum()

    for sigma in (0.6, 0.9):
        blurred = cv2.GaussianBlur(face, (0, 0), sigma).astype(np.float32)
        assert (
            abs(
                energy(forge.match_sharpness(blurred, face, region, limits=(-1, 20))) / energy(face)
                - 1
            )
            < 1e-3
        )


def test_matching_survives_flat_pictures():
    flat, region = np.full((64, 64, 3), 9, np.float32), forge.inner(64)
    assert np.isfinite(forge.match_sharpness(flat, flat.astype(np.uint8), region)).all()
    assert np.allclose(
        forge.match_colour(flat, np.full((64, 64, 3), 77, np.uint8), region)[region], 77
    )


def test_bend_carries_landmarks_and_leaves_the_frame(trio):
    face = trio[0]
    goal = face.landmarks.copy()
    goal[48:] += (0, 6)
    dot = np.zeros_like(face.crop)
    x, y = np.rint(face.landmarks[57]).astype(int)
    cv2.circle(dot, (int(x), int(y)), 2, (255, 255, 255), -1)
    moved = forge.bend(dot, face.landmarks, goal)[..., 0].clip(0)
    yy, xx = np.mgrid[:128, :128]
    centre = (moved * xx).sum() / moved.sum(), (moved * yy).sum() / moved.sum()
    assert np.hypot(*(centre - goal[57])) < 2
    assert np.abs(forge.bend(face.crop, face.landmarks, goal) - face.crop)[0].max() < 12
    assert np.abs(forge.bend(face.crop, face.landmarks, face.landmarks) - face.crop).max() < 1


def test_an_expression_is_free_of_pose(trio):
    "Turn, enlarge and move the photograph: what is taken from it stays the same; from oneself nothing changes."
    target, _, same = trio
    turn = cv2.getRotationMatrix2D((50, 70), 25, 1.4)
    turned = replace(
        same, landmarks=(same.landmarks @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    )
    assert np.abs(forge.expression(target, turned) - forge.expression(target, same)).max() < 1e-2
    assert np.abs(forge.expression(target, target) - target.landmarks).max() < 1e-3


# Manipulations


def test_the_registry_and_its_errors(trio):
    assert set(NAMES) <= set(forge.list_manipulations())
    with pytest.raises(
        ValueError, match="unknown manipulation 'F2f'.*Did you mean 'F2F'.*Known: FS, F2F"
    ):
        forge.manipulate("F2f", trio[0], trio[1], None)
    with pytest.raises(ValueError, match="unknown source 'others'"):
        forge.register("X", source="others")(lambda: None)
    assert "X" not in forge.list_manipulations()


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_is_exact(trio, fakes, name):
    "Outside the mask nothing changed, inside much did, and the frame was never touched."
    real, (fake, mask) = trio[0].crop, fakes[name]
    changed = (fake != real).any(-1)
    assert fake.shape == real.shape and fake.dtype == np.uint8 and mask.dtype == bool
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.6
    assert not mask[~forge.inner(128)].any()
    assert 0.05 < mask.mean() < 0.6


def test_both_cover_eyes_and_mouth_by_different_masks(trio, fakes):
    points = trio[0].landmarks
    for part in (slice(36, 48), slice(48, 68)):
        x, y = np.rint(points[part].mean(0)).astype(int)
        assert all(mask[y, x] for _, mask in fakes.values())
    a, b = (mask for _, mask in fakes.values())
    assert (a & b).sum() / (a | b).sum() < 0.95


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 200])
def test_any_size_and_repeatable(name, size):
    target, source = read("s16/1", size), read("s16/7", size)
    (a, mask), (b, _) = (forge.manipulate(name, target, source, rng(1)) for _ in range(2))
    assert a.shape == (size, size, 3) and mask.any() and np.array_equal(a, b)


def test_colour_stays_colour(trio):
    tint = np.array([1, 0.7, 0.4])
    target, source = (replace(f, crop=(f.crop * tint).astype(np.uint8)) for f in trio[:2])
    for name in NAMES:
        fake, mask = forge.manipulate(name, target, source, rng(0))
        red, _, blue = fake[mask].mean(0)
        assert 0.3 < blue / red < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_constant_pictures_give_constant_pictures(trio, name):
    flat = [replace(f, crop=np.full_like(f.crop, 90)) for f in trio[:2]]
    fake, mask = forge.manipulate(name, *flat, rng(0))
    assert (fake == 90).all() and mask.any()

"""prle.distance: which faces are unlike those of a training."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn

from prle.core import rng
from prle.distance import (
    SLACK,
    Familiar,
    distances,
    fit_cloud,
    fit_familiar,
    held_out_distances,
    picture_properties,
    pooled_features,
    unlike,
)


def drawn(n, key="cloud"):
    "Gaussian features with a known covariance, three of them correlated."
    root = np.array([[1.0, 0, 0], [0.9, 0.4, 0], [0, 3, 2]])
    return rng(key).normal(size=(n, 3)) @ root.T + [5, 0, -2], np.linalg.inv(root @ root.T)


def test_distances_are_mahalanobis():
    features, precision = drawn(20_000)
    off = drawn(200, "new")[0] - [5, 0, -2]
    found = distances(fit_cloud(features), off + [5, 0, -2])
    assert found == pytest.approx(np.sqrt(np.einsum("ni,ij,nj->n", off, precision, off)), rel=0.05)
    assert (found**2 > chi2.ppf(0.5, 3)).mean() == pytest.approx(0.5, abs=0.1)


def test_features_that_never_change_do_not_blow_up():
    features = np.column_stack([drawn(300)[0], np.full(300, 7.0)])
    cloud = fit_cloud(features)
    assert np.isfinite(distances(cloud, features)).all()
    assert distances(cloud, features[:1] + [0, 0, 0, 5]) > 20


def test_held_out_people_are_measured_without_their_own_faces():
    features, people = drawn(40)[0], np.arange(40) // 4
    features[people == 3] += 100  # one person apart from all others
    found = held_out_distances(features, people, folds=10)
    alone = distances(fit_cloud(features[people != 3]), features[people == 3])
    assert found[people == 3] == pytest.approx(alone)
    assert found[people == 3].min() > 10 * np.median(found)


@pytest.fixture
def familiar():
    train, val = drawn(1000)[0], drawn(300, "val")[0]
    faces = [grey_face(k) for k in range(20)]
    properties = np.stack([*map(picture_properties, faces)])
    return fit_familiar(train, np.arange(1000) // 10, val, properties)


def grey_face(k):
    "A smooth grey picture with some noise on it."
    y, x = np.mgrid[:64, :64]
    wave = 120 + 60 * np.sin(x / 9 + k) * np.cos(y / 7) + rng("face", k).normal(0, 5, (64, 64))
    return np.repeat(wave.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def test_one_in_a_hundred_of_the_same_kind_is_marked(familiar):
    new = drawn(4000, "test")[0]
    faces = np.stack([picture_properties(grey_face(k % 20)) for k in range(20)])[
        np.arange(4000) % 20
    ]
    marked = [names for names in unlike(familiar, new, faces) if names]
    assert 0.002 < len(marked) / 4000 < 0.02 and set(map(tuple, marked)) == {("features",)}


def tinted(face):
    return (face * np.array([1, 0.8, 0.6])).astype(np.uint8)


@pytest.mark.parametrize(
    "change, names",
    [
        (lambda face: face, []),
        (tinted, ["colour"]),
        (lambda face: face // 4, ["brightness", "contrast"]),
        (lambda face: 120 + (face - 120.0) / 3, ["contrast"]),
        (lambda face: face + rng("n").normal(0, 40, face.shape[:2])[..., None], ["sharpness"]),
    ],
)
def test_what_is_unlike_is_named(familiar, change, names):
    face = np.clip(change(grey_face(3)), 0, 255).astype(np.uint8)
    found = unlike(familiar, np.array([[5.0, 0, -2]]), picture_properties(face)[None])[0]
    assert set(names) <= set(found) and "features" not in found
    assert bool(found) == bool(names)


def test_colour_is_nothing_in_grey_and_sharpness_falls_with_blur():
    names = list(SLACK)
    grey, flat = (
        dict(zip(names, picture_properties(f))) for f in (grey_face(1), np.full((9, 9, 3), 80))
    )
    assert grey["colour"] == 0 and flat["brightness"] == 80 and flat["contrast"] == 0
    y, x = np.mgrid[:64, :64]
    sharp = np.repeat(((x // 2 + y // 2) % 2 * 200).astype(np.uint8)[..., None], 3, -1)
    soft = np.repeat(np.full((64, 64), 100, np.uint8)[..., None], 3, -1)
    assert picture_properties(sharp)[3] > grey["sharpness"] > picture_properties(soft)[3]


def test_features_come_from_the_pass_that_scores():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    calls = []
    conv.register_forward_hook(lambda *args: calls.append(1))
    x = torch.rand(2, 3, 16, 16)
    scores, features = pooled_features(model, conv, x)
    assert len(calls) == 1 and len(conv._forward_hooks) == 1, "one pass, and no hook is left"
    with torch.no_grad():
        assert torch.allclose(scores, model(x)) and torch.allclose(features, conv(x).mean((2, 3)))


def test_what_is_known_can_be_stored(familiar):
    again = Familiar(**{name: tensor.clone() for name, tensor in familiar._asdict().items()})
    new, faces = drawn(50, "more")[0], np.zeros((50, 4))
    assert unlike(again, new, faces) == unlike(familiar, new, faces)
    with pytest.raises(ValueError, match="2 features|50, 2"):
        unlike(familiar, new[:, :2], faces)

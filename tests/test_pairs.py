"""prle.data.pairs: which fake lends a real face its map."""

import numpy as np
import pandas as pd
import pytest

from prle.data.pairs import blind_sources, nearest_fakes, partners


def video(name, subset="real", target="", person="", frames=(0, 4, 8), dataset="d"):
    "The rows of one video; landmarks differ from frame to frame."
    rows = []
    for frame in frames:
        points = np.random.default_rng([len(name), frame]).uniform(10, 90, 136).astype(np.float32)
        path = f"{dataset}/{subset}/{name}/{frame}.png"
        facts = dict(path=path, label=int(subset != "real"), dataset=dataset, subset=subset)
        facts |= dict(video=name, target=target, identity=person or name, frame=frame)
        rows.append(facts | dict(landmarks=points))
    return rows


def table(*videos):
    return pd.DataFrame(sum(videos, []))


def paths(rows, found):
    return {path: rows.path.iloc[k] if k >= 0 else "" for path, k in zip(rows.path, found)}


def test_a_real_frame_is_paired_with_the_same_frame_of_a_fake():
    rows = table(video("a"), video("b"), video("a_b", "DF", "a", "a"), video("b_a", "DF", "b", "b"))
    found = paths(rows, partners(rows))
    for frame in (0, 4, 8):
        assert found[f"d/real/a/{frame}.png"] == f"d/DF/a_b/{frame}.png"
        assert found[f"d/DF/a_b/{frame}.png"] == f"d/DF/a_b/{frame}.png"


def test_the_same_names_elsewhere_are_no_pair(lines):
    rows = table(video("a"), video("a_b", "DF", "a", "a", dataset="other"))
    assert partners(rows).tolist() == [-1, -1, -1, 3, 4, 5]
    assert lines == ["NOTE 3 of 3 real faces have no fake of the same frame."]


def test_an_unknown_target_is_no_pair():
    "Not even of a real video without a name."
    rows = table(video("", frames=[0]), video("x", "DF", "", frames=[0]))
    assert partners(rows).tolist() == [-1, 1]


def test_the_fake_of_several_is_drawn_by_the_path_whatever_the_order():
    frames = tuple(range(200))
    kinds = [video("a_b", kind, "a", "a", frames) for kind in ("DF", "FS", "NT")]
    rows = table(video("a", frames=frames), *kinds)
    found = paths(rows, partners(rows))
    for seed in range(3):
        mixed = rows.sample(frac=1, random_state=seed).reset_index(drop=True)
        assert paths(mixed, partners(mixed)) == found
    drawn = pd.Series([fake.split("/")[1] for path, fake in found.items() if "/real/" in path])
    assert drawn.value_counts().between(45, 90).all(), "each about as often"


def test_a_missing_frame_takes_another_frame_of_the_same_fake():
    rows = table(
        video("a"), video("a_b", "DF", "a", "a", frames=(0, 3)), video("b_a", "DF", "b", "b")
    )
    sources = blind_sources(rows)
    of_a = [k for k, path in enumerate(rows.path) if "/a_b/" in path]
    assert sources.rows[0] == of_a[0] and set(sources.rows[1:3]) <= set(of_a)
    assert list(sources.warps) == [1, 2]


def test_the_transform_takes_the_lenders_landmarks_to_the_faces():
    rows = table(video("a", frames=[0]), video("b_c", "DF", "b", "b", frames=[0, 1, 2]))
    angle, size = 0.2, 1.3
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = rows.landmarks[2].reshape(68, 2)
    rows.at[0, "landmarks"] = (points @ turn.T * 0.05 + points * 0.95 + 2).ravel()
    ((lender, matrix),) = nearest_fakes(rows, [0])
    assert lender == 2
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(moved.ravel(), rows.landmarks[0], atol=1e-3)


def test_nobody_lends_to_himself_and_unknown_landmarks_are_passed_over():
    rows = table(
        video("a", person="p", frames=[0]),
        video("x", "DF", "", "p", frames=[0]),
        video("y", "DF", "", "q", frames=[0]),
        video("zz", "DF", "", "r", frames=[0]),
    )
    rows.at[0, "landmarks"] = rows.landmarks[1]
    rows.at[2, "landmarks"] = np.full(136, np.nan, np.float32)
    assert nearest_fakes(rows, [0])[0][0] == 3
    with pytest.raises(ValueError, match="d/real/a/0.png: no fake was made of it"):
        blind_sources(rows[:3])
    rows.at[0, "landmarks"] = np.full(136, np.nan, np.float32)
    with pytest.raises(ValueError, match="cannot be blind"):
        blind_sources(rows)

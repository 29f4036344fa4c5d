"The learned manipulations: their training, their folder, their fakes."

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import same

from prle.data import faces
from prle.mini import forge
from prle.mini import generators
from prle.core import rng
from prle.trust import MARKER, read_json

NAMES = ["DF", "Fsh", "NT"]
ORL = faces.orl_folder()


def read(name, size=64):
    face = faces.read_face(ORL / f"{name}.pgm", size, 1.1, 0.08)
    return replace(face, photo=f"{name}.pgm", identity=name.split("/")[0])


@pytest.fixture(scope="module")
def few():
    "Three people; the last has one photograph."
    return [read(name) for name in ("s16/1", "s16/7", "s5/1", "s5/2", "s21/1")]


@pytest.fixture(scope="module")
def networks(few):
    return generators.train_networks(few, steps=2)[0]


def weights(networks):
    return {
        (name, k): v.clone()
        for name, network in networks.items()
        for k, v in network.state_dict().items()
    }


# Squares and drawings


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("network", generators.NETWORKS.values())
def test_what_is_cut_is_pasted_in_its_place(size, network):
    face = read("s16/1", size)
    patch, points = generators.cut(face, network.layout)
    assert patch.shape == (network.layout.size, network.layout.size, 3)
    back = generators.paste(np.float32(patch), points, face)
    x, y = np.rint(face.landmarks[48:60].mean(0)).astype(int)
    r = size // 16

    def error(dy):
        return np.abs(np.roll(back, dy, 0) - face.crop)[y - r : y + r, x - 2 * r : x + 2 * r].mean()

    assert error(0) < 5 < min(error(-1), error(1))  # to the pixel


def test_the_drawing_shows_the_landmarks(few):
    drawing = generators.draw_landmarks(few[0].landmarks, 64)
    assert (
        drawing.shape == (64, 64)
        and drawing.dtype == np.uint8
        and 0.02 < (drawing > 0).mean() < 0.35
    )
    x, y = np.rint(few[0].landmarks[[0, 16, 33, 51, 57]]).astype(int).T
    assert (drawing[y, x] > 60).all()
    assert not generators.draw_landmarks(few[0].landmarks + 1000, 64).any()


def test_jitter_is_small_smooth_and_drawn_from_its_generator():
    ramp = torch.linspace(-1, 1, 64).expand(2, 1, 64, 64).contiguous()

    def draw(seed, **kw):
        return generators.jitter(ramp, torch.Generator().manual_seed(seed), **kw)

    assert torch.allclose(draw(0, strength=0.0), ramp, atol=1e-5)
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert 0.005 < (draw(0) - ramp).abs().mean() < 0.1


# Training


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_goes_down(few, name):
    torch.manual_seed(0)
    network = generators.NETWORKS[name](["s16", "s5", "s21"])
    losses = generators.fit(network, few, steps=20)
    assert np.mean(losses[-3:]) < 0.85 * losses[0]


def test_same_seed_same_weights(few, networks):
    "Whatever the caller's threads and random stream, and without changing either."
    first, threads = weights(networks), torch.get_num_threads()
    torch.manual_seed(99)
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state()
        again, losses = generators.train_networks(few, steps=2)
        assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (
        same(weights(again), first) and losses.shape == (2, 3) and np.isfinite(losses).all().all()
    )
    assert not same(weights(generators.train_networks(few, steps=2, seed=1)[0]), first)


def test_nothing_to_train_on(few):
    with pytest.raises(ValueError, match="0 faces and 5 steps"):
        generators.train_networks([], 5)
    with pytest.raises(ValueError, match="5 faces and 0 steps"):
        generators.train_networks(few, 0)


# The folder


def test_networks_are_kept_and_the_reason_given(few, tmp_path, capsys, shown):
    def get(*args, **kw):
        networks = generators.trained_networks(*args, **kw)
        return weights(networks), capsys.readouterr().out.strip()

    folder = tmp_path / "generators"
    made, said = get(few, folder, steps=1)
    assert said == "generators: MISS (none there yet)"
    kept, said = get(few, folder, steps=1)
    assert said == "generators: HIT" and same(kept, made)
    assert get(few, folder, steps=2)[1] == "generators: MISS (steps was 1, is 2)"
    assert get(few, folder, steps=2, seed=3)[1] == "generators: MISS (seed was 0, is 3)"
    assert (
        get(few[:3], folder, steps=2, seed=3)[1] == "generators: MISS (other faces; other people)"
    )
    brighter = [replace(few[0], crop=few[0].crop | 1), *few[1:3]]
    assert get(brighter, folder, steps=2, seed=3)[1] == "generators: MISS (other faces)"
    assert sorted(p.name for p in folder.iterdir()) == [
        MARKER,
        "DF.safetensors",
        "Fsh.safetensors",
        "NT.safetensors",
        "generators.json",
        "losses.parquet",
    ]
    assert read_json(folder / "generators.json")["people"] == ["s16", "s5"]
    assert [p.name for p in tmp_path.iterdir()] == ["generators"]


def test_reloaded_networks_paint_the_same(few, networks, tmp_path):
    generators.trained_networks(few, tmp_path / "g", steps=2)
    kept = generators.trained_networks(few, tmp_path / "g", steps=2)
    for name in NAMES:
        assert np.array_equal(
            kept[name].render(few[0], few[2]), networks[name].render(few[0], few[2])
        )


# Fakes


@pytest.mark.parametrize("name", NAMES)
def test_a_grey_photograph_stays_grey(few, networks, name):
    fake, mask = forge.manipulate(name, few[0], few[1 if name == "NT" else 2], rng(0), networks)
    assert (
        (few[0].crop == few[0].crop[..., :1]).all()
        and (fake == fake[..., :1]).all()
        and (fake != few[0].crop).any()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 150, 256])
def test_the_mask_is_exact_at_any_size_and_in_colour(networks, name, size):
    target, source = (read(n, size) for n in ("s16/1", "s16/7" if name == "NT" else "s5/1"))
    target = replace(target, crop=(target.crop * [1, 0.7, 0.4]).astype(np.uint8))
    fake, mask = forge.manipulate(name, target, source, rng(0), networks)
    changed = (fake != target.crop).any(-1)
    assert fake.shape == (size, size, 3) and fake.dtype == np.uint8 and mask.dtype == bool
    assert not changed[~mask].any() and changed[mask].mean() > 0.6
    assert not mask[~forge.inner(size)].any() and 0.02 < mask.mean() < 0.5
    assert np.array_equal(fake, forge.manipulate(name, target, source, rng(0), networks)[0])


def test_grain_makes_up_for_what_is_missing_and_no_more(few):
    face = few[0].crop
    region = forge.inner(64)

    def energy(p):
        return np.square(cv2.Laplacian(np.float32(p), cv2.CV_32F)[region]).mean()

    blurred = cv2.GaussianBlur(np.float32(face), (0, 0), 2)
    grained = generators.add_grain(blurred, face, region, rng(0))
    assert energy(blurred) < 0.2 * energy(face) and 0.9 < energy(grained) / energy(face) < 1.1
    assert np.ptp(grained - blurred, axis=2).max() < 1e-3  # grey
    assert np.array_equal(
        generators.add_grain(np.float32(face), np.uint8(blurred), region, rng(0)), face
    )  # sharp enough already


def test_deepfakes_are_not_sharpened(few, networks, monkeypatch):
    "Sharpening doubles the brows of a face of 64 px; what it lacks is grain."
    match, seen, layout = generators.match_colour, [], networks["DF"].layout
    monkeypatch.setattr(
        networks["DF"],
        "render",
        lambda target, source: cv2.GaussianBlur(
            np.float32(generators.cut(source, layout)[0]), (0, 0), 3
        ),
    )
    monkeypatch.setattr(generators, "match_colour", lambda *a: seen.append(match(*a)) or seen[-1])
    monkeypatch.setattr(
        generators, "add_grain", lambda content, *a: seen.append(content) or content
    )
    forge.manipulate("DF", few[0], few[2], rng(0), networks)
    before, after = (np.square(cv2.Laplacian(p, cv2.CV_32F)).mean() for p in seen)
    assert len(seen) == 2 and after <= before * 1.001


def test_the_masks_are_where_they_should_be(few, networks):
    target = few[0]
    masks = {
        name: forge.manipulate(name, target, few[1 if name == "NT" else 2], rng(0), networks)[1]
        for name in NAMES
    }
    eyes, mouth = (
        np.rint(target.landmarks[part].mean(0)).astype(int)
        for part in (slice(36, 48), slice(48, 68))
    )
    assert all(mask[mouth[1], mouth[0]] for mask in masks.values())
    assert {name for name, mask in masks.items() if mask[eyes[1], eyes[0]]} == {"DF", "Fsh"}
    assert np.nonzero(masks["NT"])[0].min() >= np.floor(
        target.landmarks[31:36, 1].min()
    )  # nothing above the nose's base
    rows, cols = np.nonzero(masks["DF"])
    assert masks["DF"].sum() == (np.ptp(rows) + 1) * (np.ptp(cols) + 1)  # a full rectangle


@pytest.mark.parametrize("name", NAMES)
def test_a_learned_manipulation_without_its_network(few, networks, name):
    for given in (None, {}, {k: v for k, v in networks.items() if k != name}):
        with pytest.raises(
            ValueError, match=f"{name} is a learned manipulation and needs its network"
        ):
            forge.manipulate(name, few[0], few[1], rng(0), given)


def test_a_person_whom_the_networks_do_not_know(few, networks):
    stranger = replace(few[0], identity="s17")
    with pytest.raises(ValueError, match="unknown trained person 's17'"):
        forge.manipulate("DF", few[0], stranger, rng(0), networks)
    with pytest.raises(ValueError, match="unknown trained person 's17'"):
        forge.manipulate("NT", stranger, stranger, rng(0), networks)
    fake, _ = forge.manipulate(
        "DF", stranger, few[2], rng(0), networks
    )  # the background may be anybody
    assert fake.shape == stranger.crop.shape


def test_a_person_with_one_photograph(few, networks):
    "He can be trained on, be a source and a target of swaps."
    for target, source in ((few[4], few[0]), (few[0], few[4])):
        for name in ("DF", "Fsh"):
            assert forge.manipulate(name, target, source, rng(0), networks)[1].any()


def test_constant_pictures_stay_finite(few):
    flat = [replace(f, crop=np.full_like(f.crop, 90)) for f in few]
    networks, losses = generators.train_networks(flat, steps=2)
    assert np.isfinite(losses).all().all()
    for name in NAMES:
        fake, mask = forge.manipulate(name, flat[0], flat[1], rng(0), networks)
        assert (
            mask.any() and (fake[~mask] == 90).all() and np.abs(fake.astype(int) - 90).max() < 128
        )


@pytest.mark.parametrize("name", ["DF", "Fsh"])
def test_who_is_painted_depends_on_the_source(few, networks, name):
    a, b = (networks[name].render(few[0], source) for source in (few[2], few[4]))
    assert np.abs(a - b).mean() > 0.1


def test_the_expression_is_the_other_photograph_s(few, networks):
    "NT: the same mouth gives the same picture, another mouth another."
    own, other = (networks["NT"].render(few[0], source) for source in (few[0], few[1]))
    assert np.abs(own - other).max() > 1
    shifted = replace(few[0], landmarks=few[0].landmarks + 3)
    assert np.abs(own - networks["NT"].render(few[0], shifted)).max() < 0.5


@pytest.mark.parametrize(
    "name, content",
    [
        ("generators.json", b"[]"),
        ("generators.json", b"{"),
        ("generators.json", b"[" * 10**5),
        ("generators.json", b'{"files": {}}'),
        ("DF.safetensors", b"garbage"),
        ("NT.safetensors", None),
        ("Fsh.safetensors", "flip"),
    ],
)
def test_damaged_networks_are_made_again(few, tmp_path, capsys, shown, name, content):
    generators.trained_networks(few, tmp_path / "g", steps=1)
    path = tmp_path / "g" / name
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(
            whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:] if content == "flip" else content
        )
    capsys.readouterr()
    generators.trained_networks(few, tmp_path / "g", steps=1)
    said = capsys.readouterr().out
    assert said.startswith("generators: MISS (") and "\n" not in said[:-1] and len(said) < 600
    if name != "generators.json":
        assert name in said
    assert path.read_bytes() == whole
    generators.trained_networks(few, tmp_path / "g", steps=1)
    assert capsys.readouterr().out == "generators: HIT\n"

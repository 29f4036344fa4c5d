"""F3-Net: DCT, bands of the sources, sliding windows, MixBlock, modes, sizes, published counts."""

from functools import partial

import conftest
import numpy as np
import pytest
import timm
import torch
from conftest import randomise_batch_norm
from scipy.fft import dctn
from torch import nn

from prle.detectors import create_detector, f3net, xception
from prle.detectors.registry import cam_grids, macs, parameter_count


small, meta = partial(conftest.small, "f3net"), partial(conftest.meta, "f3net")


# ---- published size

# mode, size -> live trainable parameters with two outputs, GMACs
PUBLISHED = {
    ("mix", 256): (48_223_566, 13.2389),
    ("both", 256): (41_888_298, 12.4202),
    ("fad", 256): (21_075_786, 6.4959),
    ("lfs", 256): (20_812_514, 5.9244),
    ("lfs", 299): (20_812_514, 8.3756),
}
# at 299 the sheet has totals, with 6 S^2 frozen elements of FAD (two transforms, four masks) and 806 of LFS; the port
# without MixBlocks (modes both, fad) leaves in each Xception a linear layer of 4,098 that nothing calls
TOTAL_299 = {
    "mix": (48_856_238 - 806, 18.7880),
    "both": (42_529_166 - 806 - 2 * 4098, 17.5905),
    "fad": (21_711_750 - 4098, 9.2148),
}


@pytest.mark.parametrize("mode, size", PUBLISHED)
def test_published_size(mode, size):
    model, (parameters, gmacs) = meta(size=size, mode=mode), PUBLISHED[mode, size]
    assert parameter_count(model) == parameters
    assert macs(model, size) == pytest.approx(gmacs * 1e9, rel=0.005)


@pytest.mark.parametrize("mode", TOTAL_299)
def test_published_size_at_299(mode):
    model, (parameters, gmacs) = meta(size=299, mode=mode), TOTAL_299[mode]
    assert parameter_count(model) + 6 * 299**2 == parameters
    assert macs(model, 299) == pytest.approx(gmacs * 1e9, rel=0.005)


@pytest.mark.parametrize(
    "mode, size",
    [*(("mix", size) for size in (64, 128, 224, 256, 299)), ("both", 64), ("fad", 64), ("lfs", 64)],
)
def test_every_size_runs_and_has_a_fine_grid(mode, size):
    model = meta(size=size, mode=mode, width=1 / 8)
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2,)
    assert max(cam_grids(model, size).values()) >= 8


# ---- DCT and FAD


@pytest.mark.parametrize("size", [1, 10, 97])
def test_dct_equals_scipy(size):
    x = np.random.default_rng(0).random((size, size)).astype(np.float32)
    T = f3net.dct_matrix(size)
    assert np.allclose(T @ torch.from_numpy(x) @ T.T, dctn(x, norm="ortho"), atol=1e-5)


def test_bands_have_the_cells_of_the_sources():
    def cells(size, bands):
        return f3net.fad_bands(size, bands).sum((1, 2)).int().tolist()

    assert cells(299, "area") == [5778, 5654, 78226, 89401]
    assert cells(299, "index") == [189, 551, 44407, 89400]
    assert cells(256, "area")[0] == 91 * 92 // 2  # diagonals 0 to 90


@pytest.mark.parametrize("size", [64, 256, 299])
def test_area_bands_overlap_in_two_diagonals_and_cover_all(size):
    low, middle, high, whole = f3net.fad_bands(size)
    assert (low + middle + high >= 1).all() and whole.all()
    twice = (low + middle + high) == 2
    assert f3net.diagonals(size)[twice].unique().tolist() == [int(size / 2.82), size // 2]


@pytest.mark.parametrize("size", [64, 256, 299])
def test_index_bands_are_disjoint_and_leave_the_mean_out(size):
    low, middle, high, whole = f3net.fad_bands(size, "index")
    assert (low + middle + high).max() == 1
    assert whole[0, 0] == 0 and whole.sum() == size**2 - 1
    assert (
        (low + middle + high) == ((f3net.diagonals(size) > 0) & (f3net.diagonals(size) <= size))
    ).all()


def test_fad_by_hand():
    torch.manual_seed(0)
    fad, x = f3net.FAD(16), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        out = fad(x)
    assert out.shape == (2, 12, 16, 16)
    for band in range(4):
        mask = (fad.base[band] + 2 * fad.weight[band].sigmoid() - 1).detach()
        for colour in range(3):
            spectrum = fad.dct @ x[1, colour] @ fad.dct.T * mask
            assert torch.allclose(
                out[1, 3 * band + colour], fad.dct.T @ spectrum @ fad.dct, atol=1e-5
            )


def test_a_wave_lands_in_its_band():
    fad = f3net.FAD(64)
    fad.weight.requires_grad_(False).zero_()

    def energy(u):
        return (
            fad(fad.dct[u].expand(1, 3, 64, 64))[0, ::3].square().sum((1, 2))
        )  # a cosine of u half waves along x

    for u, band in ((2, 0), (27, 1), (60, 2)):
        found = energy(u)
        assert found[band] == pytest.approx(64, rel=1e-4) and found[:3].sum() == pytest.approx(
            64, rel=1e-4
        )


# ---- LFS


def test_lfs_bands():
    bands = f3net.lfs_bands()
    assert bands.sum((1, 2)).tolist() == [10, 18, 36, 30, 12, 3]
    assert (bands.sum(0) >= 1).all()
    assert f3net.diagonals(10)[bands.sum(0) == 2].unique().tolist() == [
        10
    ]  # the only whole end: 20/6 * 3


@pytest.mark.parametrize("log", ["after", "before"])
@pytest.mark.parametrize("size", [20, 33])
def test_lfs_by_hand(log, size):
    torch.manual_seed(0)
    lfs, x = f3net.LFS(log), torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        out = lfs(x).double().numpy()
    grid = f3net.window_grid(size)
    assert out.shape == (2, 6, grid, grid)
    grey = ((x + 1) * 122.5 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)[1].numpy()
    grey = np.pad(grey, 4)
    filters = (lfs.base + 2 * lfs.weight.sigmoid() - 1).detach().double().numpy()
    for i, j in ((0, 0), (3, 5), (grid - 1, grid - 1)):
        c = np.abs(
            dctn(grey[2 * i : 2 * i + 10, 2 * j : 2 * j + 10].astype(np.float64), norm="ortho")
        )
        for m, (f, cells) in enumerate(zip(filters, [10, 18, 36, 30, 12, 3])):
            expected = (
                np.log10(np.abs(c * f).sum() / cells)
                if log == "after"
                else (np.log10(c + 1e-15) * f).sum() / cells
            )
            assert out[1, m, i, j] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("size, grid", [(64, 32), (224, 112), (256, 128), (299, 149)])
def test_lfs_grid(size, grid):
    assert f3net.window_grid(size) == grid
    assert f3net.LFS()(torch.zeros(1, 3, size, size)).shape == (1, 6, grid, grid)


def test_transforms_keep_single_precision_under_autocast():
    x = torch.rand(1, 3, 64, 64)
    for part in (f3net.FAD(64), f3net.LFS(), f3net.LFS("before")):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = part(x)
        assert low.dtype == torch.float32 and torch.equal(low, part(x).detach())


@pytest.mark.parametrize("part", [f3net.LFS("after"), f3net.LFS("before"), f3net.FAD(32)])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_blank_faces_are_finite(part, value):
    x = torch.full((1, 3, 32, 32), value, requires_grad=True)
    out = part(x)
    part.zero_grad()
    out.square().sum().backward()
    assert out.isfinite().all() and part.weight.grad.isfinite().all() and x.grad.isfinite().all()


# ---- MixBlock


def test_mix_block_by_hand():
    torch.manual_seed(0)
    block, (x, y) = f3net.MixBlock(4).eval(), torch.randn(2, 1, 4, 3, 3)
    for p in block.parameters():
        nn.init.normal_(p)
    gates = [2 * torch.sigmoid(g).item() - 1 for g in (block.fad_gamma, block.lfs_gamma)]
    with torch.no_grad():
        new_x, new_y = block(x, y)
        q = torch.cat([block.fad_query(x), block.lfs_query(y)], 3)[0]
        k = torch.cat([block.fad_key(x), block.lfs_key(y)], 3)[0]
        a = torch.stack([(q[c] @ k[c].T).softmax(1) for c in range(4)])
        assert a.shape == (4, 3, 3) and torch.allclose(a.sum(2), torch.ones(4, 3))
        assert torch.allclose(new_x, x + block.fad_out(y * a * gates[1]), atol=1e-5)
        assert torch.allclose(new_y, y + block.lfs_out(x * a * gates[0]), atol=1e-5)


def test_mix_block_begins_as_the_identity():
    block, x, y = f3net.MixBlock(8), torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    for mode in (block.train(), block.eval()):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mode(x, y), (x, y)))


@torch.no_grad()
def test_features_step_by_step():
    "Filter and Xception a branch, mixed after block 7 and after block 12, written out; the parts have their own tests."
    model, z = randomise_batch_norm(small()), torch.rand(2, 3, 64, 64) * 2 - 1
    for name, p in model.named_parameters():
        if "gamma" in name:
            nn.init.constant_(
                p, 1.0
            )  # as after some training: the attention lets something through
    bodies = model.bodies.fad, model.bodies.lfs
    maps = [
        body.stem2(body.stem1(f(z)))
        for f, body in zip((model.filters.fad, model.filters.lfs), bodies)
    ]
    for i in range(1, 13):
        maps = [body.get_submodule(f"block{i}")(m) for body, m in zip(bodies, maps)]
        if i == 7:
            maps = model.mix7(*maps)
        if i == 12:
            maps = model.mix12(*maps)
    expected = torch.cat([body.tail(m).mean((2, 3)) for body, m in zip(bodies, maps)], 1)
    two = model.fc(expected)
    assert (model.features(z) - expected).abs().max() < 1e-5 * expected.max() and torch.allclose(
        model.logit(z), two[:, 1] - two[:, 0], rtol=1e-4
    )


# ---- modes and sizes


@pytest.mark.parametrize("mode, outputs", [("mix", 2), ("both", 2), ("fad", 1), ("lfs", 1)])
def test_modes_have_their_parts(mode, outputs):
    model = small(mode=mode)
    assert (
        tuple(model.filters) == tuple(model.bodies) == f3net.MODES[mode]
        and len(model.bodies) == outputs
    )
    assert hasattr(model, "mix7") == hasattr(model, "mix12") == (mode == "mix")
    assert model.cam_layers[0] == f"bodies.{f3net.MODES[mode][0]}.conv4"
    assert model.config == dict(name="f3net", width=1 / 8, size=64, mode=mode)


@pytest.mark.parametrize("size", [72, 104, 135, 136, 137, 200, 248])
def test_branches_that_do_not_meet_are_refused_before_building(size, monkeypatch):
    meta(size=size, mode="both", width=1 / 8)(torch.empty(1, 3, size, size, device="meta"))
    monkeypatch.setattr(f3net, "XceptionBody", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match="same grid in both branches"):
        create_detector("f3net", size=size)


@pytest.mark.parametrize(
    "size, mode", [(8, "both"), (6, "fad"), (9, "lfs"), (0, "mix"), (32, "mix")]
)
def test_too_small_is_refused(size, mode):
    with pytest.raises(ValueError, match="nothing is left|at least 3 cells"):
        create_detector("f3net", size=size, mode=mode)


@pytest.mark.parametrize("size, mode", [(10, "both"), (7, "fad"), (10, "lfs"), (42, "mix")])
def test_smallest_sizes_run(size, mode):
    assert meta(size=size, mode=mode, width=1 / 8)(
        torch.empty(2, 3, size, size, device="meta")
    ).shape == (2,)


@pytest.mark.parametrize(
    "option, says",
    [
        (dict(mode="mixed"), "mode of F3-Net"),
        (dict(bands="areas"), "division into bands"),
        (dict(log="befor"), "place of the logarithm"),
    ],
)
def test_unknown_options(option, says):
    with pytest.raises(ValueError, match=says):
        small(**option)


def test_options_reach_their_parts():
    model = small(bands="index", log="before", dropout=0.4)
    assert (
        torch.equal(model.filters.fad.base, f3net.fad_bands(64, "index"))
        and model.filters.lfs.log == "before"
        and model.drop.p == 0.4
    )


# ---- training


def _gradients(model, x, label):
    model.zero_grad()
    model.loss(model.outputs(x), dict(label=label)).backward()
    scale = max(p.grad.abs().max() for p in model.parameters())
    return {
        name
        for name, p in model.named_parameters()
        if p.grad is None or p.grad.abs().max() < 1e-7 * scale
    }


def test_what_is_behind_the_gates_learns_from_the_second_step():
    model, x, label = small(), torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    idle = {
        n for n, _ in model.named_parameters() if n.endswith(("key.bias", "out.0.bias"))
    }  # without effect
    behind = {
        n
        for n, _ in model.named_parameters()
        if "query" in n or "key" in n or "out.0" in n or n.endswith("out.1.weight")
    }
    assert len(idle) == 8 and _gradients(model, x, label) == behind
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    assert _gradients(model, x, label) <= idle


def test_training_moves_masks_of_both_branches():
    model, x, label = small(mode="both"), torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    assert _gradients(model, x, label) == set()
    assert all((model.filters[b].weight.grad != 0).float().mean() > 0.99 for b in ("fad", "lfs"))


def test_imagenet_kernels_are_repeated_and_divided(monkeypatch):
    torch.manual_seed(1)
    state = timm.create_model("legacy_xception", num_classes=1).state_dict()
    monkeypatch.setattr(xception, "imagenet_state", lambda source: dict(state))
    bodies, kernel = (
        create_detector("f3net", pretrained=True, size=64).bodies,
        state["conv1.weight"],
    )
    assert torch.equal(bodies.fad.conv1.weight, kernel.repeat(1, 4, 1, 1) / 4)
    assert torch.equal(bodies.lfs.conv1.weight, kernel.repeat(1, 2, 1, 1) / 2)
    for body in bodies.values():
        own = body.state_dict()
        assert all(
            torch.equal(v, own[k]) for k, v in state.items() if not k.startswith(("fc.", "conv1."))
        )

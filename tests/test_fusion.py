"prle.fusion against plain loops over pixels, written from Eq. 6-8."

import pytest
import torch
import torch.nn.functional as F

from prle.fusion import FUSIONS, fuse, neighbour_difference

SHAPES = [(1, 1), (1, 4), (2, 2), (7, 5), (9, 12)]


def some_maps(n, t, height, width, seed=0):
    "Maps of different detectors: smooth, sparse, flat, saturated, noisy; some pairs agree."
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(n, 1, 3, 3, generator=g), (height, width), mode="bilinear")
    sparse = smooth * (torch.rand(n, 1, height, width, generator=g) > 0.5)
    flat = torch.full((n, 1, height, width), 0.9)
    flat[:, :, : height // 2] = 0
    noisy = torch.rand(n, 1, height, width, generator=g)
    agrees = (smooth + 0.05).clamp(max=1)
    return torch.cat([smooth, sparse, flat, noisy, agrees], 1)[:, :t].contiguous()


def window(y, x, height, width):
    "The positions of the 3x3 neighbourhood that lie inside, in reading order."
    return [
        (v, u)
        for v in (y - 1, y, y + 1)
        for u in (x - 1, x, x + 1)
        if 0 <= v < height and 0 <= u < width
    ]


def difference(maps, y, x):
    "The left side of Eq. 7 for every pair (j, k) at one pixel; maps is (T, H, W) of Python floats."
    height, width = len(maps[0]), len(maps[0][0])
    near = window(y, x, height, width)
    return max(sum(abs(a[v][u] - b[y][x]) for v, u in near) / len(near) for a in maps for b in maps)


def pixel(maps, y, x, method, tau, lam):
    "One fused value, by the book."
    t, height, width = len(maps), len(maps[0]), len(maps[0][0])

    def mean(v, u):
        return sum(a[v][u] for a in maps) / t

    near = window(y, x, height, width)
    largest, best = -1.0, None
    for v, u in near:
        for a in maps:
            if a[v][u] > largest:
                largest, best = a[v][u], (v, u)
    average = mean(y, x)
    if method == "mean":
        return average if average > tau else 0.0
    if method == "neighbour-literal":
        return largest if difference(maps, y, x) > lam else 0.0
    if method == "neighbour":
        if average > tau:
            return average
        return largest if difference(maps, y, x) > lam else 0.0
    if average > 0.3:
        return average
    return mean(*best) if average > 0.1 and difference(maps, y, x) > 0.2 else 0.0


def by_loop(maps, method, tau, lam):
    "Fused maps of a batch, one pixel at a time."
    n, _, height, width = maps.shape
    fused = []
    for one in maps.tolist():
        for y in range(height):
            fused += [pixel(one, y, x, method, tau, lam) for x in range(width)]
    return torch.tensor(fused).view(n, height, width)


def away_from_thresholds(maps, tau, lam):
    "Pixels whose average and difference are further from a threshold than rounding reaches."
    average, diff = maps.double().mean(1), neighbour_difference(maps.double())
    gaps = [average - t for t in (tau, 0.1, 0.3)] + [diff - t for t in (lam, 0.2)]
    return torch.stack(gaps).abs().amin(0) > 1e-6


@pytest.mark.parametrize("method", FUSIONS)
@pytest.mark.parametrize("t", range(1, 6))
@pytest.mark.parametrize("size", SHAPES)
def test_equals_a_loop_over_pixels(method, t, size):
    for seed, (tau, lam) in enumerate([(0.3, 0.15), (0.1, 0.3), (0.0, 0.0)]):
        maps = some_maps(2, t, *size, seed)
        clear = away_from_thresholds(maps, tau, lam)
        assert clear.float().mean() > 0.7 or tau == 0, "too few pixels left to compare"
        gap = (fuse(maps, method, tau, lam) - by_loop(maps, method, tau, lam)).abs()
        assert (gap * clear).max() < 1e-6


@pytest.mark.parametrize("t", range(1, 6))
def test_convexity_shortcut_equals_all_pairs(t):
    maps = some_maps(3, t, 9, 12, seed=t).double()
    loop = [difference(m, y, x) for m in maps.tolist() for y in range(9) for x in range(12)]
    pairs = torch.tensor(loop, dtype=torch.float64).view(3, 9, 12)
    assert (neighbour_difference(maps) - pairs).abs().max() < 1e-12


@pytest.mark.parametrize("method", FUSIONS)
def test_batches_equal_singles_and_order_of_detectors_does_not_matter(method):
    maps = some_maps(6, 3, 32, 20)
    fused = fuse(maps, method)
    assert torch.equal(fused, torch.cat([fuse(m[None], method) for m in maps]))
    swapped = maps[:, [1, 0, 2]]  # a + b = b + a exactly
    if method != "released":
        assert torch.equal(fuse(swapped, method), fused)


@pytest.mark.parametrize("method", FUSIONS)
def test_values_dtype_and_input(method):
    maps = some_maps(2, 4, 16, 12)
    before = maps.clone()
    fused = fuse(maps, method)
    assert fused.shape == (2, 16, 12) and fused.dtype == torch.float32
    assert fused.min() >= 0 and fused.max() <= 1 and (fused > 0).any()
    assert torch.equal(maps, before)
    assert fuse(maps.half(), method).dtype == torch.float32
    assert torch.allclose(fuse(maps.double(), method), fused)
    strided = maps.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert torch.equal(fuse(strided, method), fused)


def test_nothing_attended_gives_nothing():
    for method in FUSIONS:
        assert not fuse(torch.zeros(1, 3, 8, 8), method).any()


def test_literal_reading_drops_consensus_and_the_default_keeps_it():
    maps = torch.zeros(1, 3, 12, 12)
    maps[:, :, 3:9, 3:9] = 0.9
    literal, default = fuse(maps, "neighbour-literal")[0], fuse(maps)[0]
    assert literal[5, 5] == 0 and literal[3, 3] > 0, "flat inside, difference at the rim"
    assert torch.allclose(default[3:9, 3:9], torch.tensor(0.9))
    assert default[2, 5] == pytest.approx(0.9) and default[0, 5] == 0, "expanded by one pixel"


def test_released_takes_the_average_at_the_first_maximum():
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 2, 2], maps[0, 1, 2, 3] = 1.0, 0.4
    fused = fuse(maps, "released")[0]
    assert fused[2, 2] == 0.5, "kept: the average is above 0.3"
    assert fused[2, 3] == 0.5, "expanded: the average where a map is largest, not the maximum 1.0"
    assert fused.count_nonzero() == 2, "0.1 and below is dropped"
    default = fuse(maps)[0]
    assert default[2, 3] == 1.0


def test_released_has_thresholds_of_its_own():
    maps = some_maps(2, 3, 9, 9)
    assert torch.equal(fuse(maps, "released"), fuse(maps, "released", tau=0.9, lam=0.9))


def test_floor():
    maps = some_maps(2, 3, 9, 12)
    for method in FUSIONS:
        assert torch.equal(fuse(maps, method, floor=0.4), fuse(maps.where(maps >= 0.4, 0), method))
        assert torch.equal(fuse(maps, method, floor=0.0), fuse(maps, method))
    assert fuse(torch.full((1, 1, 2, 2), 0.5), "mean", floor=0.5).all(), "the floor itself is kept"


def test_thresholds_must_be_exceeded():
    flat = torch.full((1, 2, 4, 4), 0.5)
    for method in ("mean", "neighbour"):
        assert not fuse(flat, method, tau=0.5).any() and fuse(flat, method, tau=0.49).all()
    step = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # they differ by 0.5
    assert not fuse(step, "neighbour-literal", lam=0.5).any()
    assert fuse(step, "neighbour-literal", lam=0.49).all()


def test_larger_tau_and_lambda_cover_less():
    maps = some_maps(2, 3, 32, 32)

    def share(**settings):
        return (fuse(maps, **settings) > 0).float().mean()

    assert share(method="mean", tau=0.1) >= share(method="mean", tau=0.3) > 0
    assert share(lam=0.1) >= share(lam=0.3) >= share(method="mean")


def test_wrong_input():
    maps = some_maps(3, 2, 6, 6)
    with pytest.raises(ValueError, match="Did you mean 'neighbour'"):
        fuse(maps, "neighbor")
    with pytest.raises(ValueError, match=r"not \(3, 6, 6\)"):
        fuse(maps[:, 0])
    with pytest.raises(ValueError, match="nothing empty"):
        fuse(maps[:, :0])
    with pytest.raises(TypeError, match="float tensor"):
        fuse(maps.numpy())
    with pytest.raises(TypeError, match="float tensor"):
        fuse((maps * 255).to(torch.uint8))
    bad = maps.clone()
    bad[2, 1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 2, detector 1: the map holds NaN"):
        fuse(bad)
    with pytest.raises(ValueError, match="image 0, detector 0: the map has values from .* outside"):
        fuse(maps * 255)
    with pytest.raises(ValueError, match="outside"):
        fuse(maps - 0.5)
    for name in ("tau", "lam", "floor"):
        for value in (-0.1, 1.2, float("nan")):
            with pytest.raises(ValueError, match=f"{name} must lie in"):
                fuse(maps, **{name: value})

"prle.fusion against plain loops over pixels, written from Eq. 6-8."

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prle.fusion import (
    FUSIONS,
    _exceeds,
    fuse,
    most_attended,
    neighbour_difference,
    neighbour_maximum,
)
from prle.lab.configs import FusionConfig
from prle.masking import quantile_map, region

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


def released(maps, y, x, drop):
    "One value of the published code, which halves its maps and has thresholds for halves, doubled at the end."
    halves = [[[value / 2 for value in row] for row in a] for a in maps]
    near = window(y, x, len(maps[0]), len(maps[0][0]))

    def average(v, u):
        return sum(a[v][u] for a in halves) / len(halves)

    value, here = 0.0, average(y, x)
    if here > 0.3:
        value = here
    elif here > drop / 2 and difference(halves, y, x) > 0.2:
        value = average(*max(near, key=lambda at: max(a[at[0]][at[1]] for a in halves)))
    return 2 * value if value >= 0.02 else 0.0


def pixel(maps, y, x, method, tau, lam, drop):
    "One fused value, by the book."
    t, height, width = len(maps), len(maps[0]), len(maps[0][0])

    def mean(v, u):
        return sum(a[v][u] for a in maps) / t

    if method == "released":
        return released(maps, y, x, drop)
    largest = max(a[v][u] for v, u in window(y, x, height, width) for a in maps)
    average = mean(y, x)
    if method == "mean":
        return average if average > tau else 0.0
    if method == "neighbour-literal":
        return largest if difference(maps, y, x) > lam else 0.0
    if average > tau:
        return largest if method == "union" else average
    return largest if difference(maps, y, x) > lam else 0.0


def by_loop(maps, method, tau, lam, drop):
    "Fused maps of a batch, one pixel at a time."
    n, _, height, width = maps.shape
    fused = []
    for one in maps.tolist():
        for y in range(height):
            fused += [pixel(one, y, x, method, tau, lam, drop) for x in range(width)]
    return torch.tensor(fused).view(n, height, width)


def away_from_thresholds(maps, tau, lam, drop):
    "Pixels whose average and difference are further from a threshold than rounding reaches."
    average, diff = maps.double().mean(1), neighbour_difference(maps.double())
    gaps = [average - t for t in (tau, drop, 0.6)] + [diff - t for t in (lam, 0.4)]
    return torch.stack(gaps).abs().amin(0) > 1e-6


@pytest.mark.parametrize("method", FUSIONS)
@pytest.mark.parametrize("t", range(1, 6))
@pytest.mark.parametrize("size", SHAPES)
def test_equals_a_loop_over_pixels(method, t, size):
    for seed, settings in enumerate([(0.3, 0.15, 0.2), (0.1, 0.3, 0.1), (0.0, 0.0, 0.0)]):
        tau, lam, drop = settings
        maps = some_maps(2, t, *size, seed)
        clear = away_from_thresholds(maps, *settings)
        assert clear.float().mean() > 0.7 or tau == 0, "too few pixels left to compare"
        gap = (fuse(maps, method, tau, lam, drop=drop) - by_loop(maps, method, *settings)).abs()
        assert (gap * clear).max() < 1e-6


@pytest.mark.parametrize("t", range(1, 6))
def test_convexity_shortcut_equals_all_pairs(t):
    maps = some_maps(3, t, 9, 12, seed=t).double()
    loop = [difference(m, y, x) for m in maps.tolist() for y in range(9) for x in range(12)]
    pairs = torch.tensor(loop, dtype=torch.float64).view(3, 9, 12)
    assert (neighbour_difference(maps) - pairs).abs().max() < 1e-12


@pytest.mark.parametrize("t", [1, 3, 5])
@pytest.mark.parametrize("size", [*SHAPES, (40, 33)])
def test_bounds_answer_as_the_difference_does_to_the_last_bit(t, size):
    maps = some_maps(2, t, *size)
    whole = neighbour_difference(maps)
    asked = torch.rand(whole.shape) < 0.5
    for lam in (0.0, 0.15, 0.4, *whole.flatten()[:: max(1, whole.numel() // 20)].tolist()):
        assert torch.equal(_exceeds(maps, lam), whole > lam)
        assert torch.equal(_exceeds(maps, lam, asked) & asked, (whole > lam) & asked)


def test_the_neighbours_maximum_is_that_of_pooling():
    maps = some_maps(2, 4, 17, 23)
    pooled = F.max_pool2d(maps.amax(1), 3, stride=1, padding=1)
    assert torch.equal(neighbour_maximum(maps), pooled)


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
    maps[0, :, 2, 2], maps[0, 1, 2, 3] = torch.tensor([1.0, 0.4]), 0.9
    fused = fuse(maps, "released")[0]
    assert fused[2, 2] == pytest.approx(0.7), "kept: the average is above 0.6"
    assert fused[2, 3] == pytest.approx(0.7), "expanded: the average at the largest, not its 1.0"
    assert fused.count_nonzero() == 2, "0.2 and below is dropped"
    assert fuse(maps)[0, 2, 3] == pytest.approx(0.45), "the default keeps averages above 0.3"


def test_released_has_thresholds_of_its_own():
    maps = some_maps(2, 3, 9, 9)
    assert torch.equal(fuse(maps, "released"), fuse(maps, "released", tau=0.9, lam=0.9))
    lower, higher = fuse(maps, "released", drop=0.1) > 0, fuse(maps, "released", drop=0.5) > 0
    assert (lower | ~higher).all() and lower.sum() > higher.sum(), "a lower drop attends more"
    for method in set(FUSIONS) - {"released"}:
        assert torch.equal(fuse(maps, method), fuse(maps, method, drop=0.9))


def test_released_counts_a_pixel_from_a_twenty_fifth_on():
    maps = torch.zeros(1, 40, 3, 3)
    maps[0, 0, 1, 1] = 1.0  # of 40 detectors: its average is 0.025
    maps[0, 1:, 0, 0] = 0.35
    assert not fuse(maps, "released")[0, 0, 0], "0.025, next to it, is not attended"
    maps[0, 1, 1, 1] = 1.0  # 0.05
    assert fuse(maps, "released")[0, 0, 0] == pytest.approx(0.05)


def test_union_attends_what_the_default_does_and_is_the_maximum_there():
    maps = some_maps(3, 4, 24, 20)
    union, default = fuse(maps, "union"), fuse(maps)
    assert torch.equal(union > 0, default > 0) and (union >= default).all()
    assert torch.equal(union, neighbour_maximum(maps).where(default > 0, 0))


def test_floor():
    maps = some_maps(2, 3, 9, 12)
    for method in FUSIONS:
        assert torch.equal(fuse(maps, method, floor=0.4), fuse(maps.where(maps >= 0.4, 0), method))
        assert torch.equal(fuse(maps, method, floor=0.0), fuse(maps, method))
    assert fuse(torch.full((1, 1, 2, 2), 0.5), "mean", floor=0.5).all(), "the floor itself is kept"


def test_thresholds_must_be_exceeded():
    flat = torch.full((1, 2, 4, 4), 0.5)
    for method in ("mean", "neighbour", "union"):
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
    for name in ("tau", "lam", "floor", "drop", "share"):
        for value in (-0.1, 1.2, float("nan")):
            with pytest.raises(ValueError, match=f"{name} must lie in"):
                fuse(maps, **{name: value})


# A share of the face


@pytest.mark.parametrize("method", FUSIONS)
def test_a_share_keeps_the_most_attended_pixels(method):
    maps = some_maps(3, 4, 16, 20)
    whole = fuse(maps, method)
    assert torch.equal(fuse(maps, method, share=0.0), whole)
    assert torch.equal(fuse(maps, method, share=1.0), whole)
    for share in (0.01, 0.1, 0.25, 0.5):
        kept = fuse(maps, method, share=share)
        count = (whole > 0).sum((1, 2)).clamp(max=round(share * 16 * 20))
        assert torch.equal((kept > 0).sum((1, 2)), count)
        assert torch.equal(kept[kept > 0], whole[kept > 0]), "values stay as they are"
        for before, after in zip(whole, kept):
            assert before[after == 0].max() <= after[after > 0].min()


def test_of_equal_pixels_the_first_stay():
    g = torch.Generator().manual_seed(0)
    fused = (torch.rand(6, 12, 10, generator=g) * 5).round() / 5
    shares = torch.tensor([0.0, 0.004, 0.1, 0.5, 0.999, 1.0])
    for one, share, kept in zip(fused, shares.tolist(), most_attended(fused, shares)):
        order = one.flatten().argsort(descending=True, stable=True)
        expected = torch.zeros(120)
        first = order[: round(share * 120)]
        expected[first] = one.flatten()[first]
        assert torch.equal(kept.flatten(), expected)


def test_a_share_of_nothing_and_of_no_number():
    assert most_attended(torch.zeros(0, 4, 4), 0.3).shape == (0, 4, 4)
    with pytest.raises(ValueError, match="NaN"):
        most_attended(torch.tensor([[[0.5, torch.nan, 0.3, 0.2]]]), 0.5)


@pytest.mark.parametrize("method", FUSIONS)
def test_fused_maps_have_no_gradient(method):
    assert not fuse(some_maps(1, 3, 8, 8).requires_grad_(), method).requires_grad


def test_a_share_cuts_equal_pixels_as_quantile_maps_do():
    fused = (torch.rand(4, 12, 10, generator=torch.Generator().manual_seed(0)) * 5).round() / 5
    for share in (0.1, 0.3, 0.5):
        attended = (fused > 0).float().mean((1, 2), dtype=torch.float64)
        ranked = region(quantile_map(fused), share / attended + 1e-4)
        assert torch.equal(most_attended(fused, share) > 0, ranked)


# How masks grow


ALPHAS = (0.001, 0.01, *(step / 20 for step in range(1, 21)))


def pieces(mask):
    "The number of connected parts of a mask (H, W), diagonal neighbours included."
    return cv2.connectedComponents(mask.numpy().astype(np.uint8))[0] - 1


def one_peak(seed, shift, size=64):
    "Three maps (1, 3, H, W) that fall from one centre outwards; the centres lie up to `shift` px apart."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    middle, width, power = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(5, 14), rng.uniform(1, 4)
    centres = middle + rng.uniform(-shift / 2, shift / 2, (3, 2))
    radii = [np.hypot(y - v, x - u) / width for v, u in centres]
    maps = [np.exp(-(radius**power)) for radius in radii]
    return torch.tensor(np.stack(maps)[None], dtype=torch.float32)


@pytest.mark.parametrize("method", FUSIONS)
def test_masks_of_growing_alpha_are_nested(method):
    maps = torch.cat([some_maps(4, 3, 64, 64), one_peak(0, 0), one_peak(1, 3)])
    quantiles = quantile_map(fuse(maps, method))
    smaller = region(quantiles, 0.0)
    for alpha in ALPHAS:
        larger = region(quantiles, alpha)
        assert (larger | ~smaller).all() and larger.sum() > smaller.sum()
        smaller = larger


def most_pieces(maps, method):
    "The largest number of pieces that a mask of any alpha falls into."
    quantiles = quantile_map(fuse(maps, method))
    return max(pieces(region(quantiles, alpha)[0]) for alpha in ALPHAS)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("method", ["mean", "union"])
def test_masks_of_one_peak_are_one_piece(method, shift):
    for seed in range(30):
        maps = one_peak(seed, shift)
        assert most_pieces(maps, method) == 1, seed
        assert pieces(fuse(maps, method, share=0.05)[0] > 0) == 1, seed


def test_peaks_further_apart_give_union_a_piece_for_each_detector_until_they_meet():
    most = [most_pieces(one_peak(seed, 8), "union") for seed in range(30)]
    assert 1 < max(most) <= 3
    assert all(most_pieces(one_peak(seed, 8), "mean") == 1 for seed in range(30))


def test_the_default_makes_rings_where_detectors_look_at_nearly_the_same_place():
    "Its average inside is lower than the maximum around it, so the rim is masked before the inside."
    most = [most_pieces(one_peak(seed, 2), "neighbour") for seed in range(30)]
    assert sum(count > 1 for count in most) > 5 and max(most) > 5


# Keys


def test_keys_without_drop_and_share_are_those_of_before():
    old = dict(tau=0.3, lam=0.15, floor=0.0)
    for method in set(FUSIONS) - {"released"}:
        assert FusionConfig(method).key() == FusionConfig(method, drop=0.1).key()
        assert FusionConfig(method).key() == dict(method=method) | old
    assert FusionConfig("released").key() == dict(method="released") | old | dict(drop=0.2)
    assert FusionConfig(share=0.2).key() == dict(method="neighbour") | old | dict(share=0.2)
    assert str(FusionConfig(drop=0.1)) == "neighbour"
    assert str(FusionConfig("union", share=0.2)) == "union,share=0.2"

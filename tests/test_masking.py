"prle.masking: exact shares, files, all kinds of images, draws that can be repeated, and stores."

import math
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from prle.core import torch_rng
from prle.fusion import fuse
from prle.localization import upsample_maps
from prle.masking import (
    FACE_PARTS,
    FILLS,
    LandmarkMask,
    MaskParams,
    MatchedLandmarkMask,
    MatchedRandomMask,
    PrimaryRegionMask,
    RandomMask,
    masked_face,
    quantile_map,
    quantile_store,
    read_quantiles,
    region,
    resize_quantiles,
    write_quantiles,
)

ALPHAS = (1e-9, 1e-4, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.999, 1.0)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def some_fused(n=4, height=24, width=40, seed=0):
    "Fused maps with an unattended part and many equal values."
    fused = (torch.rand(n, height, width, generator=gen(seed)) * 50).round() / 50
    return fused.where(fused > 0.4, 0)


@pytest.fixture
def images():
    return torch.randint(1, 255, (4, 3, 24, 40), generator=gen(1), dtype=torch.uint8)


@pytest.fixture
def quantiles():
    return quantile_map(some_fused())


def landmarks(height=96, width=96):
    "68 points of a plausible face, dlib's order, scaled to the image."
    t = np.linspace(0, np.pi, 17)
    jaw = np.stack([0.5 - 0.4 * np.cos(t), 0.4 + 0.5 * np.sin(t)], 1)

    def arc(x0, x1, y, n):
        return np.stack([np.linspace(x0, x1, n), np.full(n, y)], 1)

    def ring(x, y, rx, ry, n):
        angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
        return np.stack([x - rx * np.cos(angle), y - ry * np.sin(angle)], 1)

    parts = [
        jaw,
        arc(0.2, 0.42, 0.28, 5),
        arc(0.58, 0.8, 0.28, 5),
        np.stack([np.full(4, 0.5), np.linspace(0.38, 0.55, 4)], 1),
        arc(0.42, 0.58, 0.6, 5),
        ring(0.32, 0.38, 0.08, 0.03, 6),
        ring(0.68, 0.38, 0.08, 0.03, 6),
        ring(0.5, 0.74, 0.14, 0.06, 12),
        ring(0.5, 0.74, 0.1, 0.02, 8),
    ]
    return torch.tensor(np.concatenate(parts) * (width, height), dtype=torch.float32)


# Quantile maps


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (24, 40), (255, 257), (256, 256)])
@pytest.mark.parametrize("attended", [0.0, 0.2, 1.0])
def test_keeps_exactly_the_most_attended(size, attended):
    fused = torch.rand(2, *size, generator=gen(2)) + 1e-3
    fused = fused.where(torch.rand(2, *size, generator=gen(3)) < attended, 0)
    q = quantile_map(fused)
    assert q.dtype == torch.uint16 and torch.equal(q.to(torch.int32) > 0, fused > 0)
    for alpha in ALPHAS:
        for f, kept in zip(fused, region(q, alpha)):
            assert abs(kept.sum() - int(alpha * (f > 0).sum())) <= 1
            out = f[~kept]
            if kept.any() and len(out):
                assert f[kept].min() >= out.max()
    assert torch.equal(region(q, 1.0), fused > 0), "Eq. 4"
    assert not region(q, 0.0).any()


def test_every_share_of_a_whole_256_image_to_a_pixel():
    n, limit = 256 * 256, torch.arange(65536)
    q = quantile_map(torch.rand(1, 256, 256, generator=gen()) + 0.1).to(torch.int64).flatten()
    kept = torch.cumsum(torch.bincount(q, minlength=65536), 0)  # pixels with Q <= limit
    for alpha in (limit / 65535, (limit.double() + 0.999) / 65535, limit / 65536):
        k = (65535 * alpha.double()).floor().long().clamp(max=65535)
        expected = (alpha.double().clamp(max=1) * n).long()
        assert (kept[k] - expected).abs().max() <= 1


def test_a_larger_image_is_exact_to_a_step():
    n = 300 * 400
    q = quantile_map(torch.rand(1, 300, 400, generator=gen()) + 0.1)
    for alpha in ALPHAS:
        assert abs(region(q, alpha).sum() - int(alpha * n)) <= math.ceil(n / 65535)


def test_equal_values_are_ranked_by_position():
    q = quantile_map(torch.full((1, 2, 3), 0.5)).to(torch.int32)[0]
    assert q.flatten().tolist() == [math.ceil(65535 * r / 6) for r in range(1, 7)]
    kept = region(quantile_map(torch.full((1, 4, 4), 0.5)), 0.6)[0].flatten().tolist()
    assert kept == [True] * 9 + [False] * 7


def test_quantile_of_a_batch_equals_singles_and_is_monotone():
    fused = some_fused()
    q = quantile_map(fused)
    singles = torch.cat([quantile_map(f[None]) for f in fused])
    assert torch.equal(q.to(torch.int32), singles.to(torch.int32))
    smaller = region(q, 0.2)
    for alpha in (0.3, 0.8, 1.0):
        larger = region(q, alpha)
        assert (larger | ~smaller).all(), "a larger alpha contains the smaller one's region"
        smaller = larger


def test_alpha_per_map(quantiles):
    alpha = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    for q in (quantiles, quantiles[:, None]):
        singles = torch.stack([region(one, float(a)) for one, a in zip(q, alpha)])
        assert torch.equal(region(q, alpha), singles)


def test_quantile_map_rejects():
    with pytest.raises(ValueError, match="map 1 holds NaN"):
        quantile_map(torch.stack([torch.rand(4, 4), torch.full((4, 4), torch.nan)]))
    with pytest.raises(ValueError, match="must be"):
        quantile_map(torch.rand(4, 4))


# Files


def test_png_round_trip(tmp_path):
    fused = torch.cat([some_fused(2, 24, 40), torch.zeros(1, 24, 40), torch.rand(1, 24, 40) + 0.1])
    paths = [tmp_path / "a" / f"{i}.png" for i in range(4)]
    written = write_quantiles(fused, paths)
    assert torch.equal(written.to(torch.int32), quantile_map(fused).to(torch.int32))
    for path, q in zip(paths, written):
        read = read_quantiles(path)
        assert read.dtype == np.uint16 and read.shape == (24, 40)
        assert np.array_equal(read, q.numpy())
        elsewhere = np.array(PIL.Image.open(path))
        assert np.array_equal(elsewhere, q.numpy()), "other readers see the same"
    assert len(list(tmp_path.rglob("*.*"))) == 4, "no temporary file stays"
    with pytest.raises(ValueError, match="4 maps for 3 paths"):
        write_quantiles(fused, paths[:3])


def test_reading_bad_files(tmp_path):
    with pytest.raises(OSError, match="none.png"):
        read_quantiles(tmp_path / "none.png")
    cv2.imwrite(str(tmp_path / "eight.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="eight.png"):
        read_quantiles(tmp_path / "eight.png")
    write_quantiles(torch.rand(1, 64, 64), [tmp_path / "cut.png"])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    with pytest.raises(OSError, match="cut.png"):
        read_quantiles(tmp_path / "cut.png")


def test_resized_with_its_image():
    fused = some_fused(1, 20, 30)
    q = quantile_map(fused)
    double = resize_quantiles(q, (40, 60))
    assert double.dtype == torch.uint16 and double.shape == (1, 40, 60)
    for alpha in ALPHAS:
        grown = region(q, alpha).repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert torch.equal(region(double, alpha), grown)
    small = resize_quantiles(q[0], (10, 15)).to(torch.int32)
    assert torch.isin(small, q.to(torch.int32)).all(), "ranks are never interpolated"
    odd, mirrored = resize_quantiles(q, (20, 10)), resize_quantiles(q.flip(-1), (20, 10))
    assert torch.equal(mirrored, odd.flip(-1)), "samples the middle, not the left edge"
    smooth = quantile_map(upsample_maps(torch.rand(1, 4, 4, generator=gen()), (256, 256)))
    for alpha in (0.1, 0.5, 0.9):
        full = region(smooth, alpha).float().mean()
        shrunk = region(resize_quantiles(smooth, (111, 97)), alpha).float().mean()
        assert abs(full - shrunk) < 0.01


# The plug-in


@pytest.mark.parametrize("other", [torch.rand(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)])
def test_what_is_no_quantile_map_stays_none(other):
    for wrong in (lambda: region(other, 0.5), lambda: resize_quantiles(other, (4, 4))):
        with pytest.raises(TypeError, match="must be uint16"):
            wrong()


@pytest.mark.parametrize("alpha", [1.5, -0.1, math.nan, torch.tensor([0.5, 1.5])])
def test_a_share_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        region(torch.ones(2, 4, 4, dtype=torch.uint16), alpha)


def test_an_array_is_resized_as_a_tensor_is():
    q = quantile_map(torch.rand(1, 8, 8, generator=gen()))[0]
    assert torch.equal(resize_quantiles(q.numpy(), (16, 16)), resize_quantiles(q, (16, 16)))


@pytest.mark.parametrize("fill", FILLS)
def test_all_kinds_of_images_get_the_same_mask(images, quantiles, fill):
    mask = PrimaryRegionMask(p=1, fill=fill)
    params = mask.draw(4, gen())
    batch = mask.apply(images, quantiles, params)
    assert batch.dtype == torch.uint8 and batch.shape == images.shape
    assert torch.equal(mask.apply(images, quantiles[:, None], params), batch)
    assert torch.equal(mask.apply(images, quantiles.to(torch.int32), params), batch)
    floats = mask.apply(images / 255, quantiles, params)
    assert floats.dtype == torch.float32 and (floats * 255 - batch).abs().max() <= 0.51
    for i, (image, q) in enumerate(zip(images, quantiles)):
        one = MaskParams(*(p[i] for p in params))
        array = image.permute(1, 2, 0).numpy()
        assert torch.equal(mask.apply(image, q, one), batch[i])
        assert torch.equal(mask.apply(image, q[None], one), batch[i])
        out = mask.apply(array, q.numpy(), one)
        expected = batch[i].permute(1, 2, 0).numpy()
        assert isinstance(out, np.ndarray) and out.flags.c_contiguous
        assert np.array_equal(out, expected)
        mirrored = array[:, :, ::-1]
        assert mask.apply(mirrored, q.numpy(), one).shape == array.shape
        out = mask.apply(PIL.Image.fromarray(array), PIL.Image.fromarray(q.numpy()), one)
        assert out.mode == "RGB" and np.array_equal(np.array(out), expected)
        grey = mask.apply(PIL.Image.fromarray(array[:, :, 0]), q.numpy(), one)
        assert grey.mode == "L"
        assert fill == "noise" or np.array_equal(np.array(grey), expected[:, :, 0])
        assert mask.apply(array[:, :, 0], q.numpy(), one).shape == (24, 40)


def test_rows_and_columns_are_not_swapped():
    fused = torch.zeros(1, 20, 50)
    fused[0, 2, 10:40] = 1
    out = PrimaryRegionMask(p=1, alpha=(1, 1))(torch.ones(3, 20, 50), quantile_map(fused))
    assert not out[:, 2, 10:40].any() and out.sum() == 3 * (20 * 50 - 30)


def test_masks_what_eq_11_says(images, quantiles):
    mask = PrimaryRegionMask(p=1)
    params = mask.draw(4, gen(5))
    out = mask.apply(images, quantiles, params)
    for i, alpha in enumerate(params.alpha):
        where = region(quantiles[i], alpha)
        assert not out[i][:, where].any() and torch.equal(out[i][:, ~where], images[i][:, ~where])


def test_zero_is_black_before_normalization(images, quantiles):
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], 0.2
    out = PrimaryRegionMask(p=1, alpha=(1, 1))(images / 255, quantiles)
    where = region(quantiles, 1.0)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(((out - mean) / std)[where], (-mean / std).expand_as(out)[where])


def test_fills(images, quantiles):
    where = region(quantiles, 1.0)[:, None].expand(-1, 3, -1, -1)
    masked = {
        fill: PrimaryRegionMask(p=1, alpha=(1, 1), fill=fill)(images, quantiles, gen())
        for fill in FILLS
    }
    assert not masked["zero"][where].any()
    means = images.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(images)
    assert torch.equal(masked["mean"][where], means[where])
    noise = masked["noise"][where].float()
    assert noise.min() < 10 and noise.max() > 245 and abs(noise.mean() - 127.5) < 5
    everywhere = quantile_map(torch.ones(2, 24, 40))
    noise = PrimaryRegionMask(p=1, alpha=(1, 1), fill="noise")(images[:2], everywhere, gen())
    assert not torch.equal(noise[0], noise[1]), "each image has noise of its own"
    assert masked["blur"][where].float().std() < images[where].float().std() / 3
    for out in masked.values():
        assert torch.equal(out[~where], images[~where])


@pytest.mark.parametrize(
    "mask", [PrimaryRegionMask, RandomMask, LandmarkMask, MatchedRandomMask, MatchedLandmarkMask]
)
def test_p_zero_is_the_identity_and_p_one_always_masks(mask):
    image = torch.ones(50, 3, 96, 96)
    item = dict(
        quantiles=quantile_map(torch.rand(50, 96, 96) + 0.1),
        landmarks=landmarks().expand(50, 68, 2),
    )
    second = mask().second(item)
    assert mask(p=0)(image, second) is image
    out = mask(p=1)(image, second, gen())
    assert out is not image and (image == 1).all()
    assert ((out == 0).flatten(1).any(1)).all()
    half = mask(p=0.5).draw(4000, gen()).alpha > 0
    assert abs(half.float().mean() - 0.5) < 0.03


def test_alpha_is_uniform_above_its_lower_end():
    alpha = PrimaryRegionMask(p=1).draw(20000, gen()).alpha
    assert alpha.min() > 0 and alpha.max() <= 1
    deciles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(alpha.quantile(deciles), deciles, atol=0.02)
    alpha = PrimaryRegionMask(p=1, alpha=(0.5, 0.6)).draw(500, gen()).alpha
    assert alpha.min() > 0.5 and alpha.max() <= 0.6
    assert (PrimaryRegionMask(p=1, alpha=(1, 1)).draw(50, gen()).alpha == 1).all()
    assert PrimaryRegionMask().draw(generator=gen()).alpha.ndim == 0


def test_the_ends_of_the_draws(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
    assert PrimaryRegionMask(p=0).draw(1).alpha == 0, "p = 0 never masks"
    highest = PrimaryRegionMask(p=1, alpha=(0.2, 0.6)).draw(1).alpha
    assert highest == 0.6, "the upper end is drawn, the lower is not"


def test_same_seed_same_masks_and_replay(images, quantiles):
    mask = PrimaryRegionMask(p=0.7, fill="noise")
    assert torch.equal(mask(images, quantiles, gen(3)), mask(images, quantiles, gen(3)))
    assert not torch.equal(mask(images, quantiles, gen(3)), mask(images, quantiles, gen(4)))
    torch.manual_seed(9)
    first = mask(images, quantiles)
    torch.manual_seed(9)
    assert torch.equal(mask(images, quantiles), first), "without a generator: torch's global stream"
    params = mask.draw(4, gen())
    assert torch.equal(mask.apply(images, quantiles, params), mask.apply(images, quantiles, params))
    expected = PrimaryRegionMask().draw(4, gen()).alpha
    for fill in FILLS:
        assert torch.equal(PrimaryRegionMask(fill=fill).draw(4, gen()).alpha, expected)


def test_samples_of_a_batch_draw_on_their_own():
    alpha = PrimaryRegionMask(p=1).draw(100, gen()).alpha
    assert len(alpha.unique()) == 100


class Faces(Dataset):
    "Masks in the data set: by a stream of each face's own, or by torch's global stream."

    def __init__(self, keyed):
        self.keyed, self.mask = keyed, PrimaryRegionMask(p=1)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.mask.draw(generator=torch_rng(0, "mask", 0, i) if self.keyed else None).alpha


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_masks_do_not_depend_on_workers_and_workers_share_no_stream():
    def drawn(keyed, workers):
        torch.manual_seed(0)
        return torch.cat(list(DataLoader(Faces(keyed), batch_size=3, num_workers=workers)))

    assert torch.equal(drawn(True, 0), drawn(True, 2))
    for keyed in (True, False):
        assert len(drawn(keyed, 2).unique()) == 12


def test_constructors_and_apply_reject(images, quantiles):
    for p in (-0.1, 1.1, float("nan")):
        for mask in (PrimaryRegionMask, RandomMask, LandmarkMask):
            with pytest.raises(ValueError, match="p must lie in"):
                mask(p=p)
    for alpha in ((0.5, 0.2), (-0.1, 1), (0, 1.2), (0, 0), 0.5, "0 1", (0, 0.5, 1)):
        for mask in (PrimaryRegionMask, RandomMask):
            with pytest.raises(ValueError, match="alpha must be"):
                mask(alpha=alpha)
    with pytest.raises(ValueError, match="Did you mean 'zero'"):
        PrimaryRegionMask(fill="zeor")
    with pytest.raises(ValueError, match="Did you mean 'mouth'"):
        LandmarkMask(parts=["moth"])
    with pytest.raises(ValueError, match="at least one"):
        LandmarkMask(parts=[])
    with pytest.raises(ValueError, match="dilate"):
        LandmarkMask(dilate=-1)
    with pytest.raises(ValueError, match="aspect"):
        RandomMask(aspect=0.5)
    mask = PrimaryRegionMask(p=1)
    with pytest.raises(ValueError, match="resize_quantiles"):
        mask(images, quantiles[..., :-1])
    with pytest.raises(ValueError, match="quantile maps"):
        mask(images, quantiles[:2])
    with pytest.raises(TypeError, match="not fused attention"):
        mask(images, some_fused())
    with pytest.raises(TypeError, match="uint16"):
        mask(images, (quantiles.to(torch.int32) // 257).to(torch.uint8))
    with pytest.raises(TypeError, match="quantile map must be"):
        mask(images, None)
    with pytest.raises(TypeError, match="image must be"):
        mask.apply("face.png", quantiles, mask.draw())
    with pytest.raises(TypeError, match="image must be"):
        mask.apply(images[0, 0], quantiles[0], mask.draw())
    with pytest.raises(ValueError, match="mode 'RGBA'"):
        mask(PIL.Image.new("RGBA", (40, 24)), quantiles[0])
    with pytest.raises(ValueError, match="3 draws for 4 images"):
        mask.apply(images, quantiles, mask.draw(3))


class Photo(torch.Tensor):
    "Somebody's kind of tensor."


@pytest.mark.parametrize("kind", [tv_tensors.Image, tv_tensors.Video, Photo])
@pytest.mark.parametrize("fill", FILLS)
def test_a_tensor_of_another_kind_stays_of_that_kind(images, quantiles, kind, fill, device):
    mask = PrimaryRegionMask(fill=fill)
    params = mask.draw(4, gen())._replace(alpha=torch.tensor([0.3, 0, 0.5, 1], dtype=torch.float64))
    images, quantiles = images.to(device), tv_tensors.Mask(quantiles.to(device))
    expected = mask.apply(images, quantiles.as_subclass(torch.Tensor), params)
    masked = mask.apply(images.as_subclass(kind), quantiles, params)
    assert type(masked) is kind and torch.equal(masked.as_subclass(torch.Tensor), expected)
    one = MaskParams(*(p[0] for p in params))
    single = mask.apply(images[0].as_subclass(kind), quantiles[0], one)
    assert type(single) is kind and torch.equal(single.as_subclass(torch.Tensor), expected[0])
    assert type(RandomMask(p=1)(images.as_subclass(kind))) is kind


def square_face():
    "A face and its ranks, no two alike."
    ranks = quantile_map(torch.rand(1, 32, 32, generator=gen()) + 0.1)
    return torch.randint(1, 256, (3, 32, 32), generator=gen(), dtype=torch.uint8), ranks


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32])
def test_a_map_that_moves_with_its_face_masks_the_same_pixels(dtype, device):
    "Through torchvision's own mirroring, turning, cropping and resizing; masked before or after it is the same."
    image, ranks = square_face()
    mask = PrimaryRegionMask(p=1, alpha=(0.4, 0.4))
    moving = v2.Compose(
        [
            v2.RandomVerticalFlip(p=1),
            v2.RandomRotation((90, 90)),
            v2.CenterCrop(24),
            v2.Resize((48, 48), interpolation=InterpolationMode.NEAREST),
            *([v2.RandomHorizontalFlip(p=1)] if dtype == torch.int32 else []),
        ]
    )
    face = tv_tensors.Image(image.to(device))
    marks = tv_tensors.Mask(ranks.to(torch.int32).to(dtype).to(device))
    moved, moved_marks = moving(face, marks)
    assert moved_marks.dtype == dtype
    assert torch.equal(mask(moved, moved_marks), moving(mask(face, marks)))
    seen = v2.Compose([moving, mask])(face, marks)
    assert type(seen) is tv_tensors.Image and seen.shape == (3, 48, 48)


@pytest.mark.parametrize("angle, size", [(17, (32, 32)), (0, (13, 50)), (-140, (64, 20))])
def test_moved_ranks_are_ranks(angle, size):
    _, ranks = square_face()
    moving = v2.Compose([v2.RandomRotation((angle, angle)), v2.RandomResizedCrop(size)])
    moved = moving(tv_tensors.Mask(ranks.to(torch.int32)))
    assert set(moved.unique().tolist()) <= {0, *ranks.to(torch.int32).unique().tolist()}


def test_the_same_in_albumentations():
    albumentations = pytest.importorskip("albumentations")
    image, ranks = square_face()
    image, ranks = image.permute(1, 2, 0).numpy(), ranks[0].numpy()
    mask = PrimaryRegionMask(p=1, alpha=(0.4, 0.4))
    moving = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=1),
            albumentations.RandomRotate90(p=1),
            albumentations.CenterCrop(24, 24),
            albumentations.Resize(48, 48, interpolation=cv2.INTER_NEAREST),
        ],
        seed=1,
    )
    moved = moving(image=image, mask=ranks)
    moving.set_random_seed(1)
    expected = moving(image=mask(image, ranks), mask=ranks)["image"]
    assert np.array_equal(mask(moved["image"], moved["mask"]), expected)
    turned = albumentations.Rotate((20, 20), p=1)(image=image, mask=ranks)["mask"]
    assert set(np.unique(turned)) <= {0, *np.unique(ranks)}


def test_the_same_in_kornia():
    K = pytest.importorskip("kornia.augmentation")
    image, ranks = square_face()
    image, floats = image[None].float() / 255, ranks.to(torch.int32)[None].float()
    mask = PrimaryRegionMask(p=1, alpha=(0.4, 0.4))
    both = dict(data_keys=["input", "mask"])
    moving = K.AugmentationSequential(K.RandomHorizontalFlip(p=1), K.CenterCrop(24), **both)
    moved, marks = moving(image, floats)
    expected, _ = moving(mask(image, ranks), floats)
    assert torch.equal(mask(moved, marks.round().int()), expected)
    turning = K.AugmentationSequential(K.RandomRotation((20.0, 20.0), p=1), **both)
    _, turned = turning(image, floats)
    assert set(turned.round().int().unique().tolist()) <= {0, *floats.int().unique().tolist()}


def test_repr():
    assert repr(PrimaryRegionMask()) == "PrimaryRegionMask(p=0.5, alpha=(0.0, 1.0), fill='zero')"
    assert "aspect=2.0" in repr(RandomMask()) and "parts=" in repr(LandmarkMask())


# The other policies


def test_random_rectangles():
    mask = RandomMask(p=1, alpha=(0.1, 0.4))
    params = mask.draw(300, gen())
    out = mask.apply(torch.ones(300, 1, 60, 90), None, params)[:, 0] == 0
    assert ((out.float().mean((1, 2)) - params.alpha).abs() < 0.02).all()
    for where in out:
        rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert where.sum() == len(rows) * len(columns) == height * width, "a full rectangle"
        assert 0.45 < len(rows) / len(columns) < 2.2
    assert out.any(0).float().mean() > 0.99, "they reach everywhere"
    assert len({where.any(1).nonzero()[0].item() for where in out}) > 20
    assert (RandomMask(p=1, alpha=(1, 1))(torch.ones(8, 3, 20, 70)) == 0).all()
    tiny = RandomMask(p=1, alpha=(0, 1e-9))(torch.ones(8, 1, 20, 70))
    assert (tiny == 0).sum() == 8, "at least a pixel"


def test_left_alone_images_in_a_batch():
    masks = {RandomMask(p=0.5): None, LandmarkMask(p=0.5): landmarks().expand(40, 68, 2)}
    for mask, second in masks.items():
        params = mask.draw(40, gen())
        out = mask.apply(torch.ones(40, 3, 96, 96), second, params)
        assert torch.equal((out == 0).flatten(1).any(1), params.alpha > 0)


@pytest.mark.parametrize("part", FACE_PARTS)
def test_landmark_parts_cover_their_landmarks(part):
    points, mask = landmarks(), LandmarkMask(p=1, parts=[part])
    where = mask(torch.ones(3, 96, 96), points, gen())[0] == 0
    x, y = points.round().long().T
    for hull in FACE_PARTS[part]:
        for i in hull:
            assert where[y[i].clamp(max=95), x[i].clamp(max=95)], i
    assert 0.005 < where.float().mean() < 0.35
    thin = LandmarkMask(p=1, parts=[part], dilate=0)(torch.ones(3, 96, 96), points, gen())[0] == 0
    assert (where | ~thin).all() and where.sum() > thin.sum()
    wide = landmarks(96, 192)
    where = mask(torch.ones(3, 96, 192), wide, gen())[0] == 0
    x, y = wide.round().long().T
    points = [i for hull in FACE_PARTS[part] for i in hull]
    assert where[y[points].clamp(max=95), x[points].clamp(max=191)].all(), "x is the column"


def test_landmark_mask_draws_every_part_and_rejects():
    mask = LandmarkMask(p=1)
    out = mask(torch.ones(200, 1, 96, 96), landmarks().expand(200, 68, 2), gen())
    assert len(out.flatten(1).unique(dim=0)) == len(FACE_PARTS)
    one = mask(np.ones((96, 96, 3), np.uint8), landmarks().numpy(), gen())
    assert one.shape == (96, 96, 3) and not one.all()
    with pytest.raises(ValueError, match="68, 2"):
        mask(torch.ones(3, 96, 96), landmarks()[:5])
    with pytest.raises(ValueError, match="68, 2"):
        mask(torch.ones(3, 96, 96), landmarks().T)
    with pytest.raises(ValueError, match="NaN"):
        mask(torch.ones(3, 96, 96), landmarks() * torch.nan)


def matched_areas(mask, second, quantiles, params):  # of the mask, and of the primary regions
    image = torch.ones(len(quantiles), 1, *quantiles.shape[-2:])
    where = mask.apply(image, second, params)[:, 0] == 0
    return where.sum((1, 2)), region(quantiles, params.alpha).sum((1, 2))


def test_matched_masks_are_as_large_as_the_primary_region():
    quantiles = quantile_map((torch.rand(60, 96, 96, generator=gen()) - 0.6).clamp(min=0))
    params = PrimaryRegionMask(p=0.7).draw(60, gen())
    points = landmarks().expand(60, 68, 2)
    for part in FACE_PARTS:
        mask = MatchedLandmarkMask(parts=[part])
        areas, wanted = matched_areas(mask, (quantiles, points), quantiles, params)
        assert torch.equal(areas, wanted), part
    areas, wanted = matched_areas(MatchedRandomMask(), quantiles, quantiles, params)
    off = (areas - wanted).abs() / wanted.clamp(min=1)
    assert off.max() < 0.25 and off.median() < 0.02, "whole pixels of both sides"
    assert ((areas > 0) == (params.alpha > 0)).all()
    assert (
        MatchedLandmarkMask(alpha=(1, 1)).alpha == (1, 1) and MatchedRandomMask().second({}) is None
    )
    with pytest.raises(ValueError, match="alpha must be"):
        MatchedLandmarkMask(alpha=(0, 1.2))


def test_a_matched_part_grows_from_its_place_and_stays_in_the_picture():
    image, quantiles = torch.ones(1, 96, 96), quantile_map(torch.ones(1, 96, 96))
    mask, wheres = MatchedLandmarkMask(parts=["mouth"]), []
    for alpha in (0.01, 0.05, 0.3, 1.0):
        params = MaskParams(torch.tensor(alpha), torch.zeros(3), torch.tensor(0))
        wheres.append(mask.apply(image, (quantiles[0], landmarks()), params)[0] == 0)
    for smaller, larger in zip(wheres, wheres[1:]):
        assert (larger | ~smaller).all() and larger.sum() > smaller.sum()
    x, y = landmarks()[48:60].mean(0).round().long()
    assert wheres[0][y, x] and wheres[-1].all()
    params = MaskParams(torch.tensor(0.1), torch.zeros(3), torch.tensor(0))
    outside = (
        mask.apply(image, (quantiles[0], landmarks() + torch.tensor([500, 0])), params)[0] == 0
    )
    assert outside.sum() == 921 and outside[:, -1].any(), "at the edge that is nearest"
    nothing = mask.apply(image, (quantile_map(torch.zeros(1, 96, 96))[0], landmarks()), params)
    assert (nothing == 1).all(), "no primary region, no mask"


# Stores


@pytest.fixture
def stores(tmp_path):
    paths = [tmp_path / f"{name}.npy" for name in "abc"]
    for i, (path, grid) in enumerate(zip(paths, ((8, 8), (10, 10), (4, 6)))):
        np.save(path, torch.rand(7, *grid, generator=gen(i)).half().numpy())
    return paths


FACE_PATHS = [f"train/real/s{i}/{i}.jpg" for i in range(7)]


@pytest.mark.parametrize(
    "fusion",
    [
        dict(),
        dict(method="mean", tau=0.5),
        dict(method="released", drop=0.1),
        dict(method="union", share=0.2),
        dict(lam=0.2, floor=0.3),
    ],
)
def test_store_equals_doing_it_by_hand(stores, tmp_path, fusion):
    shares = quantile_store(stores, FACE_PATHS, tmp_path / "q", (48, 40), batch_size=3, **fusion)
    maps = torch.stack([upsample_maps(np.load(store), (48, 40)) for store in stores], 1)
    fused = fuse(maps, **fusion)
    expected = quantile_map(fused)
    for face, q in zip(FACE_PATHS, expected):
        assert np.array_equal(
            read_quantiles((tmp_path / "q" / face).with_suffix(".png")), q.numpy()
        )
    assert shares.shape == (7,) and np.allclose(shares, (fused > 0).float().mean((1, 2)))
    assert len(list((tmp_path / "q").rglob("*.png"))) == 7


def test_store_is_whole_or_absent(stores, tmp_path):
    bad = np.load(stores[1])
    bad[6] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="image 0, detector 1: the map holds NaN") as e:
        quantile_store(
            [stores[0], tmp_path / "bad.npy"], FACE_PATHS, tmp_path / "q", (16, 16), batch_size=3
        )
    assert FACE_PATHS[6] in e.value.__notes__[0] and "bad.npy" in e.value.__notes__[0]
    assert sorted(tmp_path.iterdir()) == before


def test_store_rejects(stores, tmp_path):
    with pytest.raises(ValueError, match=r"a.npy holds maps \(7, 8, 8\) for 6 faces"):
        quantile_store(stores, FACE_PATHS[:6], tmp_path / "q", (16, 16))
    with pytest.raises(ValueError, match="suffix only"):
        quantile_store(stores, [*FACE_PATHS[:6], "train/real/s0/0.png"], tmp_path / "q", (16, 16))
    for face in ("/etc/face.jpg", "../face.jpg"):
        with pytest.raises(ValueError, match="relative"):
            quantile_store(stores, [*FACE_PATHS[:6], face], tmp_path / "q", (16, 16))
    with pytest.raises(FileNotFoundError):
        quantile_store([tmp_path / "none.npy"], FACE_PATHS, tmp_path / "q", (16, 16))
    with pytest.raises(ValueError, match="unknown fusion"):
        quantile_store(stores, FACE_PATHS, tmp_path / "q", (16, 16), method="max")
    assert not (tmp_path / "q").exists()


def test_a_store_may_give_a_face_the_map_of_another(stores, tmp_path):
    rows = [0, 0, 2, 6, 4, 5, 6]
    quantile_store(stores, FACE_PATHS, tmp_path / "own", (48, 40))
    quantile_store(stores, FACE_PATHS, tmp_path / "lent", (48, 40), batch_size=3, rows=rows)
    names = [Path(face).with_suffix(".png") for face in FACE_PATHS]
    for name, row in zip(names, rows):
        lent = (tmp_path / "lent" / name).read_bytes()
        assert lent == (tmp_path / "own" / names[row]).read_bytes()


def test_a_map_of_a_moved_face_moves_with_it(stores, tmp_path):
    shift = np.array([[1.0, 0, 5], [0, 1, 3]])
    quantile_store(stores, FACE_PATHS, tmp_path / "q", (48, 40), rows=[0] * 7, warps={4: shift})
    first, moved = (
        read_quantiles((tmp_path / "q" / FACE_PATHS[i]).with_suffix(".png")) for i in (0, 4)
    )
    assert not moved[:3].any() and not moved[:, :5].any()
    a, b = (m.astype(int) for m in (first[:-3, :-5], moved[3:, 5:]))
    assert ((a > 0) == (b > 0)).all()
    pairs = np.stack([a.ravel(), b.ravel()], 1)[(a > 0).ravel()]
    order = pairs[pairs[:, 0].argsort(kind="stable")]
    assert (np.diff(order[:, 1])[np.diff(order[:, 0]) > 0] >= 0).all(), "ranked alike"


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_an_empty_batch_is_masked_too(p):
    mask, image = PrimaryRegionMask(p=p), torch.rand(0, 3, 8, 8)
    assert mask.draw(0).alpha.shape == (0,)
    assert mask(image, torch.ones(0, 1, 8, 8, dtype=torch.uint16)).shape == image.shape


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
def test_a_masked_face_is_black_in_its_region_and_nowhere_else(images, quantiles, alpha):
    face, ranks = images[0].permute(1, 2, 0).numpy(), quantiles[0]
    black = region(ranks, alpha).numpy()
    made = masked_face(face, ranks.numpy(), alpha)
    assert made.dtype == np.uint8 and (made == np.where(black[..., None], 0, face)).all()


def test_a_masked_face_has_a_map_of_its_size(images, quantiles):
    face = images[0].permute(1, 2, 0).numpy()
    with pytest.raises(ValueError):
        masked_face(face, quantiles[0].numpy()[1:], 0.5)

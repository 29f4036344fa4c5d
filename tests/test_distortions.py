"DF-1.0's distortions against a naive second statement of their definition, meta files, random sets, whole videos."

import subprocess
import sys
from collections import Counter

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from scipy.stats import chisquare

from prle.data import distortions as D
from prle.core import rng
from prle.data.faces import orl_folder
from prle.data.pictures import read_image

LEVELS = range(1, 6)
SHAPES = [(256, 256), (257, 301), (91, 120), (530, 515)]


def colourful(height, width):
    "A picture with every kind of content: a face, noise, and the corners of the colour cube."
    frame = rng("colourful", height, width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    face = cv2.resize(read_image(orl_folder() / "s5" / "1.pgm"), (width, height // 2))
    frame[: height // 2] = (255 * (face / 255) ** (0.7, 1, 1.3)).astype(np.uint8)
    frame[-8:, :8] = np.stack(np.meshgrid(*[[0, 255]] * 3), -1).reshape(8, 1, 3)
    return frame


# A second statement of the definition, on explicit BGR, channel by channel


def to_studio(bgr):
    "Y, Cr, Cb in studio range, scaled by 1/255."
    y, cr, cb = cv2.split(cv2.cvtColor(bgr.astype(np.float32), cv2.COLOR_BGR2YCrCb))
    return [(y * 219 + 16) / 255, (cr * 224 + 16) / 255, (cb * 224 + 16) / 255]


def from_studio(y, cr, cb):
    channels = [(y * 255 - 16) / 219, (cr * 255 - 16) / 224, (cb * 255 - 16) / 224]
    return cv2.cvtColor(cv2.merge(channels), cv2.COLOR_YCrCb2BGR)


def naive_cs(bgr, p, generator):
    y, cr, cb = to_studio(bgr)
    back = from_studio(y, 0.5 + (cr - 0.5) * p, 0.5 + (cb - 0.5) * p)
    return np.trunc(back).astype(np.uint8)


def naive_cc(bgr, p, generator):
    table = [int(np.float32(value) * np.float32(p)) for value in range(256)]
    return np.array(table, np.uint8)[bgr]


def naive_bw(bgr, p, generator):
    height, width, out = *bgr.shape[:2], bgr.copy()
    if min(height, width) < 256:
        return out
    for _ in range(int(np.floor(min(height, width) / 256)) * p):
        left = generator.integers(0, width - 1 - 8, endpoint=True)
        top = generator.integers(0, height - 1 - 8, endpoint=True)
        for y in range(top, top + 8):
            for x in range(left, left + 8):
                out[y, x] = (128, 128, 128)
    return out


def naive_gnc(bgr, p, generator):
    noise = generator.normal(size=bgr.shape)
    channels = [
        ((value / 255 + p**0.5 * noise[..., n]) * 255).astype(np.float32)
        for n, value in enumerate(to_studio(bgr))
    ]
    return np.trunc(np.clip(from_studio(*channels), 0, 255)).astype(np.uint8)


def naive_gb(bgr, p, generator):
    return cv2.merge(
        [
            cv2.GaussianBlur(channel, ksize=(p, p), sigmaX=p / 6, sigmaY=p / 6)
            for channel in cv2.split(bgr)
        ]
    )


def naive_jpeg(bgr, p, generator):
    height, width = bgr.shape[:2]
    return cv2.resize(cv2.resize(bgr, (width // p, height // p)), (width, height))


NAIVE = dict(CS=naive_cs, CC=naive_cc, BW=naive_bw, GNC=naive_gnc, GB=naive_gb, JPEG=naive_jpeg)
TABLE = """
CS   0.4   0.3   0.2   0.1   0.0
CC   0.85  0.725 0.6   0.475 0.35
BW   16    32    48    64    80
GNC  0.001 0.002 0.005 0.01  0.05
GB   7     9     13    17    21
JPEG 2     3     4     5     6
VC   30    32    35    38    40
"""
PARAMETERS = {
    line.split()[0]: [float(p) if "." in p else int(p) for p in line.split()[1:]]
    for line in TABLE.split("\n")
    if line
}


def naive(rgb, code, level, generator):
    bgr = rgb[..., ::-1].copy()
    return NAIVE[code](bgr, PARAMETERS[code][level - 1], generator)[..., ::-1]


# Frames


def test_the_table_of_levels():
    assert {code: list(values) for code, values in D.LEVELS.items()} == PARAMETERS
    assert list(D.NAMES) == list(D.LEVELS) == ["CS", "CC", "BW", "GNC", "GB", "JPEG", "VC"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("code", NAIVE)
def test_bit_for_bit(code, shape):
    frame = colourful(*shape)
    before = frame.copy()
    for level in LEVELS:
        out = D.distort_frame(frame, f"{code}:{level}", rng(level))
        assert out.dtype == np.uint8 and np.array_equal(out, naive(frame, code, level, rng(level)))
        assert np.array_equal(frame, before)
        assert np.array_equal(out, frame) == (code == "BW" and min(shape) < 256)


def test_stronger_levels_change_more():
    frame = cv2.GaussianBlur(colourful(300, 300), (5, 5), 0).astype(int)
    for code in NAIVE:
        change = [
            np.abs(
                D.distort_frame(frame.astype(np.uint8), f"{code}:{level}", rng(0)) - frame
            ).mean()
            for level in LEVELS
        ]
        assert change == sorted(change) and change[0] < change[-1], code


def test_luma_and_chroma_are_opencvs_with_a_grey_point_of_one_half():
    frame = colourful(256, 256).astype(np.float64)
    red, green, blue = np.moveaxis(frame, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    by_hand = np.stack([luma, (red - luma) * 0.713 + 0.5, (blue - luma) * 0.564 + 0.5], -1)
    assert (
        np.abs(D._to_studio(frame.astype(np.uint8)) - (by_hand * (219, 224, 224) + 16) / 255).max()
        < 1e-3
    )


def test_studio_range_there_and_back():
    frame = colourful(120, 130)
    assert np.abs(D._from_studio(D._to_studio(frame)) - frame).max() < 0.1


def test_the_whole_colour_cube_keeps_its_range_under_cs():
    "Nothing below 0 or from 256 on, which would wrap round in 8 bits."
    steps = np.r_[0:256:5].astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, len(steps), 3)
    for level in LEVELS:
        ycc = D._to_studio(cube)
        ycc[..., 1:] = 0.5 + (ycc[..., 1:] - 0.5) * D.parameter("CS", level)
        values = D._from_studio(ycc)
        assert values.min() > -1 and values.max() < 256


def test_noise_has_the_variance_of_its_level():
    "sqrt(p) in units of 1/255 of studio range: 255 * 255/219 grey levels of luma for p = 1."
    grey = np.full((256, 256, 3), 128, np.uint8)
    for level, p in zip((1, 2, 3), PARAMETERS["GNC"]):
        red, green, blue = np.moveaxis(
            D.distort_frame(grey, f"GNC:{level}", rng(level)).astype(float), -1, 0
        )
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        assert abs(luma.std() / (p**0.5 * 255 * 255 / 219) - 1) < 0.03


def test_blur_is_the_stated_kernel():
    frame = colourful(100, 121)
    for level, p in zip(LEVELS, PARAMETERS["GB"]):
        kernel = np.exp(-0.5 * (np.arange(p) - p // 2) ** 2 / (p / 6) ** 2)
        exact = cv2.sepFilter2D(
            frame.astype(np.float64), -1, kernel / kernel.sum(), kernel / kernel.sum()
        )
        difference = np.abs(D.distort_frame(frame, f"GB:{level}", rng(0)) - exact)
        assert (
            difference.max() < 3 and difference.mean() < 0.35
        )  # OpenCV computes in 8.8 fixed point


class Extreme:
    "A generator that always draws the lowest or the highest possible place."

    def __init__(self, highest):
        self.highest = highest

    def integers(self, low, high):
        return np.asarray(high) - 1 if self.highest else np.full(len(high), low)


def test_places_of_blocks_go_from_0_to_size_minus_9():
    black = np.zeros((256, 300, 3), np.uint8)
    for highest, (top, left) in ((False, (0, 0)), (True, (247, 291))):
        ys, xs = np.nonzero(D.blocks(black, 1, Extreme(highest)).all(2))
        assert (ys.min(), xs.min(), ys.max(), xs.max()) == (top, left, top + 7, left + 7)


@pytest.mark.parametrize(
    "shape, count",
    [((255, 1000), 0), ((256, 256), 1), ((511, 512), 1), ((512, 512), 2), ((1080, 1920), 4)],
)
def test_number_of_blocks(shape, count, monkeypatch):
    drawn = []
    generator = rng(0)

    class Counting:
        def integers(self, *bounds):
            drawn.append(bounds)
            return generator.integers(*bounds)

    out = D.blocks(np.zeros((*shape, 3), np.uint8), 16, Counting())
    assert len(drawn) == 16 * count and out.any() == bool(count)


def test_a_meta_string_is_applied_in_order():
    frame = colourful(260, 256)
    step = rng("mix")
    expected = naive(naive(naive(frame, "GNC", 2, step), "BW", 1, step), "JPEG", 3, step)
    assert np.array_equal(D.distort_frame(frame, "GNC:2 BW:1 JPEG:3", rng("mix")), expected)
    assert not np.array_equal(
        D.distort_frame(frame, "GB:3 BW:1", rng(0)), D.distort_frame(frame, "BW:1 GB:3", rng(0))
    )
    assert np.array_equal(D.distort_frame(frame, "", rng(0)), frame)


def test_frames_have_streams_of_their_own():
    frames = {index: colourful(256, 256) for index in (5, 0, 9)}
    together = dict(D.distort_frames(frames.items(), "BW:2 GNC:4", 7, "000_M101"))
    assert list(together) == [5, 0, 9]
    for index, frame in frames.items():
        assert np.array_equal(
            together[index], D.distort_frame(frame, "BW:2 GNC:4", rng(7, "000_M101", index))
        )
    assert not np.array_equal(together[0], together[5])
    other = dict(D.distort_frames(frames.items(), "BW:2 GNC:4", 7, "001_M101"))
    assert not np.array_equal(together[0], other[0])


def test_views_and_read_only_frames():
    frame = colourful(256, 280)
    view = np.ascontiguousarray(frame[:, ::-1])[:, ::-1]
    view.setflags(write=False)
    for code in NAIVE:
        assert np.array_equal(
            D.distort_frame(view, f"{code}:3", rng(0)), D.distort_frame(frame, f"{code}:3", rng(0))
        )


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3)),
        np.zeros((7, 64, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "tiny"],
)
def test_other_frames_are_refused(frame):
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8"):
        D.distort_frame(frame, "CC:1", rng(0))


def test_vc_is_no_business_of_a_frame():
    assert D.frame_level("CS:1 JPEG:5") and D.frame_level("") and not D.frame_level("CS:1 VC:5")
    with pytest.raises(ValueError, match="'CS:1 VC:5'.*use distort_video"):
        D.distort_frame(colourful(64, 64), "CS:1 VC:5", rng(0))


# Meta strings and files


def test_unknown_names_and_levels():
    with pytest.raises(
        ValueError, match="unknown distortion 'JPG'.*'JPEG'.*Known: CS, CC, BW, GNC, GB, JPEG, VC"
    ):
        D.parameter("JPG", 1)
    for level in (0, 6, -1, "1.0"):
        with pytest.raises(
            ValueError, match=f"unknown level of GB '{level}'.*Known: 1, 2, 3, 4, 5"
        ):
            D.parameter("GB", level)
    with pytest.raises(ValueError, match="unknown level of CS"):
        D.format_meta([("CS", 7)])


@pytest.mark.parametrize("meta", ["", "CS:1", "VC:5 GNC:1", "JPEG:2 JPEG:2 BW:3 GB:4"])
def test_meta_round_trip(meta):
    assert D.format_meta(D.parse_meta(meta)) == meta
    assert D.parse_meta(f"  {meta.replace(' ', '   ')}\n") == D.parse_meta(meta)


def test_meta_file_round_trip(tmp_path):
    metas = {
        "end_to_end_mix_2_distortions/000_M101.mp4": "CS:3 JPEG:2",
        "001_W004.mp4": "VC:5",
        "größe/002_W005": "BW:1 GNC:5",
    }
    path = D.write_meta(tmp_path / "new" / "meta.txt", metas)
    assert (
        path.read_text(encoding="utf-8").splitlines()[0]
        == "end_to_end_mix_2_distortions/000_M101.mp4 CS:3 JPEG:2"
    )
    assert D.read_meta(path) == {
        "000_M101": "CS:3 JPEG:2",
        "001_W004": "VC:5",
        "002_W005": "BW:1 GNC:5",
    }
    path.write_bytes(b"\xef\xbb\xbfa/000_M101.mp4\tCS:3  JPEG:2 \r\n\r\n b/001_W004.mp4 VC:5")
    assert D.read_meta(path) == {"000_M101": "CS:3 JPEG:2", "001_W004": "VC:5"}


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"v/001.mp4", "v/001.mp4 is followed by no distortion"),
        (b"v/001.mp4 CS3", "'CS3' is not TYPE:LEVEL"),
        (b"v/001.mp4 CS:3 XX:1", "unknown distortion 'XX'"),
        (b"v/001.mp4 CS:", "unknown level of CS ''"),
        (b"v/001.mp4 cs:3", "unknown distortion 'cs'"),
        (b"my videos/001.mp4 CS:3", "'videos/001.mp4' is not TYPE:LEVEL"),
        (b"elsewhere/000.mp4 GB:1", "000 is listed for the second time"),
        (b"\xff\xfe\x00 \x80:1", "unknown distortion"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
    path = tmp_path / "meta.txt"
    path.write_bytes(b"v/000.mp4 CS:3\n\n" + line + b"\nv/009.mp4 CS:3\n")
    with pytest.raises(ValueError) as e:
        D.read_meta(path)
    assert str(e.value).startswith(f"{path}, line 3: ") and reason in str(e.value)


@pytest.mark.parametrize(
    "video, meta, reason",
    [
        ("a b.mp4", "CS:1", "holds white space"),
        ("", "CS:1", "is empty"),
        ("a.mp4", "", "no distortion"),
        ("a.mp4", "CS:9", "level of CS"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, video, meta, reason):
    with pytest.raises(ValueError, match=reason):
        D.write_meta(tmp_path / "meta.txt", {"fine.mp4": "CS:1", video: meta})
    assert not any(tmp_path.iterdir())


# Random sets


def uniform(counts, expected):
    "Whether `counts` covers exactly `expected` and looks uniform."
    return set(counts) == set(expected) and chisquare(list(counts.values())).pvalue > 1e-3


def test_single_distortions_are_uniform():
    generator = rng("single")
    steps = [D.parse_meta(D.draw("level_4", generator)) for _ in range(2100)]
    assert all(len(step) == 1 and step[0][1] == 4 for step in steps)
    assert uniform(Counter(step[0][0] for step in steps), D.LEVELS)
    steps = [D.parse_meta(D.draw("random_level", generator)) for _ in range(3500)]
    assert all(len(step) == 1 for step in steps)
    assert uniform(
        Counter(step[0] for step in steps), [(code, level) for code in D.LEVELS for level in LEVELS]
    )


@pytest.mark.parametrize("count", [2, 3, 4])
def test_mixes_have_distinct_types_in_random_order(count):
    generator = rng("mix", count)
    mixes = [D.parse_meta(D.draw(f"mix_{count}_distortions", generator)) for _ in range(2100)]
    assert all(len(mix) == len({code for code, _ in mix}) == count for mix in mixes)
    for place in range(count):
        assert uniform(Counter(mix[place][0] for mix in mixes), D.LEVELS)
    assert uniform(
        Counter((mix[0][0], mix[1][0]) for mix in mixes),
        [(a, b) for a in D.LEVELS for b in D.LEVELS if a != b],
    )
    assert uniform(Counter(level for mix in mixes for _, level in mix), LEVELS)


def test_draw_is_replayable_and_checks_its_kind():
    assert [D.draw(kind, rng(3, "video")) for kind in D.KINDS] == [
        D.draw(kind, rng(3, "video")) for kind in D.KINDS
    ]
    with pytest.raises(
        ValueError, match="unknown kind of distorted set 'mix_2'.*mix_2_distortions"
    ):
        D.draw("mix_2", rng(0))


# Whole videos


def decode(path):
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while True:
        decoded, frame = capture.read()
        if not decoded:
            return frames
        frames.append(frame[..., ::-1].copy())


def geometry(path):
    "Width, height, number of frames, frames a second."
    frames = decode(path)
    return (
        *frames[0].shape[1::-1],
        len(frames),
        round(cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FPS), 4),
    )


def ffmpeg(*arguments, **options):
    return subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", *map(str, arguments)],
        check=True,
        capture_output=True,
        **options,
    )


def moving(width, height, count):
    "A tinted face that moves to the left, BGR."
    face = cv2.resize(read_image(orl_folder() / "s5" / "1.pgm"), (width + 2 * count, height))
    tinted = (255 * (face / 255) ** (1.3, 1, 0.7)).astype(np.uint8)
    return [np.ascontiguousarray(tinted[:, 2 * n : 2 * n + width]) for n in range(count)]


def write(path, width=264, height=260, count=20, fps=30000 / 1001):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for frame in moving(width, height, count):
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "000_M101.mp4")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    "An odd width and an odd height, which cv2.VideoWriter would cut to even ones."
    path = tmp_path_factory.mktemp("clips") / "odd.mp4"
    raw = b"".join(frame.tobytes() for frame in moving(131, 127, 12))
    ffmpeg(
        "-f",
        "rawvideo",
        "-pix_fmt",
        "bgr24",
        "-s",
        "131x127",
        "-r",
        25,
        "-i",
        "-",
        "-c:v",
        "mpeg4",
        "-q:v",
        2,
        path,
        input=raw,
    )
    assert geometry(path) == (131, 127, 12, 25)
    return path


def test_vc_keeps_size_rate_and_count_and_gets_smaller(clip, tmp_path):
    sizes = []
    for level in (1, 3, 5):
        out = D.distort_video(clip, tmp_path / f"{level}.mp4", f"VC:{level}", seed=0)
        assert geometry(out) == geometry(clip) and geometry(clip)[2:] == (20, 29.97)
        sizes.append(out.stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    "meta, via_xvid", [("VC:2", False), ("CS:2", False), ("GB:1", True), ("CC:1 VC:1", True)]
)
def test_odd_sizes(odd, tmp_path, meta, via_xvid):
    assert geometry(D.distort_video(odd, tmp_path / "out.mp4", meta, 0, via_xvid)) == geometry(odd)


def test_vc_is_libx264_at_the_stated_rate_factor(clip, tmp_path):
    for level, crf in zip((1, 5), (30, 40)):
        out = D.distort_video(clip, tmp_path / "out.mp4", f"VC:{level}", seed=0)
        ffmpeg("-i", clip, "-c:v", "libx264", "-crf", crf, "-threads", 1, tmp_path / "plain.mp4")
        assert np.array_equal(decode(out), decode(tmp_path / "plain.mp4"))


def test_frame_level_distortions_reach_the_file(clip, tmp_path):
    "The frames as `distort_frames` gives them, encoded by a command of our own."
    frames = [
        frame[..., ::-1]
        for _, frame in D.distort_frames(enumerate(decode(clip)), "GNC:3 BW:2", 5, "000_M101")
    ]
    width, height, *_ = geometry(clip)
    ffmpeg(
        "-f",
        "rawvideo",
        "-pix_fmt",
        "bgr24",
        "-s",
        f"{width}x{height}",
        "-r",
        "30000/1001",
        "-i",
        "-",
        "-c:v",
        "libx264",
        "-crf",
        23,
        "-pix_fmt",
        "yuv420p",
        "-threads",
        1,
        tmp_path / "plain.mp4",
        input=np.stack(frames).tobytes(),
    )
    out = D.distort_video(clip, tmp_path / "out.mp4", "GNC:3 BW:2", seed=5)
    assert geometry(out) == geometry(clip) and np.array_equal(
        decode(out), decode(tmp_path / "plain.mp4")
    )


def test_replayable(clip, tmp_path):
    one, two, other = [
        D.distort_video(clip, tmp_path / f"{n}.mp4", "GNC:1 VC:2 BW:4", seed)
        for n, seed in enumerate((1, 1, 2))
    ]
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert np.array_equal(decode(one), decode(two)) and not np.array_equal(
        decode(one), decode(other)
    )


def test_via_xvid_is_what_opencvs_writer_and_ffmpeg_give(clip, tmp_path):
    writer = cv2.VideoWriter(
        str(tmp_path / "step.avi"),
        cv2.VideoWriter_fourcc(*"XVID"),
        30000 / 1001,
        geometry(clip)[:2],
    )
    for frame in decode(clip):
        writer.write(naive(frame, "CC", 1, None)[..., ::-1].copy())
    writer.release()
    ffmpeg("-i", tmp_path / "step.avi", "-threads", 1, tmp_path / "official.mp4")
    out = D.distort_video(clip, tmp_path / "out.mp4", "CC:1", seed=0, via_xvid=True)
    direct = D.distort_video(clip, tmp_path / "direct.mp4", "CC:1", seed=0)
    official, ours, without = (
        np.array(decode(path), int) for path in (tmp_path / "official.mp4", out, direct)
    )
    assert (
        np.abs(ours - official).mean() < 0.05 and np.abs(ours - without).mean() > 0.5
    )  # 0 and 1.1 where both bring the same ffmpeg
    assert geometry(out) == geometry(clip)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "direct.mp4",
        "official.mp4",
        "out.mp4",
        "step.avi",
    ]


def test_a_mix_is_its_steps_one_after_the_other(clip, tmp_path):
    mixed = D.distort_video(clip, tmp_path / "mixed.mp4", "VC:5 GB:2", seed=0)
    step = D.distort_video(clip, tmp_path / "step.mp4", "VC:5", seed=0)
    both = D.distort_video(step, tmp_path / "both.mp4", "GB:2", seed=0)
    turned = D.distort_video(clip, tmp_path / "turned.mp4", "GB:2 VC:5", seed=0)
    assert np.array_equal(decode(mixed), decode(both)) and not np.array_equal(
        decode(mixed), decode(turned)
    )


def test_passes(monkeypatch, clip, tmp_path):
    assert D._passes("CS:1 GB:1 VC:1 VC:2 BW:1 CC:1", False) == [
        "CS:1 GB:1",
        "VC:1",
        "VC:2",
        "BW:1 CC:1",
    ]
    assert D._passes("CS:1 GB:1 VC:1", True) == ["CS:1", "GB:1", "VC:1"]
    streams = []

    def spy(frames, meta, *key):
        streams.append((meta, key))
        yield from frames

    monkeypatch.setattr(D, "distort_frames", spy)
    D.distort_video(clip, tmp_path / "out.mp4", "GNC:1 GNC:1 VC:1 GNC:1", seed=4)
    assert [meta for meta, _ in streams] == ["GNC:1 GNC:1", "GNC:1"] and streams[0][1] == (
        4,
        "000_M101",
    ) != streams[1][1]


def test_rotated_videos_keep_what_is_seen(clip, tmp_path):
    ffmpeg("-display_rotation", 90, "-i", clip, "-c", "copy", tmp_path / "portrait.mp4")
    assert geometry(tmp_path / "portrait.mp4")[:2] == (260, 264)
    before = decode(tmp_path / "portrait.mp4")
    for meta in ("VC:1", "CC:1"):
        out = D.distort_video(tmp_path / "portrait.mp4", tmp_path / "out.mp4", meta, seed=0)
        assert geometry(out) == geometry(tmp_path / "portrait.mp4")
        factor = 0.85 if meta == "CC:1" else 1
        assert np.abs(np.array(decode(out)) - factor * np.array(before, float)).mean() < 4


def test_no_frame_is_dropped_or_doubled_at_a_variable_rate_and_sound_goes(clip, tmp_path):
    source = tmp_path / "variable.mp4"
    ffmpeg(
        "-i",
        clip,
        "-f",
        "lavfi",
        "-i",
        "sine=duration=1",
        "-vf",
        "setpts=N*N/30/TB",
        "-fps_mode",
        "passthrough",
        "-c:v",
        "libx264",
        source,
    )
    for meta in ("VC:1", "GB:1"):
        out = D.distort_video(source, tmp_path / "out.mp4", meta, seed=0)
        assert len(decode(out)) == len(decode(source)) == 20
        assert (
            b"Audio"
            not in subprocess.run(
                [imageio_ffmpeg.get_ffmpeg_exe(), "-i", out], capture_output=True
            ).stderr
        )


def test_unicode_spaces_and_a_new_folder(clip, tmp_path):
    source = tmp_path / "ein Vidéo 視.mp4"
    source.write_bytes(clip.read_bytes())
    for meta in ("VC:1", "CC:1"):
        out = D.distort_video(
            source, tmp_path / "neuer Ordner" / f"größer {meta[:2]}.mp4", meta, seed=0
        )
        assert geometry(out) == geometry(clip)


# Failures


@pytest.mark.parametrize("meta", ["VC:1", "CS:1"])
@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty file"),
        (b"this is text", "not a video that can be decoded"),
        (None, "no such file"),
        ("folder", "no such file"),
    ],
)
def test_unreadable_videos_are_named(tmp_path, meta, content, reason):
    source = tmp_path / "bad video.mp4"
    if content == "folder":
        source.mkdir()
    elif content is not None:
        source.write_bytes(content)
    with pytest.raises(D.VideoError, match=f"bad video.mp4: .*{reason}"):
        D.distort_video(source, tmp_path / "out.mp4", meta, seed=0)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("meta", ["VC:1", "CS:1"])
def test_a_failing_ffmpeg_is_reported_with_the_video(clip, tmp_path, meta, monkeypatch):
    monkeypatch.setattr(D, "_h264", lambda *_: ["-c:v", "no-such-codec"])
    with pytest.raises(
        D.VideoError, match=f"000_M101.mp4: ffmpeg fails at {meta} (?s:.*)no-such-codec"
    ):
        D.distort_video(clip, tmp_path / "out.mp4", meta, seed=0)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_video_leaves_nothing(clip, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_bytes(b"an earlier one")
    calls, real = [], D.distort_frame

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(D, "distort_frame", failing)
    with pytest.raises(KeyboardInterrupt):
        D.distort_video(clip, tmp_path / "out.mp4", "CS:1", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"] and (
        tmp_path / "out.mp4"
    ).read_bytes() == b"an earlier one"


def test_without_the_package_the_extra_is_named(clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for meta in ("VC:1", "CS:1"):
        with pytest.raises(ImportError, match=r"imageio-ffmpeg: pip install 'prle\[faces\]'"):
            D.distort_video(clip, tmp_path / "out.mp4", meta, seed=0)


def test_arguments_are_checked_before_any_work(clip, tmp_path):
    with pytest.raises(ValueError, match="empty meta string"):
        D.distort_video(clip, tmp_path / "out.mp4", "", seed=0)
    with pytest.raises(ValueError, match="out.avi: the distorted video is an mp4"):
        D.distort_video(clip, tmp_path / "out.avi", "VC:1", seed=0)
    with pytest.raises(ValueError, match="unknown level of VC"):
        D.distort_video(clip, tmp_path / "out.mp4", "VC:6", seed=0)
    assert not any(tmp_path.iterdir())


# Limits


def test_a_meta_file_is_read_up_to_a_limit(tmp_path, monkeypatch):
    path = D.write_meta(tmp_path / "meta.txt", {"000_M101.mp4": "CS:3"})
    monkeypatch.setattr(D, "MAX_META", path.stat().st_size)
    assert D.read_meta(path) == {"000_M101": "CS:3"}
    monkeypatch.setattr(D, "MAX_META", path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"meta.txt has 18 bytes; at most 17 are read"):
        D.read_meta(path)


def test_a_video_of_too_many_pixels_is_not_decoded(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("prle.trust.MAX_PIXELS", 1000)
    with pytest.raises(D.VideoError, match=r"promises .* pixels; at most 1,000 are decoded"):
        D.distort_video(clip, tmp_path / "out.mp4", "CC:1", seed=0)
    assert not (tmp_path / "out.mp4").exists()

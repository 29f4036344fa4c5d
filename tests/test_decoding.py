"Frames by their numbers: every codec and container, every damage, pauses, shapes; what cannot be had is named."

import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import damage, ffmpeg

from prle.core import rng
from prle.data import decoding as D
from prle.data.distortions import distort_video
from prle.data.layouts.checks import probe

FRAMES, SIZE, KEYS = 60, (160, 96), 20
QUIET = {"x265-params": f"keyint={KEYS}:min-keyint={KEYS}:log-level=none"}
FAST = {"deadline": "realtime", "cpu-used": "8"}


def draw(number, size=SIZE):
    "A moving square over a still background, and the number in eight black or white fields."
    coarse = rng("film").integers(60, 200, (6, 10, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    for bit in range(8):
        frame[4:20, 4 + bit * 18 : 18 + bit * 18] = 255 * (number >> bit & 1)
    x = 3 * number % (size[0] - 30)
    frame[50:80, x : x + 30] = (250, 30, 30)
    return frame


def number_of(frame):
    return sum(
        int(frame[8:16, 8 + bit * 18 : 14 + bit * 18].mean() > 128) << bit for bit in range(8)
    )


def write(path, codec="libx264", times=range(FRAMES), pixels="yuv420p", aspect=None, **options):
    "A film of which each frame shows its number; `times` are in 1/25 s."
    with av.open(str(path), "w") as container:
        options = dict(g=str(KEYS)) | {name.replace("_", "-"): o for name, o in options.items()}
        stream = container.add_stream(codec, rate=25, options=options)
        (stream.width, stream.height), stream.pix_fmt = SIZE, pixels
        stream.codec_context.thread_count, stream.time_base = 1, Fraction(1, 25)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(number)).reformat(format=pixels)
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def copy(source, target, **options):
    "Copy the packets of a film into another container."
    with (
        av.open(str(source)) as given,
        av.open(str(target), "w", options=options) as made,
    ):
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in (p for p in given.demux(video=0) if p.size):
            packet.stream = stream
            made.mux(packet)
    return Path(target)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def read(path, wanted=None):
    "What comes of some frames, or all: {number: picture}, {number: reason}."
    wanted = list(range(len(D.index_video(path))) if wanted is None else wanted)
    frames = dict(zip(wanted, D.decode_video(path, wanted), strict=True))
    lost = {number: str(f) for number, f in frames.items() if isinstance(f, D.VideoError)}
    return {number: f for number, f in frames.items() if number not in lost}, lost


def check_numbers(path, frames=FRAMES):
    "All frames are there under their own numbers, and the same if only some are wanted."
    there, lost = read(path)
    assert not lost and {n: number_of(f) for n, f in there.items()} == {n: n for n in range(frames)}
    some, _ = read(path, [3, 4, 17, frames - 8, frames - 1])
    assert all(np.array_equal(f, there[number]) for number, f in some.items()) and len(some) == 5


def check_damage(path, clean, lost):
    "Exactly these frames are lost, the others are those of the undamaged film, whichever are wanted."
    whole, _ = read(clean)
    there, reasons = read(path)
    assert sorted(reasons) == sorted(lost) and len(there) + len(lost) == FRAMES
    for number, frame in there.items():
        assert np.array_equal(frame, whole[number]), number
    some, others = read(path, range(2, FRAMES, 7))
    assert set(others) == set(reasons) & set(range(2, FRAMES, 7))
    assert all(np.array_equal(frame, whole[number]) for number, frame in some.items())


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "H.264 with frames that are predicted from later ones, in four containers; VP9 as browsers record it."
    folder = tmp_path_factory.mktemp("films")
    made = write(folder / "a.mp4")
    for name in ("a.mkv", "a.ts"):
        copy(made, folder / name)
    copy(made, folder / "fast.mp4", movflags="faststart")
    write(folder / "a.webm", "libvpx-vp9", **FAST)
    copy(folder / "a.webm", folder / "live.webm", live="1")
    return folder


# Numbers


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm", "live.webm"])
def test_frames_of_every_container(films, name):
    check_numbers(films / name)


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.mp4", "libx265", dict(pixels="yuv420p10le", **QUIET)),
        ("a.mp4", "libsvtav1", dict(preset="12")),
        ("a.mov", "prores", dict(pixels="yuv422p10le")),
        ("a.webm", "libvpx", FAST),
        ("a.avi", "mpeg4", dict(bf="2")),
        ("a.avi", "libx264", {}),
        ("a.h264", "libx264", {}),
        ("a.mpg", "mpeg2video", dict(bf="2")),
        ("a.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frames_of_every_codec(tmp_path, name, codec, options):
    check_numbers(write(tmp_path / name, codec, **options))


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_pauses_have_no_frames(tmp_path, name):
    "Three pauses, and a rate that varies: 60 frames in 50 minutes."
    times = [4 * n + n % 3 + 25_000 * (n // 16) for n in range(FRAMES)]
    path = write(tmp_path / name, "libx264" if name == "a.mp4" else "libvpx-vp9", times)
    check_numbers(path)
    assert len(D.index_video(path)) == FRAMES and not D.index_video(path).is_cut


def test_joined_recordings(films, tmp_path):
    "The clock of the second begins again. The last frames of the first have lost what ends them."
    joined = tmp_path / "joined.ts"
    joined.write_bytes((films / "a.ts").read_bytes() * 2)
    there, lost = read(joined)
    assert {n: number_of(frame) for n, frame in there.items()} == {n: n % FRAMES for n in there}
    assert len(there) + len(lost) == 2 * FRAMES and set(lost) <= set(range(FRAMES - 4, FRAMES))


def test_packets_that_show_nothing_are_no_frames(tmp_path):
    "VP8's hidden references (the fifth bit of the first byte is 0), and what an edited film begins behind."
    path = write(tmp_path / "a.webm", "libvpx", **FAST)
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
        sizes = [p.size for p in av.open(str(path)).demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    start = (
        content.index(b"\x9d\x01\x2a") - 3
    )  # the first packet's bytes, behind its block's header
    for number in (10, 11):
        content[places[number] + start - places[0]] &= ~0x10
    path.write_bytes(content)
    there, lost = read(path)
    shown = [n for n in range(FRAMES) if n not in (10, 11)]
    assert not lost and [number_of(there[n]) for n in range(FRAMES - 2)] == shown and sizes
    ffmpeg("-ss", "0.5", "-i", write(tmp_path / "a.mp4"), "-c", "copy", tmp_path / "edited.mp4")
    with av.open(str(tmp_path / "edited.mp4")) as container:
        assert sum(p.is_discard for p in container.demux(video=0)) > 5
    there, lost = read(tmp_path / "edited.mp4")
    assert not lost and [number_of(there[n]) for n in there] == [
        *range(FRAMES - len(there), FRAMES)
    ]


def test_colours_are_opencvs(films):
    "Not one level apart; with frame threads off, both are the same FFmpeg."
    capture = cv2.VideoCapture(str(films / "a.mp4"), cv2.CAP_FFMPEG)
    there, _ = read(films / "a.mp4")
    for number in range(FRAMES):
        theirs = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
        assert np.abs(there[number].astype(int) - theirs).max() <= 1


# What is not decoded


def decoded(monkeypatch, path, wanted):
    "The packets that went into the decoder for these frames."
    places, real = [], D._decode
    monkeypatch.setattr(
        D, "_decode", lambda film, packet, place: places.append(place) or real(film, packet, place)
    )
    frames, lost = read(path, wanted)
    assert not lost and [number_of(f) for f in frames.values()] == wanted
    return places


def test_groups_of_frames_that_nobody_wants_are_passed_over(films, monkeypatch):
    places = decoded(monkeypatch, films / "a.mp4", [1, 55])
    assert set(places) < {*range(10), *range(40, 61)} and places == sorted(places)


def test_frames_that_nothing_is_predicted_from_are_left_out(films, monkeypatch):
    "Many of them: x264 predicts from half of the frames that lie between others."
    index = D.index_video(films / "a.mp4")
    assert 15 < index.spare.sum() < 40
    spare = [int(index.numbers[place]) for place in np.flatnonzero(index.spare)]
    places = decoded(monkeypatch, films / "a.mp4", sorted(spare[::4]))
    wanted = {int(index.places[number]) for number in spare[::4]}
    assert not set(np.flatnonzero(index.spare)) & set(places) - wanted and wanted < set(places)


def test_frames_that_are_falsely_called_key_frames(films, monkeypatch):
    "A jump to one gives nothing or rubbish, so the film is decoded from its beginning."
    clean, _ = read(films / "a.mp4")
    index = replace(D.index_video(films / "a.mp4"), keys=np.arange(FRAMES))
    monkeypatch.setattr(D, "index_video", lambda file: index)
    for wanted in ([33], [15, 30, 31, 59]):
        there, lost = read(films / "a.mp4", wanted)
        assert not lost and all(np.array_equal(f, clean[n]) for n, f in there.items())


# Damage


@pytest.mark.parametrize("name, share", [("a.mp4", 1), ("a.mp4", 0.5), ("a.mkv", 0.9)])
def test_damaged_packets(films, tmp_path, name, share):
    "Frames that are predicted from a damaged one are lost with it, up to the next key frame; all keep their numbers."
    index = D.index_video(films / name)
    place = next(p for p in range(24, 40) if not index.spare[p] and not index.spare[p - 1])
    path = tmp_path / name
    path.write_bytes((films / name).read_bytes())
    damage(path, [place, place + 1], share)
    check_damage(path, films / name, {int(index.numbers[p]) for p in range(place, 40)})
    assert set(read(path)[1].values()) == {"cannot be decoded (its data are damaged)."}


def test_damage_to_a_frame_that_nothing_is_predicted_from_costs_that_frame(films, tmp_path):
    index = D.index_video(films / "a.mp4")
    places = np.flatnonzero(index.spare)[3:5]
    path = tmp_path / "a.mp4"
    path.write_bytes((films / "a.mp4").read_bytes())
    damage(path, places, 0.5)
    check_damage(path, films / "a.mp4", set(index.numbers[places]))


@pytest.mark.parametrize(
    "name, codec, pixels", [("a.mov", "prores", "yuv422p10le"), ("a.avi", "mjpeg", "yuvj420p")]
)
def test_where_every_frame_stands_alone_damage_costs_no_other(tmp_path, name, codec, pixels):
    clean = write(tmp_path / f"clean_{name}", codec, pixels=pixels)
    path = tmp_path / name
    path.write_bytes(clean.read_bytes())
    damage(path, [8, 30, 31], 0.9)
    check_damage(path, clean, {8, 30, 31})


def test_a_file_that_is_cut_off_names_what_it_lists_and_lacks(films, tmp_path):
    for name in ("fast.mp4", "a.mkv"):
        path = tmp_path / name
        path.write_bytes((films / name).read_bytes())
        cut(path, 0.6)
        there, lost = read(path)
        first = min(lost)
        assert set(lost) == set(range(first, FRAMES)) and 20 < first < 40
        assert lost[59] == "cannot be decoded (the file lacks it)."
        assert {n: number_of(f) for n, f in there.items()} == {n: n for n in range(first)}
        assert D.index_video(path).is_cut and probe(path) == "unreadable"
        assert probe(films / name) == ""


def test_an_avi_file_that_is_cut_off(tmp_path):
    path = cut(write(tmp_path / "a.avi", "mjpeg", pixels="yuvj420p"), 0.5)
    there, lost = read(path)
    assert sorted({*there, *lost}) == [*range(FRAMES)] and 20 < len(there) < 40
    assert len(there) == min(lost), "the end is lost, and nothing else"


@pytest.mark.parametrize("name", ["a.mkv", "live.webm", "a.ts"])
def test_a_hole_in_the_container(films, tmp_path, name):
    "Packets vanish. Those behind them keep their numbers, since the clock is even."
    content = bytearray((films / name).read_bytes())
    hole = len(content) * 5 // 12
    content[hole : hole + 1500] = bytes(1500)
    path = tmp_path / name
    path.write_bytes(content)
    there, lost = read(path)
    assert len(there) + len(lost) == FRAMES and 3 < len(lost) < FRAMES - 5
    wrong = {n: number_of(f) for n, f in there.items() if number_of(f) != n}
    assert len(wrong) <= 1, "VP9 cannot tell that the frame in which the hole begins is damaged"


def test_a_header_that_promises_billions_of_frames_is_not_believed(tmp_path):
    path = write(tmp_path / "a.avi", "mjpeg", pixels="yuvj420p")
    content, at = bytearray(path.read_bytes()), 0
    for field in (b"avih", b"strh"):
        at = content.index(field) + (24 if field == b"avih" else 40)
        assert int.from_bytes(content[at : at + 4], "little") == FRAMES
        content[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    check_numbers(path)
    assert len(D.index_video(cut(path, 0.5))) <= path.stat().st_size


def test_a_distorted_copy_of_a_damaged_film_has_all_its_frames(films, tmp_path, caplog):
    "Others stand in for those that are lost, in VC's way through ffmpeg too."
    path = tmp_path / "a.mp4"
    path.write_bytes((films / "a.mp4").read_bytes())
    damage(path, [0, 30])
    lost = D.undecodable(path)
    assert 0 in lost and 25 < len(lost) < FRAMES
    for meta in ("CC:1", "VC:1"):
        made = distort_video(path, tmp_path / "out.mp4", meta, seed=0)
        there, none = read(made)
        assert len(there) == FRAMES and not none
        kept = [number for number in range(FRAMES) if number not in lost]
        assert [number_of(there[number]) for number in kept] == kept
        assert f"a.mp4: {len(lost)} frames cannot be decoded" in caplog.text


# Shapes


@pytest.mark.parametrize(
    "aspect, size", [("4/3", (213, 96)), ("8/9", (160, 108)), ("1", (160, 96))]
)
def test_pixels_are_made_square(tmp_path, aspect, size):
    path = write(tmp_path / "a.mp4", times=range(4), aspect=Fraction(aspect))
    [frame] = D.decode_video(path, [2])
    expected = cv2.resize(draw(2), size, interpolation=cv2.INTER_CUBIC)
    assert frame.shape == (*size[::-1], 3) and np.abs(frame - expected.astype(int)).mean() < 4


@pytest.mark.parametrize("degrees, turns", [(90, 1), (180, 2), (270, 3)])
def test_turned_films_with_other_pixels_are_upright(tmp_path, degrees, turns):
    path = write(tmp_path / "a.mp4", times=range(2), aspect=Fraction(4, 3))
    ffmpeg("-display_rotation", degrees, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    [plain], [turned] = (D.decode_video(p, [1]) for p in (path, tmp_path / "turned.mp4"))
    assert np.array_equal(turned, np.rot90(plain, turns)) and turned.flags.c_contiguous
    capture = cv2.VideoCapture(str(tmp_path / "turned.mp4"), cv2.CAP_FFMPEG)
    theirs = cv2.resize(capture.read()[1][..., ::-1], turned.shape[1::-1])
    assert np.abs(turned - theirs.astype(int)).mean() < 20


def test_a_cover_picture_is_not_the_film(tmp_path):
    film, cover = write(tmp_path / "a.mp4"), tmp_path / "cover.jpg"
    cv2.imwrite(str(cover), np.full((300, 300, 3), 200, np.uint8))
    both = ("-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", film, "-i", cover, *both, tmp_path / "both.mp4")
    with av.open(str(tmp_path / "both.mp4")) as container:
        assert len(container.streams.video) == 2
    check_numbers(tmp_path / "both.mp4")
    sound = ("-f", "lavfi", "-i", "sine=duration=1", "-i", cover, "-map", "0", "-map", "1")
    ffmpeg(*sound, "-c:v", "copy", "-disposition:v:0", "attached_pic", tmp_path / "song.mp4")
    with pytest.raises(D.VideoError, match="song.mp4: no film in it but a cover picture"):
        D.index_video(tmp_path / "song.mp4")


# Messages


def test_the_codec_is_named(films, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes((films / "a.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(D.VideoError, match="a.mp4: ZZZZ cannot be decoded here"):
        D.index_video(path)
    log = "Could not find codec parameters for stream 0 (Video: av1 (av01 / 0x31307661), none, 9x9)"
    assert D._codec([(24, "mov", log)]) == "AV1" and D._codec([]) == "its codec"


def test_nothing_is_printed_about_a_damaged_film(films, tmp_path, capfd):
    path = tmp_path / "a.mp4"
    path.write_bytes((films / "fast.mp4").read_bytes())
    read(cut(damage(path, [10, 11, 30]), 0.8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        (b"", "empty file"),
        (b"words\n" * 99, "not a video that can be decoded"),
    ],
)
def test_what_is_no_film(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(D.VideoError, match=f"a.mp4: {message}"):
        D.index_video(tmp_path / "a.mp4")
    assert issubclass(D.VideoError, ValueError)


def test_a_file_of_any_name(tmp_path):
    "What FFmpeg would read as a protocol, a pattern or an option; bytes that are no UTF-8."
    for name in ("a:b?c&d%d.mp4", "-i.mp4", "file:x|y.mp4"):
        check_numbers(write(tmp_path / "plain.mp4").rename(tmp_path / name))
    film = write(tmp_path / "plain.mp4").rename(
        tmp_path / b"\xff.mp4".decode(errors="surrogateescape")
    )
    check_numbers(film)


def test_a_changed_file_is_counted_again(tmp_path):
    path = write(tmp_path / "a.mp4", times=range(5))
    assert len(D.index_video(path)) == 5
    assert len(D.index_video(write(path, times=range(9)))) == 9


def test_without_the_package_the_extra_is_named(films, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    D._pyav.cache_clear()
    with pytest.raises(ImportError, match=r"PyAV: pip install 'prle\[faces\]'"):
        list(D._start(films / "a.mp4"))
    D._pyav.cache_clear()

"""Pictures of every kind through the one reader, and what a file is."""

import io
import os
import struct
import subprocess
import sys
import tracemalloc

import av
import cv2
import numpy as np
import pytest
from clips import write_clip
from PIL import Image
from pillow_heif import register_heif_opener

from prle.core import collected_messages, rng
from prle.data import pictures as P
from prle.data.crops import read_mask, read_quantiles, read_rgb

register_heif_opener()
GREY = np.arange(112 * 92).reshape(112, 92).astype(np.uint8)
RAMP = np.repeat(GREY[..., None], 3, -1)


def smooth(width=60, height=40):
    "A coloured picture that lossy formats keep, none of whose turns look like another."
    y, x = np.mgrid[:height, :width]
    picture = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], -1).astype(np.uint8)
    picture[: height // 4, : width // 4] = 250
    return picture


def deep(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


KINDS = {
    "grey.png": lambda im: im.convert("L"),
    "rgba.png": lambda im: im.convert("RGBA"),
    "grey_alpha.png": lambda im: im.convert("LA"),
    "palette.gif": lambda im: im.convert("L"),
    "palette.png": lambda im: im.convert("L").convert("P"),
    "sixteen.png": deep,
    "sixteen.tif": deep,
    "sixteen.jp2": deep,
    "long.tif": lambda im: Image.fromarray(np.asarray(deep(im)).astype(np.int32)),
    "float.tif": lambda im: Image.fromarray(np.asarray(im.convert("L"), np.float32) / 255),
    "colour.bmp": lambda im: im,
    "colour.tga": lambda im: im,
    "colour.ppm": lambda im: im,
    "colour.jp2": lambda im: im,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_reads_the_same(tmp_path, name):
    KINDS[name](Image.fromarray(RAMP)).save(tmp_path / name)
    image = P.read_image(tmp_path / name)
    assert image.dtype == np.uint8 and np.array_equal(image, RAMP)
    assert np.array_equal(P.to_grey(name, P.read_picture(tmp_path / name)), GREY)
    assert np.array_equal(read_rgb(tmp_path / name), RAMP)
    assert np.array_equal(read_mask(tmp_path / name, GREY.shape), GREY)


LOSSY = {"a.jpg": "JPEG", "a.jpe": "JPEG", "a.jfif": "JPEG", "a.heic": "HEIF", "a.avif": "AVIF"}
LOSSY |= {"a.webp": "WEBP", "heic.jpg": "HEIF", "no_suffix": "AVIF"}


FAST = dict(enc_params={"preset": "ultrafast"}, speed=10)  # of HEIC, and of AVIF


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_pictures_read_nearly_the_same_and_whole(tmp_path, name):
    "A phone's HEIC is larger than the tiles of 512 pixels that it may be made of."
    picture = smooth(700, 540)
    Image.fromarray(picture).save(tmp_path / name, LOSSY[name], quality=90, **FAST)
    for read in (P.read_image, read_rgb):
        image = read(tmp_path / name)
        assert image.shape == picture.shape and np.abs(image.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.heic", "a.avif"])
def test_orientation_is_applied(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned = Image.fromarray(np.rot90(smooth()).copy())
    turned.save(tmp_path / name, exif=exif.tobytes(), quality=95)
    for read in (P.read_image, read_rgb):
        assert np.abs(read(tmp_path / name).astype(int) - smooth()).mean() < 4


def test_colour_channels_keep_their_order(tmp_path):
    Image.new("RGB", (8, 8), (250, 100, 5)).save(tmp_path / "c.png")
    for read in (P.read_image, read_rgb):
        assert read(tmp_path / "c.png")[0, 0].tolist() == [250, 100, 5]


@pytest.mark.parametrize("mode, colour", [("RGBA", (255, 0, 0, 0)), ("LA", (200, 0))])
def test_transparent_pixels_become_black_on_every_path(tmp_path, mode, colour):
    Image.new(mode, (8, 8), colour).save(tmp_path / "clear.png")
    for read in (P.read_image, read_rgb):
        assert (read(tmp_path / "clear.png") == 0).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "c.jpg", quality=98)
    assert np.abs(P.read_image(tmp_path / "c.jpg").astype(int) - smooth()).mean() < 4


def test_numbers_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 300.0, np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "i.tif")
    for name, most in (("f.tif", 1), ("i.tif", 65535)):
        told = rf"{name}: cannot be read \(its values do not lie between 0 and {most};"
        with pytest.raises(P.FaceError, match=told):
            P.read_image(tmp_path / name)


# Colours


def tag(kind, *numbers):
    return (
        kind
        + bytes(4)
        + b"".join(round(n * 65536).to_bytes(4, "big", signed=True) for n in numbers)
    )


GAMMA = b"curv" + bytes(4) + struct.pack(">IH", 1, 563) + bytes(2)  # 2.2, near enough to sRGB's


def profile(space, columns, name):
    "An ICC profile of three colours (their XYZ), or of grey."
    tags = {b"wtpt": tag(b"XYZ ", 0.9642, 1, 0.8249), b"cprt": b"text" + bytes(8)}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(79)
    for letter, column in zip(b"rgb", columns):
        tags[bytes([letter]) + b"XYZ"] = tag(b"XYZ ", *column)
        tags[bytes([letter]) + b"TRC"] = GAMMA
    if not columns:
        tags[b"kTRC"] = GAMMA
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = b"lcms" + b"\2\x10\0\0" + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    white = tag(b"", 0.9642, 1, 0.8249)[4:]
    body = head + white + bytes(48) + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(body) + 4) + body


# Display P3: red, green and blue as XYZ, adapted to D50
WIDE = profile(
    b"RGB ",
    [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)],
    b"Display P3",
)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.heic", "a.avif"])
def test_wide_colours_become_srgb(tmp_path, name):
    "234, 51, 35 in Display P3 is sRGB's full red, which Apple's tables say too."
    image = Image.new("RGB", (32, 32), (234, 51, 35))
    image.save(tmp_path / name, icc_profile=WIDE, quality=95)
    for read in (P.read_image, read_rgb):
        assert np.abs(read(tmp_path / name)[9, 9].astype(int) - (255, 0, 0)).max() < 16
    plain = P.to_grey(name, P.read_picture(tmp_path / name))[9, 9]
    assert abs(int(plain) - (0.299 * 234 + 0.587 * 51 + 0.114 * 35)) < 4, "masks keep their numbers"


def test_profiles_that_do_not_fit_are_not_looked_at(tmp_path):
    grey = profile(b"GRAY", [], b"gamma")
    for mode, content in (("CMYK", WIDE), ("L", WIDE), ("RGB", grey), ("RGB", b"no profile")):
        image = Image.fromarray(smooth()).convert(mode)
        image.save(tmp_path / "a.tif", icc_profile=content)
        assert np.array_equal(P.read_image(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


def test_srgb_itself_changes_nothing(tmp_path):
    from PIL import ImageCms

    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(smooth()).save(tmp_path / "a.png", icc_profile=content)
    assert np.array_equal(P.read_image(tmp_path / "a.png"), smooth())


# Several pictures in a file


def frames(count=4):
    return [Image.new("RGB", (32, 32), (60 * i, 0, 0)) for i in range(count)]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif", "a.gif", "a.avif"])
def test_the_first_of_several_is_read_and_said(tmp_path, name):
    first, *others = frames()
    first.save(tmp_path / name, save_all=True, append_images=others)
    with collected_messages() as said:
        assert P.read_image(tmp_path / name)[0, 0, 0] < 9
    assert [text for _, text in said] == [
        f"NOTE {tmp_path / name}: the first of its 4 pictures is read."
    ]


def test_a_phones_second_picture_is_not_worth_a_word(tmp_path):
    first, *others = frames(2)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=others)
    with collected_messages() as said:
        assert P.read_image(tmp_path / "a.jpg")[0, 0, 0] < 9
    assert said == []


# What cannot be read


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.pgm", "a.bmp", "a.heic", "a.avif", "a.webp"])
def test_a_truncated_file_is_named(tmp_path, name):
    noise = rng(0, "noise").integers(0, 256, (112, 92, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-700])
    for read, error in ((P.read_image, P.FaceError), (read_rgb, OSError)):
        with pytest.raises(error, match=rf"{name}: cannot be read \(.*damaged"):
            read(tmp_path / name)


def test_missing_and_foreign_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name, told in (
        ("nothing.png", "no such file"),
        ("text.png", r"cannot be read \(not a picture, or damaged from its beginning\)"),
        ("empty.png", r"cannot be read \(empty file\)"),
        (".", r"cannot be read \(Is a directory\)"),
    ):
        with pytest.raises(P.FaceError, match=told):
            P.read_image(tmp_path / name)
        for read, what in ((read_rgb, "picture"), (lambda p: read_mask(p, (8, 8)), "mask")):
            with pytest.raises(OSError, match=f"{what} .*{told}" if name != "." else "directory"):
                read(tmp_path / name)


SIDE = (30_000).to_bytes(4, "little")
HEADERS = {
    "a.pgm": b"P5 30000 30000 255 ",
    "a.bmp": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + SIDE * 2 + b"\1\0\x18" + bytes(25),
}
PROMISES = r"cannot be read \((a decompression bomb, or far too large.*|it promises .* pixels.*)\)"


@pytest.mark.parametrize("suffix", "pgm bmp png jpg tif webp avif heic jp2 gif".split())
def test_decompression_bombs_are_not_decoded_and_called_so(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    Image.new("L", (50, 40)).save(path)
    if path.name in HEADERS:
        path.write_bytes(HEADERS[path.name])
    else:
        monkeypatch.setattr("prle.trust.MAX_PIXELS", 1999)
    tracemalloc.start()
    for read in (P.read_image, read_rgb, lambda path: read_mask(path, (40, 50))):
        with pytest.raises((P.FaceError, OSError), match=f"a.{suffix}: {PROMISES}"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_a_quantile_map_that_promises_too_much_is_not_decoded(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "q.png"), np.zeros((40, 50), np.uint16))
    assert read_quantiles(tmp_path / "q.png").shape == (40, 50)
    monkeypatch.setattr("prle.trust.MAX_PIXELS", 1999)
    with pytest.raises(OSError, match="q.png: cannot be read .it promises 50 x 40 pixels"):
        read_quantiles(tmp_path / "q.png")


@pytest.mark.parametrize(
    "content",
    [
        b"root:x:0:0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0" + b"\xff" * 50,
        b"P5 x y 255 ",
        b"BM" + b"\xff" * 60,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) show\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(P.FaceError, match="a.png: cannot be read"):
        P.read_picture(tmp_path / "a.png")


def test_heic_without_its_reader_says_what_to_install(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.heic")
    (tmp_path / "b").write_bytes((tmp_path / "a.heic").read_bytes())
    code = """
import sys
sys.modules["pillow_heif"] = None
from prle.data.pictures import FaceError, file_kind, read_image
for path in sys.argv[1:]:
    try:
        read_image(path)
    except FaceError as e:
        print(file_kind(path), e)
"""
    files = [str(tmp_path / "a.heic"), str(tmp_path / "b")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True)
    why = "cannot be read (HEIC needs pillow-heif: pip install 'prle[faces]')."
    assert done.stdout.splitlines() == [f"picture {file}: {why}" for file in files], done.stderr


# Picture, video, or neither


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    "A folder of pictures, videos and other things, some of them by a name that does not tell."
    folder = tmp_path_factory.mktemp("mixed")
    picture = Image.fromarray(smooth())
    for name, kind in LOSSY.items():
        picture.save(folder / f"picture {name}", kind, **FAST)
    for name in ("picture.gif", "picture.jp2", "picture.tga", "picture.PNG"):
        picture.save(folder / name)
    first, *others = frames()
    first.save(folder / "video.gif", save_all=True, append_images=others)
    write_clip(folder / "video.mp4", frames=3)
    (folder / "video in disguise").write_bytes((folder / "video.mp4").read_bytes())
    (folder / "other.txt").write_text("a film of letters\n" * 99)
    (folder / "other.odd").write_text("a film of letters\n" * 99)
    (folder / "other.bits").write_bytes(rng(0, "bits").bytes(9999))
    (folder / "other.pdf").write_bytes(b"%PDF-1.4\n")
    (folder / "other empty").touch()
    with av.open(str(folder / "other.oga"), "w", format="wav") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        samples.rate = 8000
        sound.mux(stream.encode(samples))
    (folder / ".hidden").write_text("nobody's")
    return folder


def test_files_are_told_apart_by_content_where_the_name_does_not_tell(mixed):
    for file in mixed.iterdir():
        if not file.name.startswith("."):
            known = "" if file.name.startswith("other") else file.name.split(".")[0].split()[0]
            assert P.file_kind(file) == known, file.name


def test_what_is_left_over_is_listed_with_its_reason(mixed):
    left = P.left_over(mixed)
    assert dict(zip((os.path.basename(file) for file in left.file), left.reason)) == {
        "other empty": "empty file",
        "other.bits": "neither a picture nor a video that can be opened",
        "other.odd": "neither a picture nor a video that can be opened",
        "other.oga": "sound without pictures",
        "other.pdf": "neither a picture nor a video, by its name",
        "other.txt": "neither a picture nor a video, by its name",
    }
    assert P.left_over([mixed, mixed / ".." / mixed.name]).equals(left)
    assert P.left_over([mixed / "other.txt"]).empty, "what is named itself is not left over"
    text = P.left_text(left, most=2).splitlines()
    assert len(text) == 4 and text[-2:] == ["left over: and 4 more", "6 files left over"]
    assert P.left_text(left[:0]) == ""


def test_a_damaged_exif_block_costs_the_orientation_only(tmp_path):
    content = io.BytesIO()
    Image.fromarray(smooth()).save(content, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff")
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    assert P.read_image(tmp_path / "a.jpg").shape == smooth().shape

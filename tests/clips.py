"Short real videos for the tests: ORL photographs that move over a static textured background."

import subprocess
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from prle.core import rng
from prle.data.faces import orl_folder
from prle.data.pictures import read_image


@cache
def photograph(person="s1", width=130):
    "A person's first ORL photograph enlarged to `width` px; the face takes about three quarters of it."
    image = read_image(orl_folder() / person / "1.pgm")
    return cv2.resize(image, (width, width * 112 // 92), interpolation=cv2.INTER_CUBIC)


@cache
def background(size, key="background"):
    "A static coloured texture, (H, W, 3) uint8 RGB."
    coarse = rng(key).integers(60, 200, (size[1] // 16 + 2, size[0] // 16 + 2, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def place(size, picture, step, lane=0.5):
    """Top left corner of a picture that goes back and forth along its lane (0 top, 1 bottom) of the frame.

    A round trip takes 64 steps."""
    room_x, room_y = size[0] - picture.shape[1], size[1] - picture.shape[0]
    return round(room_x * (0.5 + 0.5 * np.sin(step * np.pi / 32))), round(room_y * lane)


def draw_frame(size, pictures, step):
    "One frame, RGB, and its mask (255 where a picture lies); each picture keeps to a half of the frame of its own."
    frame, mask = background(size).copy(), np.zeros(size[::-1], np.uint8)
    lane = size[0] // max(1, len(pictures))
    for i, picture in enumerate(pictures):
        x, y = place((lane, size[1]), picture, step)
        part = slice(y, y + picture.shape[0]), slice(i * lane + x, i * lane + x + picture.shape[1])
        frame[part], mask[part] = picture, 255
    return frame, mask


def write_frames(path, frames, size, fps=25):
    "An mp4 (MPEG-4 part 2) of RGB or grey frames."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    assert writer.isOpened(), path
    for frame in frames:
        order = cv2.COLOR_RGB2BGR if frame.ndim == 3 else cv2.COLOR_GRAY2BGR
        writer.write(cv2.cvtColor(frame, order))
    writer.release()
    return path


def write_clip(
    path, person="s1", frames=8, size=(320, 240), faces=1, width=130, shown=None, mask=None
):
    """A video of `frames` frames of `size` (w, h) with `faces` people (0: none).

    The first of them is `person`, `width` px wide, the others are smaller. `shown`: the frames in which they are
    there (default: all). `mask`: where to write the mask video, white on the photographs."""
    pictures = [photograph(person, width)][:faces]
    pictures += [photograph(f"s{10 + i}", width * 4 // 5) for i in range(faces - 1)]
    drawn = []
    for i in range(frames):
        there = shown is None or i in shown
        drawn.append(draw_frame(size, pictures if there else [], 4 * i))
    if mask is not None:
        write_frames(mask, [m for _, m in drawn], size)
    return write_frames(path, [frame for frame, _ in drawn], size)


def write_people(folder, count, photos=2, size=None, tint=(1, 1, 1)):
    "A folder of people from ORL, tinted and enlarged."
    for i in range(1, count + 1):
        (folder / f"s{i}").mkdir(parents=True)
        for k in range(1, photos + 1):
            shade = np.array(tint) * rng("tint", i).uniform(0.9, 1.1, 3)
            tinted = read_image(orl_folder() / f"s{i}" / f"{k}.pgm") * shade
            picture = Image.fromarray(tinted.clip(0, 255).astype(np.uint8))
            if size:
                picture = picture.resize((size, size * 112 // 92), Image.Resampling.BICUBIC)
            picture.save(folder / f"s{i}" / f"{k}.png")
    return folder


def ffmpeg(*arguments):
    "Run the ffmpeg of the package imageio-ffmpeg."
    from imageio_ffmpeg import get_ffmpeg_exe

    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def write_h264(path, source):
    "Encode a clip again as H.264."
    ffmpeg("-i", source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", path)
    return Path(path)


def write_rotated(path, source, degrees=90):
    "A copy that is stored turned and carries metadata which say so: a player shows it as `source` is."
    turned = Path(path).with_suffix(".turned.mp4")
    turn = {90: "transpose=1", 180: "hflip,vflip", 270: "transpose=2"}[degrees]
    ffmpeg("-i", source, "-vf", turn, *"-c:v mpeg4 -q:v 2".split(), turned)
    ffmpeg("-display_rotation", degrees, "-i", turned, "-c", "copy", path)
    turned.unlink()
    return Path(path)


def damage(path, places, share=1):
    "Overwrite these packets of a video, or the last part of each, with zeros."
    import av

    content = bytearray(Path(path).read_bytes())
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for at, size in (packets[place] for place in places):
        kept = round(size * (1 - share))
        content[at + kept : at + size] = bytes(size - kept)
    Path(path).write_bytes(content)
    return Path(path)

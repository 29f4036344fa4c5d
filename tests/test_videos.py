"Videos and pictures to crops: every kind of input, every kind of damage, interruption at any moment, one result."

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from clips import (
    background,
    damage,
    draw_frame,
    ffmpeg,
    photograph,
    write_clip,
    write_frames,
    write_h264,
    write_rotated,
)
from kills import contents, kill_at_work, start

from prle.data import videos as V
from prle.cli import main
from prle.core import file_digest, rng
from prle.data.distortions import distort_frame, distort_video
from prle.data.faces import align, find_largest, move_points, warp_crop, warp_softly, write_png
from prle.data.pictures import FaceError, read_image
from prle.data.manifest import check_crops, write_manifest
from prle.lab.files import crop_file
from prle.mini.benchmark import read_crops
from prle.trust import check_digests, read_digests

QUICK = dict(count=3, size=64, workers=0)


def table(*files, **columns):
    "A table of videos of one subset."
    return pd.DataFrame(
        dict(
            file=[str(f) for f in files],
            subset="clips",
            video=[Path(f).stem for f in files],
            **columns,
        )
    )


def reasons(out):
    "The drop report as {(video, frame): reason}."
    dropped = pd.read_csv(out / "dropped.csv", keep_default_na=False)
    return {(row.video, row.frame): row.reason for row in dropped.itertuples()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "Three good clips."
    folder = tmp_path_factory.mktemp("good") / "clips"
    for i, person in enumerate(("s1", "s2", "s5")):
        write_clip(folder / f"{person}.mp4", person, frames=5 + i)
    return folder


@pytest.fixture(scope="module")
def whole(clips):
    "What an uninterrupted run on them gives."
    out = clips.parent / "whole"
    V.extract(V.list_videos(clips), out, **QUICK)
    return out


# The result


def test_rows_say_what_lies_on_disk(clips, whole):
    faces = pd.read_parquet(whole / "faces.parquet")
    assert list(faces) == [
        "path",
        "subset",
        "video",
        "frame",
        "landmarks",
        "transform",
        "mask",
        "found",
        "person",
    ]
    assert faces.video.tolist() == ["s1"] * 3 + ["s2"] * 3 + ["s5"] * 3
    assert faces.frame.tolist() == [0, 2, 4, 0, 2, 5, 0, 3, 6]
    for row in faces.itertuples():
        assert row.path == f"clips/{row.video}/{row.frame:04d}.png"
        assert row.landmarks.shape == (136,) and row.landmarks.dtype == np.float32
        assert row.transform.shape == (6,) and row.transform.dtype == np.float64
        assert row.found == 1 and row.mask == ""
        [frame] = V.read_frames(clips / f"{row.video}.mp4", [row.frame])
        assert np.array_equal(
            read_image(whole / row.path), warp_softly(frame, row.transform.reshape(2, 3), 64)
        )
        assert (
            np.abs(
                row.landmarks
                - move_points(find_largest(frame).landmarks, row.transform.reshape(2, 3)).ravel()
            ).max()
            < 1e-3
        )
    assert reasons(whole) == {}


def test_columns_of_the_table_travel_with_the_faces(clips, tmp_path):
    videos = V.list_videos(clips).assign(
        dataset="FF++", label=[0, 1, 1], identity=["a", "b", "c"], split="test", compression="c23"
    )
    faces = V.extract(videos, tmp_path / "out", count=1, size=32, workers=0)
    assert list(faces) == [
        "path",
        "subset",
        "video",
        "dataset",
        "label",
        "identity",
        "split",
        "compression",
        "frame",
        "landmarks",
        "transform",
        "mask",
        "found",
        "person",
    ]
    assert faces.label.tolist() == [0, 1, 1] and faces.identity.tolist() == ["a", "b", "c"]
    assert faces.path[2] == "FF++/clips/s5/0000.png" and (tmp_path / "out" / faces.path[2]).exists()
    pd.testing.assert_frame_equal(faces, pd.read_parquet(tmp_path / "out" / "faces.parquet"))


def test_same_named_videos_of_two_subsets_stay_apart(clips, tmp_path):
    videos = table(clips / "s1.mp4", clips / "s2.mp4").assign(subset=["real", "DF"], video="000")
    faces = V.extract(videos, tmp_path, count=1, size=32, workers=0)
    assert faces.path.tolist() == ["real/000/0000.png", "DF/000/0000.png"]


@pytest.mark.parametrize(
    "settings, frames",
    [
        (dict(count=32), [0, 1, 2, 3, 4]),
        (dict(count=2), [0, 4]),
        (dict(count=1), [0]),
        (dict(every=2), [0, 2, 4]),
        (dict(every=9), [0]),
    ],
)
def test_which_frames(clips, tmp_path, settings, frames):
    faces = V.extract(table(clips / "s1.mp4"), tmp_path / "out", size=32, workers=0, **settings)
    assert faces.frame.tolist() == frames


def test_32_frames_are_deepfakebenchs():
    for n in (32, 33, 100, 317, 1500):
        assert V.sample_frames(n) == [int(x) for x in np.linspace(0, n - 1, 32)]
    assert V.sample_frames(1) == [0] and V.sample_frames(31) == list(range(31))
    assert V.sample_frames(5, 10**12) == list(range(5)), (
        "who asks for more than there are gets all, in no more memory"
    )


@pytest.mark.parametrize("how", [dict(), dict(workers=2), dict(workers=2, engine="ray")])
def test_neither_order_nor_number_of_workers_nor_engine_shows(clips, whole, tmp_path, how):
    V.extract(V.list_videos(clips), tmp_path / "out", **QUICK | how)
    assert contents(tmp_path / "out") == contents(whole)


def test_ray_missing_names_the_extra(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"prle\[cluster\]"):
        V.extract(V.list_videos(clips), tmp_path / "out", **QUICK | dict(workers=1), engine="ray")


# Going on


def test_a_second_run_does_nothing(clips, whole, monkeypatch, capsys, shown):
    before = contents(whole)
    monkeypatch.setattr(V, "_extract_video", None)
    V.extract(V.list_videos(clips), whole, **QUICK)
    assert contents(whole) == before
    assert (
        "3 videos (3 of them done before): 9 frames, 9 faces, 0 dropped" in capsys.readouterr().out
    )


def test_what_a_killed_run_leaves_is_replaced(clips, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("s1", "s2"):
        (
            out / "clips" / name / "video.json"
        ).unlink()  # killed while an old folder was being deleted
    (out / "clips" / "s1" / "0000.png").unlink()
    name = "from prle.core import temporary_name; print(temporary_name())"
    dead = subprocess.run([sys.executable, "-c", name], capture_output=True, text=True, check=True)
    half = out / "clips" / dead.stdout.strip()
    half.mkdir()  # killed while writing
    (half / "0000.png").write_bytes(b"half")
    (out / f"{half.name}.parquet").write_bytes(b"half")
    (out / "faces.parquet").unlink()
    V.extract(V.list_videos(clips), out, **QUICK)
    assert contents(out) == contents(whole)


SCRIPT = """
import sys
from prle.data.videos import extract, list_videos
if __name__ == "__main__": extract(list_videos(sys.argv[1]), sys.argv[2], count=8, size=64, workers=2)
"""


def test_killed_at_random_moments(tmp_path):
    for i in range(8):
        write_clip(tmp_path / "clips" / f"{i}.mp4", f"s{i + 1}", frames=10, size=(240, 240))
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    draw, whole, hits = rng("kill"), [], []
    for kill in range(3):
        process = start(script, tmp_path / "clips", out)
        hits.append(kill_at_work(process, out, draw.uniform(0, 0.25), group=kill % 2 == 0))
        finished = [record.parent for record in out.glob("clips/*/video.json")]
        whole.append(len(finished))
        for folder in finished:
            assert (
                len(list(folder.glob("*.png")))
                == json.loads((folder / "video.json").read_text())["faces"]
                == 8
            )
    assert whole == sorted(whole) and sum(hits) >= 2
    assert start(script, tmp_path / "clips", out).wait() == 0
    V.extract(
        V.list_videos(tmp_path / "clips"), tmp_path / "uninterrupted", count=8, size=64, workers=0
    )
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_a_video_whose_crops_are_gone_is_done_again(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, photograph(width=64))
    videos = table(tmp_path / "a.png", tmp_path / "b.png")
    faces = V.extract(videos, tmp_path / "out", cropped=True, **QUICK)
    crops = [tmp_path / "out" / path for path in faces.path]
    whole = [crop.read_bytes() for crop in crops]
    times = [crop.stat().st_mtime_ns for crop in crops]
    crops[0].unlink()
    V.extract(videos, tmp_path / "out", cropped=True, **QUICK)
    assert [crop.read_bytes() for crop in crops] == whole
    assert [crop.stat().st_mtime_ns == time for crop, time in zip(crops, times)] == [False, True]


def test_a_changed_video_is_done_again(clips, tmp_path):
    out, file = tmp_path / "out", tmp_path / "clips" / "a.mp4"
    file.parent.mkdir()
    shutil.copy(clips / "s1.mp4", file)
    first = V.extract(V.list_videos(file), out, **QUICK)
    shutil.copy(clips / "s5.mp4", file)
    second = V.extract(V.list_videos(file), out, **QUICK)
    assert first.frame.tolist() == [0, 2, 4] and second.frame.tolist() == [0, 3, 6]
    assert sorted(p.name for p in (out / "clips" / "a").glob("*.png")) == [
        "0000.png",
        "0003.png",
        "0006.png",
    ]


def test_other_settings_need_another_folder(clips, whole):
    before = contents(whole)
    with pytest.raises(
        ValueError,
        match=r"whole was made with count 3, not 4; align similarity, not chip; scale 1.3, not 1.5\. Name another",
    ):
        V.extract(V.list_videos(clips), whole, count=4, size=64, align="chip")
    assert contents(whole) == before


@pytest.mark.parametrize(
    "workers, engine",
    [(1, "process"), (2, "process"), pytest.param(2, "ray", marks=pytest.mark.slow)],
)
def test_a_worker_that_dies_costs_one_video(clips, tmp_path, monkeypatch, workers, engine):
    "The decoder of one video brings down its process each time."
    (tmp_path / "deadly.py").write_text(
        "import os, prle.data.videos as V\nextract = V._extract_video\n"
        "def deadly(row, *job): return os._exit(11) if row['video'] == 's2' else extract(row, *job)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)  # for Ray's processes
    import deadly

    monkeypatch.setattr(V, "_extract_video", deadly.deadly)
    faces = V.extract(
        V.list_videos([clips / "s1.mp4", clips / "s2.mp4"]),
        tmp_path / "out",
        count=1,
        size=32,
        workers=workers,
        engine=engine,
    )
    assert faces.video.tolist() == ["s1"]
    assert reasons(tmp_path / "out") == {("s2", -1): "the process that read it died, twice."}


@pytest.mark.parametrize("error", ["WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"])
def test_a_ray_worker_that_dies_costs_one_video(clips, tmp_path, monkeypatch, error):
    "However Ray calls it: killed by the decoder, for memory, or with its machine."

    class Died(Exception):
        pass

    class Ray:
        exceptions = SimpleNamespace(
            WorkerCrashedError=OSError, OutOfMemoryError=OSError, NodeDiedError=OSError
        )  # the others, which do not come

        def is_initialized(self):
            return True

        def remote(self, function):
            return SimpleNamespace(remote=partial(partial, function))

        def wait(self, running):
            return running[:1], running[1:]

        def get(self, task):
            if task.args[0]["video"] == "s2":
                raise Died
            task()

    setattr(Ray.exceptions, error, Died)
    monkeypatch.setitem(sys.modules, "ray", Ray())
    faces = V.extract(
        V.list_videos([clips / "s1.mp4", clips / "s2.mp4"]),
        tmp_path / "out",
        count=1,
        size=32,
        workers=2,
        engine="ray",
    )
    assert faces.video.tolist() == ["s1"]
    assert reasons(tmp_path / "out") == {("s2", -1): "the process that read it died, twice."}


def test_a_full_disk_stops_the_run_and_leaves_whole_videos(clips, whole, tmp_path, monkeypatch):
    calls = []

    def full(path, image):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        write_png(path, image)

    monkeypatch.setattr(V, "write_png", full)
    with pytest.raises(OSError, match="No space"):
        V.extract(V.list_videos(clips), tmp_path / "out", **QUICK)
    assert [p.name for p in (tmp_path / "out" / "clips").iterdir()] == ["s1"]
    monkeypatch.undo()
    V.extract(V.list_videos(clips), tmp_path / "out", **QUICK)
    assert contents(tmp_path / "out") == contents(whole)


def test_memory_does_not_grow_with_the_number_of_videos(clips, tmp_path):
    def peak(n):
        videos = table(*[clips / "s1.mp4"] * n).assign(video=[f"v{i}" for i in range(n)])
        tracemalloc.start()
        V.extract(videos, tmp_path / f"out{n}", count=2, size=256, workers=0)
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return grown

    peak(1)
    few, many = peak(2), peak(8)
    assert many - few < 256 * 256 * 3  # twelve more crops were made; not one is kept


def test_nothing_is_kept_of_the_crops_of_a_finished_video(tmp_path, monkeypatch):
    monkeypatch.setattr(V, "find_largest", lambda *_: None)
    file = write_clip(tmp_path / "a.mp4", frames=32)

    def kept(n):
        videos = table(*[file] * n).assign(video=[f"v{i}" for i in range(n)])
        tracemalloc.start()
        V.crop_videos(videos, tmp_path / f"out{n}", 12, size=16, workers=0, cropped=True)
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return left

    kept(1)
    few, many = kept(2), kept(4)
    assert many - few < 2 * 4096  # a fingerprint for each crop would take 9 kB a video


def print_peaks(file, out, counts):
    "Print the most memory that each number of finished videos takes, bytes, on the last line; the first warms up."
    V._TOGETHER = 16
    peaks = []
    names = [f"v{i}" for i in range(max(counts))]
    videos = table(*[file] * len(names)).assign(video=names)
    for n in counts:
        tracemalloc.start()
        V.crop_videos(videos[:n], Path(out), size=32, workers=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(*peaks)


def test_memory_does_not_grow_with_the_number_of_faces(tmp_path):
    """Tables of many finished videos are put together; their rows would take 30 kB a video, what is known of each 2.

    In a process of its own, since the threads of others take memory too."""
    file, out = write_clip(tmp_path / "a.mp4", frames=32), tmp_path / "out"
    V.crop_videos(table(file).assign(video="v0"), out, size=32, workers=0)
    for i in range(1, 120):
        shutil.copytree(out / "clips/v0", out / f"clips/v{i}", copy_function=os.link)

    call = f"import test_videos as t; t.print_peaks({str(file)!r}, {str(out)!r}, [20, 40, 120])"
    given = dict(cwd=Path(__file__).parent, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", call], **given)
    assert done.returncode == 0, done.stderr[-2000:]
    _, few, many = map(int, done.stdout.splitlines()[-1].split())
    assert len(pd.read_parquet(out / "faces.parquet")) == 120 * 32
    assert many - few < 80 * 4096, (few, many)


def test_digests_of_crops_that_belong_to_no_data_set(clips, tmp_path):
    "What was cropped by name of the file is in the table of digests, too: a manifest of it can be checked."
    faces = V.extract(V.list_videos(clips), tmp_path / "out", **QUICK)
    digests = read_digests(tmp_path / "out")
    assert set(faces.path) < set(digests)
    assert all(file_digest(tmp_path / "out" / path) == digests[path] for path in faces.path)
    check_digests(tmp_path / "out")
    manifest = faces.assign(
        label=0, dataset="mine", subset="real", split="test", identity=faces.video
    ).assign(source_identity="", compression="")
    write_manifest(manifest, tmp_path / "out" / "manifest.parquet")
    (tmp_path / "out" / faces.path[0]).write_bytes((tmp_path / "out" / faces.path[1]).read_bytes())
    bad, said = check_crops(tmp_path / "out")
    assert bad.path.tolist() == [faces.path[0]] and "compared with their digests" in said


# The command


def test_videos_and_folders_through_the_command(clips, tmp_path, capsys):
    "`prle faces clip.mp4 folder/` with its defaults: 32 frames of a video, 256 px."
    clip = write_clip(tmp_path / "long.mp4", frames=40)
    assert (
        main(["faces", str(clip), str(clips), "--out", str(tmp_path / "out"), "--workers", "0"])
        == 0
    )
    faces = pd.read_parquet(tmp_path / "out" / "faces.parquet")
    assert faces.frame[faces.video == "long"].tolist() == V.sample_frames(40, 32) and faces.groupby(
        "video"
    ).size().to_dict() == dict(long=32, s1=5, s2=6, s5=7)
    assert set(faces.subset) == {tmp_path.name, "clips"} and read_image(
        tmp_path / "out" / faces.path[0]
    ).shape == (256, 256, 3)
    said = capsys.readouterr()
    assert "4 videos: 50 frames, 50 faces, 0 dropped" in said.err and said.out == ""


# Bad input


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_bad_videos_cost_only_themselves(tmp_path, capsys, shown):
    folder = tmp_path / "clips"
    write_clip(folder / "good.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    truncate(write_clip(folder / "beheaded.mp4"), 0.7)
    write_clip(folder / "nobody.mp4", faces=0)
    ffmpeg(
        "-i",
        write_clip(folder / "whole.mp4", frames=30),
        "-c",
        "copy",
        "-movflags",
        "+faststart",
        folder / "cut.mp4",
    )
    truncate(folder / "cut.mp4", 0.6)
    (folder / "whole.mp4").unlink()
    videos = table(*sorted(folder.glob("*.mp4")), folder / "missing.mp4")
    faces = V.extract(videos, tmp_path / "out", count=10, size=32, workers=0)
    said, why = capsys.readouterr().out, reasons(tmp_path / "out")
    assert (faces.video == "good").sum() == 8
    assert why["empty", -1] == "empty file." and why["missing", -1] == "no such file."
    assert why["text", -1] == why["beheaded", -1] == "not a video that can be decoded."
    assert [why["nobody", i] for i in range(8)] == ["no face found."] * 8
    cut = faces[faces.video == "cut"].frame.tolist()
    lost = [frame for video, frame in why if video == "cut"]
    assert cut and lost and sorted(cut + lost) == V.sample_frames(30, 10)
    assert min(lost) > max(cut), "cut off, not stretched"
    assert {why["cut", i] for i in lost[1:]} == {"cannot be decoded (the file lacks it)."}
    for name in ("empty", "text", "beheaded", "missing", "nobody"):
        assert f"{folder / name}.mp4: " in said
    assert set(pd.read_csv(tmp_path / "out" / "dropped.csv").file) == {
        str(folder / f"{name}.mp4")
        for name in ("empty", "text", "beheaded", "missing", "nobody", "cut")
    }
    assert f"7 videos: 26 frames, {len(faces)} faces, {len(why)} dropped (8 no face found" in said


def test_a_face_in_a_third_of_the_frames(tmp_path):
    file = write_clip(tmp_path / "a.mp4", frames=9, shown={3, 4, 5})
    faces = V.extract(table(file), tmp_path / "out", count=9, size=32, workers=0)
    assert faces.frame.tolist() == [3, 4, 5]
    assert sorted(reasons(tmp_path / "out")) == [("a", i) for i in (0, 1, 2, 6, 7, 8)]


def test_the_larger_of_two_faces(tmp_path):
    file = write_clip(tmp_path / "a.mp4", "s5", frames=2, size=(480, 270), faces=2, width=180)
    faces = V.extract(table(file), tmp_path / "out", **QUICK)
    alone = V.extract(
        table(write_clip(tmp_path / "b.mp4", "s5", frames=2, size=(240, 270), width=180)),
        tmp_path / "alone",
        **QUICK,
    )
    for ours, single in zip(faces.path, alone.path):
        assert (
            np.abs(
                read_image(tmp_path / "out" / ours).astype(int)
                - read_image(tmp_path / "alone" / single)
            )[10:-10, 20:-20].mean()
            < 5
        )


@pytest.mark.parametrize(
    "size", [(320, 240), (240, 320), (321, 241), (202, 398), (640, 200), (130, 159)]
)
def test_every_shape_of_frame(tmp_path, size):
    file = write_clip(tmp_path / "a.mp4", frames=2, size=tuple(side + side % 2 for side in size))
    ffmpeg(
        "-i",
        file,
        "-vf",
        f"crop={size[0]}:{size[1]}:0:0:exact=1",
        "-c:v",
        "mpeg4",
        "-q:v",
        "2",
        tmp_path / "b.mp4",
    )  # OpenCV writes even sizes only
    assert [frame.shape for frame in V.read_frames(tmp_path / "b.mp4", [0, 1])] == [
        (*size[::-1], 3)
    ] * 2
    assert len(V.extract(table(tmp_path / "b.mp4"), tmp_path / "out", **QUICK)) == 2


def test_one_frame_only(tmp_path):
    faces = V.extract(
        table(write_clip(tmp_path / "a.mp4", frames=1)), tmp_path / "out", size=64, workers=0
    )
    assert faces.frame.tolist() == [0]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_videos_are_upright_and_so_are_their_masks(tmp_path, degrees):
    plain = write_clip(tmp_path / "a.mp4", frames=2, mask=tmp_path / "mask.mp4")
    turned, mask = (
        write_rotated(tmp_path / "turned.mp4", plain, degrees),
        write_rotated(tmp_path / "m.mp4", tmp_path / "mask.mp4", degrees),
    )
    faces = V.extract(
        table(plain, turned).assign(mask_file=[str(tmp_path / "mask.mp4"), str(mask)]),
        tmp_path / "out",
        **QUICK,
    )
    for i in range(2):
        for column, most in (("path", 6), ("mask", 12)):
            one, other = (
                read_image(tmp_path / "out" / faces[column][k]).astype(int) for k in (i, i + 2)
            )
            assert np.abs(one - other).mean() < most


def test_h264_and_other_containers(tmp_path):
    plain = write_clip(tmp_path / "plain.mp4", frames=3)
    files = [
        write_h264(tmp_path / f"a{suffix}", plain)
        for suffix in (".mp4", ".mkv", ".mov", ".avi", ".m2ts")
    ]
    files.append(shutil.copy(files[0], tmp_path / "a.clip"))  # an ending that nobody knows
    videos = V.list_videos(files)
    assert len(V.list_videos(tmp_path)) == 7 and videos.file.tolist() == [
        str(file) for file in files
    ]
    faces = V.extract(videos.assign(video=list("123456")), tmp_path / "out", **QUICK)
    assert faces.video.tolist() == [v for v in "123456" for _ in range(3)]


def test_spaces_and_letters_of_all_kinds(tmp_path):
    folder = tmp_path / "Äpfel und Birnen" / "видео 1"
    write_clip(folder / "ein Gesicht, 100% 顔.mp4", frames=2)
    faces = V.extract(V.list_videos(folder.parent), tmp_path / "Faces & more", **QUICK)
    assert faces.path.tolist() == [
        f"Äpfel und Birnen_видео 1/ein Gesicht, 100% 顔/000{i}.png" for i in (0, 1)
    ]
    assert all((tmp_path / "Faces & more" / path).exists() for path in faces.path)


def test_a_video_that_does_not_say_how_long_it_is(tmp_path):
    plain = write_clip(tmp_path / "plain.mp4", frames=4)
    ffmpeg(
        "-i", plain, "-c:v", "libx264", "-f", "h264", tmp_path / "a.mp4"
    )  # a bare stream, without a container
    faces = V.extract(table(tmp_path / "a.mp4"), tmp_path / "out", count=2, size=64, workers=0)
    assert faces.frame.tolist() == [0, 3]


def test_a_folder_that_cannot_be_written(clips, tmp_path):
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"):
            V.extract(V.list_videos(clips), out, **QUICK)
    assert (tmp_path / "file").read_text() == "a file"


def test_a_read_only_folder(clips):
    "Root may write anywhere, so a process that gives root up tries it."
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        code = f"""
import os
from prle.data import videos
table = videos.list_videos({str(clips)!r})
if os.geteuid() == 0: os.setgid(65534), os.setuid(65534)
try: videos.extract(table, {place + "/out"!r}, count=3, size=64, workers=0)
except OSError as e: print(e)"""
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (
            f"cannot write to {place}/out (Permission denied); name another folder." in said.stdout
        ), said.stderr


def test_a_folder_whose_first_file_was_not_finished_is_begun_anew(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from prle.core import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as tmp: tmp.touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / V.CROPS)])
    assert len(os.listdir(tmp_path)) == 1
    V._open_folder(tmp_path, dict(size=32))
    assert (tmp_path / V.CROPS).exists()


def test_a_foreign_folder_is_left_alone(clips, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        V.extract(V.list_videos(clips), tmp_path, **QUICK)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(align="boxes"), "Did you mean 'box'"),
        (dict(engine="rey"), "Did you mean 'ray'"),
        (dict(count=0), "count must be at least 1, not 0"),
        (dict(every=0), "every must be at least 1"),
        (dict(workers=-1), "workers must be at least 0"),
        (dict(workers=0, engine="ray"), "workers must be at least 1"),
        (dict(size=4), "size must be at least 16"),
        (dict(align="chip", scale=0.9), "scale must be at least 1"),
    ],
)
def test_wrong_settings_stop_at_once(clips, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        V.extract(V.list_videos(clips), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns="subset"), "lacks subset"),
        (lambda t: t.assign(frame=1), "has frame, which"),
        (
            lambda t: t.assign(video="x"),
            "s1.mp4 and .*s2.mp4 have the same subset, video: clips, x",
        ),
        (lambda t: t.assign(video="a/b"), "the video 'a/b' cannot"),
        (lambda t: t.assign(subset=".."), "the subset '..' cannot"),
        (lambda t: t.assign(dataset=""), "the dataset '' cannot"),
        (lambda t: t.assign(distortion="CS:9"), "level of CS"),
    ],
)
def test_a_wrong_table_stops_at_once(clips, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        V.extract(change(V.list_videos(clips)), tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_no_face_at_all(tmp_path):
    faces = V.extract(
        table(write_clip(tmp_path / "a.mp4", faces=0, frames=2)).assign(label=0),
        tmp_path / "out",
        **QUICK,
    )
    assert faces.empty and list(faces) == [
        "path",
        "subset",
        "video",
        "label",
        "frame",
        "landmarks",
        "transform",
        "mask",
        "found",
        "person",
    ]
    assert (
        len(pd.read_csv(tmp_path / "out" / "dropped.csv")) == 2
        and pd.read_parquet(tmp_path / "out" / "faces.parquet").empty
    )


def test_scripts_without_a_guard_are_told(clips, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.replace('if __name__ == "__main__": ', ""))
    said = subprocess.run(
        [sys.executable, script, clips, tmp_path / "out"], capture_output=True, text=True
    ).stderr
    assert "worker processes do not start" in said and "__main__" in said
    assert not list((tmp_path / "out").glob("clips/*"))


# Damaged and paused videos


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    "A clip of 60 frames with key frames at 0, 20 and 40, of which two packets are damaged, and its mask video."
    folder = tmp_path_factory.mktemp("damaged")
    write_clip(folder / "plain.mp4", frames=60, size=(200, 200), mask=folder / "mask.mp4")
    encode = "-c:v libx264 -preset ultrafast -g 20 -pix_fmt yuv420p".split()
    ffmpeg("-i", folder / "plain.mp4", *encode, folder / "whole.mp4")
    shutil.copy(folder / "whole.mp4", folder / "hurt.mp4")
    damage(folder / "hurt.mp4", [25, 26])
    return folder


def test_damage_costs_frames_and_shifts_none(damaged, tmp_path):
    "Crops, landmarks, masks and numbers of the others are those of the undamaged video."
    videos = table(damaged / "hurt.mp4", damaged / "whole.mp4")
    videos = videos.assign(mask_file=str(damaged / "mask.mp4"))
    faces = V.extract(videos, tmp_path / "out", every=5, size=64, workers=0)
    hurt, whole = (faces[faces.video == name] for name in ("hurt", "whole"))
    assert whole.frame.tolist() == list(range(0, 60, 5))
    assert hurt.frame.tolist() == [0, 5, 10, 15, 20, 40, 45, 50, 55]
    assert reasons(tmp_path / "out") == {
        ("hurt", i): "cannot be decoded (its data are damaged)." for i in (25, 30, 35)
    }
    same = whole.set_index("frame").loc[hurt.frame]
    for column in ("path", "mask"):
        for ours, theirs in zip(hurt[column], same[column]):
            assert Path(ours).name == Path(theirs).name
            assert np.array_equal(
                read_image(tmp_path / "out" / ours), read_image(tmp_path / "out" / theirs)
            )


def test_a_distorted_copy_of_a_damaged_video_lacks_the_same_frames(damaged, tmp_path, lines):
    videos = table(damaged / "hurt.mp4").assign(distortion="CC:1 VC:1")
    faces = V.extract(videos, tmp_path / "out", every=5, size=64, workers=0)
    assert faces.frame.tolist() == [0, 5, 10, 15, 20, 40, 45, 50, 55]
    assert sorted(reasons(tmp_path / "out")) == [("hurt", i) for i in (25, 30, 35)]
    assert "12 frames, 9 faces, 3 dropped (3 cannot be decoded)" in "\n".join(lines)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_paused_video_has_the_frames_that_it_has(damaged, tmp_path, name):
    "A minute's pause after every twentieth frame."
    late = "setpts=PTS+floor(N/20)*60/TB"
    codec = "libvpx" if name == "a.webm" else "libx264"
    ffmpeg(
        *("-i", damaged / "plain.mp4", "-vf", late, "-fps_mode", "passthrough"),
        *("-c:v", codec, "-deadline", "realtime", tmp_path / name),
    )
    assert V.count_frames(tmp_path / name) == 60
    faces = V.extract(table(tmp_path / name), tmp_path / "out", count=4, size=64, workers=0)
    assert faces.frame.tolist() == [0, 19, 39, 59] and reasons(tmp_path / "out") == {}


@pytest.mark.parametrize("name, hurt, left", [("a.mkv", [], 60), ("a.mp4", [25, 26], 45)])
def test_every_command_counts_the_same_frames(damaged, tmp_path, name, hurt, left):
    "`faces`, `predict`, `forge` and the distortions, of a film with two pauses of a minute."
    film = tmp_path / "ann" / name
    film.parent.mkdir()
    late = "setpts=PTS+floor(N/20)*60/TB"
    codec = "-c:v libx264 -preset ultrafast -g 20 -fps_mode passthrough".split()
    ffmpeg("-i", damaged / "plain.mp4", "-vf", late, *codec, film)
    damage(film, hurt)
    crops = V.extract(table(film), tmp_path / "out", every=1, size=64, workers=0)
    seen = crop_file(film, [dict(size=64, align="similarity", scale=1.3)], count=999)
    faces, dropped = read_crops([film], 999, 64)
    distort_video(film, tmp_path / "copy.mp4", "CC:1 VC:1", seed=0)
    counts = dict(
        counted=V.count_frames(film),
        faces=len(crops) + len(reasons(tmp_path / "out")),
        predict=seen.frames,
        forge=len(faces) + len(dropped),
        distorted=V.count_frames(tmp_path / "copy.mp4"),
    )
    assert counts == dict.fromkeys(counts, 60)
    assert crops.frame.tolist() == seen.places[0] == [face.frame for face in faces]
    assert len(crops) == left


def test_masks_of_a_video_with_other_pixels(damaged, tmp_path):
    "Both are made square, so the mask fits."
    for name in ("plain", "mask"):
        squeezed = ("-vf", "scale=150:200,setsar=4/3", "-c:v", "mpeg4", "-q:v", 2)
        ffmpeg("-i", damaged / f"{name}.mp4", "-frames:v", 2, *squeezed, tmp_path / f"{name}.mp4")
    videos = table(tmp_path / "plain.mp4").assign(mask_file=str(tmp_path / "mask.mp4"))
    faces = V.extract(videos, tmp_path / "out", **QUICK)
    [frame] = V.read_frames(tmp_path / "plain.mp4", [1])
    assert frame.shape == (200, 200, 3) and faces.frame.tolist() == [0, 1]
    assert (faces["mask"] != "").all() and reasons(tmp_path / "out") == {}


# Masks and distortions


def test_masks_take_the_same_warp(tmp_path):
    file = write_clip(tmp_path / "a.mp4", frames=3, mask=tmp_path / "m.mp4")
    faces = V.extract(
        table(file).assign(mask_file=str(tmp_path / "m.mp4")),
        tmp_path / "out",
        count=3,
        size=128,
        workers=0,
    )
    for row, mask in zip(faces.itertuples(), V.read_frames(tmp_path / "m.mp4", [0, 1, 2])):
        assert row.mask == f"clips/a/masks/{row.frame:04d}.png"
        crop = cv2.imread(str(tmp_path / "out" / row.mask), cv2.IMREAD_UNCHANGED)
        ys, xs = np.nonzero(mask[..., 0] > 128)
        corners = np.array(
            [(xs.min(), ys.min()), (xs.max(), ys.min()), (xs.max(), ys.max()), (xs.min(), ys.max())]
        )
        painted = np.zeros((128, 128), np.uint8)
        cv2.fillConvexPoly(
            painted, np.rint(move_points(corners, row.transform.reshape(2, 3))).astype(int), 255
        )
        assert crop.shape == (128, 128) and set(np.unique(crop)) <= {0, 255}
        assert ((crop > 0) & (painted > 0)).sum() / ((crop > 0) | (painted > 0)).sum() > 0.93


def test_without_a_mask_video_the_mask_is_what_the_fake_changed(tmp_path):
    "As for FaceShifter: a folder of pictures that differ from the untouched ones in a square on the nose."
    boxes, file = [], write_clip(tmp_path / "a.mp4", frames=2)
    for folder in ("real", "fake"):
        (tmp_path / folder).mkdir()
    for i, frame in enumerate(V.read_frames(file, [0, 1])):
        x, y = np.rint(find_largest(frame).landmarks[30]).astype(int)
        boxes.append(np.zeros(frame.shape[:2], np.uint8))
        boxes[i][y - 8 : y + 8, x - 8 : x + 8] = 64
        fake = np.where((boxes[i] > 0)[..., None], frame ^ 64, frame)
        for folder, picture in (("real", frame), ("fake", fake)):
            write_png(tmp_path / folder / f"{i}.png", picture)
    faces = V.extract(
        table(tmp_path / "fake").assign(untouched_file=str(tmp_path / "real")),
        tmp_path / "out",
        count=2,
        size=128,
        workers=0,
    )
    assert len(faces) == 2
    for row, box in zip(faces.itertuples(), boxes):
        crop = cv2.imread(str(tmp_path / "out" / row.mask), cv2.IMREAD_UNCHANGED)
        assert 60 < crop.max() < 80 and np.array_equal(
            crop, warp_crop(box, np.reshape(row.transform, (2, 3)), 128)
        )  # grey, not a threshold
    colours = np.array([[[30, 0, 0], [0, 0, 255]]], np.uint8)
    assert (
        V.difference_mask(colours, np.zeros_like(colours)).tolist() == [[9, 29]]
        and V.difference_mask(frame, frame).max() == 0
    )
    with pytest.raises(ValueError, match="different sizes"):
        V.difference_mask(frame, frame[:5])


def test_a_bad_mask_costs_the_mask(tmp_path):
    (tmp_path / "text.mp4").write_text("not a mask")
    files = [write_clip(tmp_path / f"{name}.mp4", frames=3) for name in "abcd"]
    write_clip(tmp_path / "x.mp4", frames=2, mask=tmp_path / "short.mp4")
    write_clip(tmp_path / "x.mp4", frames=3, size=(240, 240), mask=tmp_path / "narrow.mp4")
    masks = [str(tmp_path / f"{name}.mp4") for name in ("text", "missing", "short", "narrow")]
    faces = V.extract(table(*files).assign(mask_file=masks), tmp_path / "out", **QUICK)
    assert len(faces) == 12
    assert {video: (rows["mask"] != "").sum() for video, rows in faces.groupby("video")} == dict(
        a=0, b=0, c=2, d=0
    )
    assert reasons(tmp_path / "out") == {
        ("a", -1): "mask: not a video that can be decoded.",
        ("b", -1): "mask: no such file.",
        ("c", 2): "mask: the video ends before this frame (it has 2).",
        **{
            ("d", i): "mask: it has another size than the frame (240x240, not 320x240)."
            for i in range(3)
        },
    }


def test_pictures_are_distorted_before_detection(tmp_path):
    file = tmp_path / "a"
    for i, frame in enumerate(V.read_frames(write_clip(tmp_path / "a.mp4", frames=2), [0, 1])):
        write_png(file / f"{i}.png", frame)
    faces = V.extract(table(file).assign(distortion="CC:2 GNC:1"), tmp_path / "out", **QUICK)
    for row, frame in zip(faces.itertuples(), V.read_frames(file, [0, 1])):
        noisy = distort_frame(frame, "CC:2 GNC:1", rng(0, "a", row.frame))
        assert np.array_equal(
            read_image(tmp_path / "out" / row.path),
            warp_softly(noisy, align(find_largest(noisy), noisy.shape, size=64), 64),
        )


@pytest.mark.parametrize("meta", ["CC:2", "GB:2 VC:5"])
def test_a_video_is_distorted_as_a_whole(tmp_path, meta):
    "With the encodings of the official fakes, which a real would otherwise lack."
    file = write_clip(tmp_path / "a.mp4", frames=3)
    faces = V.extract(table(file).assign(distortion=meta), tmp_path / "out", **QUICK)
    same = V.extract(
        table(distort_video(file, tmp_path / "b.mp4", meta, seed=0, via_xvid=True)),
        tmp_path / "same",
        **QUICK,
    )
    assert [(tmp_path / "out" / p).read_bytes() for p in faces.path] == [
        (tmp_path / "same" / p).read_bytes() for p in same.path
    ]


def test_another_distortion_is_done_again(tmp_path, capsys, shown):
    videos = table(write_clip(tmp_path / "a.mp4", frames=1))
    V.extract(videos, tmp_path / "out", **QUICK)
    V.extract(videos.assign(distortion="CC:5"), tmp_path / "out", **QUICK)
    assert "done before" not in capsys.readouterr().out


def test_pictures_know_no_video_compression(tmp_path):
    write_png(tmp_path / "a" / "0.png", photograph())
    assert V.extract(
        table(tmp_path / "a").assign(distortion="VC:5"), tmp_path / "out", **QUICK
    ).empty
    assert "VC compresses videos" in reasons(tmp_path / "out")["a", -1]


def test_a_photograph_is_a_video_of_one_frame(tmp_path):
    write_png(tmp_path / "a%d.png", draw_frame((320, 240), [photograph()], 0)[0])
    faces = V.extract(table(tmp_path / "a%d.png", tmp_path / "none.png"), tmp_path / "out", **QUICK)
    assert faces.frame.tolist() == [0] and reasons(tmp_path / "out") == {
        ("none", -1): "no such file."
    }


# Inputs


@pytest.fixture
def tree(tmp_path):
    "Videos at two depths, a folder of frames, and things that are neither."
    root = tmp_path / "tree"
    for name in ("b10.mp4", "b9.mp4", "day/a.MOV", "twin.mp4", "twin.avi"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for i in (10, 9, 8):
        write_png(root / "day" / "stills" / f"f{i}.png", photograph())
    (root / "words.txt").write_text("ffmpeg would film this\n" * 50)
    for name in (
        "notes.txt",
        "._b9.mp4",
        ".hidden/c.mp4",
        "old/extraction.json",
        "old/clips/x.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_everything_below_a_folder(tree):
    found = V.list_videos(tree)
    assert list(zip(found.subset, found.video)) == [
        ("tree", "b9"),
        ("tree", "b10"),
        ("tree_day", "a"),
        ("tree_day", "stills"),
        ("tree", "twin.avi"),
        ("tree", "twin.mp4"),
    ]
    assert all(Path(file).is_absolute() for file in found.file)


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tree):
    before = V.list_videos(tree)
    (tree / "day" / "loop").symlink_to(tree)
    pd.testing.assert_frame_equal(V.list_videos(tree), before)


def test_dots_in_a_path_are_no_names(tree, monkeypatch):
    monkeypatch.chdir(tree / "day")
    assert set(V.list_videos("..").subset) == set(V.list_videos(tree).subset)


def test_files_and_folders_of_pictures(tree):
    found = V.list_videos([tree / "b9.mp4", str(tree / "day" / "stills"), tree / "b9.mp4"])
    assert list(zip(found.subset, found.video)) == [("tree", "b9"), ("day", "stills")]


@pytest.mark.parametrize(
    "name, message",
    [
        ("words.txt", "words.txt: neither a video"),
        ("none", "none: no such file or folder .*--root"),
        ("notes.txt", "notes.txt: neither a video"),
        ("old", "old: no video and no picture"),
    ],
)
def test_other_inputs_are_named(tree, name, message):
    with pytest.raises(FaceError, match=message):
        V.list_videos([tree / "b9.mp4", tree / name])


def test_a_folder_of_photographs(tmp_path):
    for i in (1, 2, 10):
        write_png(tmp_path / "ann" / f"{i}.png", photograph("s5", 92))
    (tmp_path / "ann" / "3.jpg").write_bytes(b"not a picture")
    cv2.imwrite(str(tmp_path / "ann" / "4.png"), background((200, 200)))
    videos = V.list_videos(tmp_path / "ann", "frames")
    faces = V.extract(videos, tmp_path / "out", size=64, workers=0)
    assert faces.frame.tolist() == [1, 2, 10]
    assert reasons(tmp_path / "out") == {
        ("ann", 3): "3.jpg: cannot be read (not a picture, or damaged from its beginning).",
        ("ann", 4): "no face found.",
    }


def test_frames_as_pictures_are_the_video(tmp_path):
    file = write_clip(tmp_path / "a.mp4", frames=3, mask=tmp_path / "m.mp4")
    for name, source in (("frames", file), ("masks", tmp_path / "m.mp4")):
        for i, frame in enumerate(V.read_frames(source, [0, 1, 2])):
            write_png(tmp_path / name / f"{i}.png", frame)
    videos = table(file, tmp_path / "frames").assign(
        mask_file=[str(tmp_path / "m.mp4"), str(tmp_path / "masks")], video=["a", "b"]
    )
    V.extract(videos, tmp_path / "out", **QUICK)
    one, other = (
        contents(tmp_path / "out" / "clips" / "a"),
        contents(tmp_path / "out" / "clips" / "b"),
    )
    one.pop("video.json"), other.pop("video.json")
    assert len(one) == 8 and one == other


@pytest.mark.parametrize("masks", ["video", "folder"])
def test_some_frames_as_pictures_take_the_masks_of_their_numbers(tmp_path, masks):
    "Every fourth frame, as extracted for a detector; the last one's mask is missing."
    file = write_clip(tmp_path / "a.mp4", frames=9, mask=tmp_path / "video.mp4")
    for i, frame in zip((0, 4, 8), V.read_frames(file, [0, 4, 8])):
        write_png(tmp_path / "frames" / f"{i:04d}.png", frame)
    for i, mask in enumerate(V.read_frames(tmp_path / "video.mp4", range(8))):
        write_png(tmp_path / "folder" / f"{i}.png", mask)
    mask_file = tmp_path / ("video.mp4" if masks == "video" else "folder")
    videos = table(tmp_path / "frames", file).assign(
        mask_file=[str(mask_file), str(tmp_path / "video.mp4")], video=["frames", "whole"]
    )
    faces = V.extract(videos, tmp_path / "out", **QUICK)
    assert faces.frame.tolist() == [0, 4, 8] * 2
    some, whole = (faces[faces.video == name] for name in ("frames", "whole"))
    for one, other in list(zip(some["mask"], whole["mask"]))[: 2 if masks == "folder" else 3]:
        assert (tmp_path / "out" / one).read_bytes() == (tmp_path / "out" / other).read_bytes()
    assert reasons(tmp_path / "out") == (
        {("frames", 8): "mask: there is no picture for this frame (only 8)."}
        if masks == "folder"
        else {}
    )


@pytest.mark.parametrize("names", [("f0", "f4"), ("0", "00")])
def test_pictures_without_numbers_get_no_masks(tmp_path, names):
    file = write_clip(tmp_path / "a.mp4", frames=5, mask=tmp_path / "m.mp4")
    for name, frame in zip(names, V.read_frames(file, [0, 4])):
        write_png(tmp_path / "frames" / f"{name}.png", frame)
    faces = V.extract(
        table(tmp_path / "frames").assign(mask_file=str(tmp_path / "m.mp4")),
        tmp_path / "out",
        **QUICK,
    )
    assert faces.frame.tolist() == [0, 1] and (faces["mask"] == "").all()
    assert "no frame numbers" in reasons(tmp_path / "out")["frames", -1]


def test_other_pictures_in_the_folder_are_done_again(tmp_path, capsys, shown):
    for i in range(2):
        write_png(tmp_path / "ann" / f"{i}.png", photograph("s5", 92))
    videos = V.list_videos(tmp_path / "ann")
    V.extract(videos, tmp_path / "out", **QUICK)
    write_png(tmp_path / "ann" / "2.png", photograph("s1", 92))
    assert len(V.extract(videos, tmp_path / "out", **QUICK)) == 3
    assert "done before" not in capsys.readouterr().out


def test_frames_in_colour_keep_their_channels(tmp_path):
    image = np.full((64, 64, 3), (200, 120, 40), np.uint8)
    [frame] = V.read_frames(write_frames(tmp_path / "a.mp4", [image] * 2, (64, 64)), [1])
    assert np.abs(frame.astype(int) - image).max() < 12


# Damage and strangers


@pytest.mark.parametrize(
    "name, content",
    [
        ("video.json", b"[]"),
        ("video.json", b"{"),
        ("video.json", b'{"origin": {}}'),
        ("video.json", b"[" * 10**5),
        ("faces.parquet", b"garbage"),
    ],
)
def test_a_video_with_a_damaged_record_is_cropped_again(
    clips, whole, tmp_path, name, content, capsys, shown
):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "clips" / "s1" / name).write_bytes(content)
    V.extract(V.list_videos(clips), tmp_path / "out", **QUICK)
    assert (
        contents(tmp_path / "out") == contents(whole)
        and "(2 of them done before)" in capsys.readouterr().out
    )


def test_what_others_put_into_the_output_is_left_alone(clips, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in (".backup-20240101", ".notes-0123abcd.txt", "clips/.old-0123abcd"):
        (out / name).mkdir()
    before = contents(out)
    V.extract(V.list_videos(clips), out, **QUICK)
    assert contents(out) == before and all(
        (out / name).is_dir()
        for name in (".backup-20240101", ".notes-0123abcd.txt", "clips/.old-0123abcd")
    )
    (out / "clips" / "s1" / "thesis.tex").write_text("three years")
    (out / "clips" / "s1" / "video.json").unlink()
    before = contents(out)
    with pytest.raises(FileExistsError, match="s1 holds 1 files that were not made"):
        V.extract(V.list_videos(clips), out, **QUICK)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp", "a\0b", "NUL", None, 3])
@pytest.mark.parametrize("column", ["dataset", "subset", "video"])
def test_no_name_leads_out_of_the_output(clips, tmp_path, column, name):
    videos = V.list_videos(clips / "s1.mp4").assign(dataset="x").assign(**{column: [name]})
    with pytest.raises(ValueError, match=f"the {column} .* cannot name a file"):
        V.extract(videos, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_no_link_leads_out_of_the_output(clips, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    shutil.rmtree(tmp_path / "out" / "clips")
    (tmp_path / "out" / "clips").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="leads out of"):
        V.extract(V.list_videos(clips), tmp_path / "out", **QUICK)
    assert not any((tmp_path / "theirs").iterdir())


def test_frames_that_are_too_large_are_not_decoded(clips, monkeypatch):
    monkeypatch.setattr("prle.trust.MAX_PIXELS", 1000)
    with pytest.raises(V.FaceError, match="s1.mp4: promises .* pixels; at most 1,000"):
        list(V.read_frames(clips / "s1.mp4", [0]))


@pytest.mark.parametrize("how", [dict(count=0), dict(count=-1), dict(every=-2)])
def test_frames_are_counted_from_one(how):
    with pytest.raises(ValueError, match="must be at least 1"):
        V.sample_frames(10, **how)


def test_videos_that_leave_the_table_are_told(clips, tmp_path, lines):
    for name in ("s1", "s2"):
        V.extract(table(clips / f"{name}.mp4"), tmp_path / "out", **QUICK)
    assert [line for line in lines if line.startswith("1 videos of an earlier call leave")]
    assert (tmp_path / "out/clips/s1/video.json").exists()


def test_a_command_waits_for_the_one_that_writes_there(clips, tmp_path, monkeypatch):
    "Neither deletes what the other has begun."
    held = []
    monkeypatch.setattr(
        V, "crop_videos", lambda videos, out, **how: held.extend(os.listdir(tmp_path))
    )
    monkeypatch.setattr("prle.cli._gave_nothing", lambda out: False)
    assert main(["faces", str(clips), "--out", str(tmp_path / "out")]) == 0
    assert held == [".out.lock"] and os.listdir(tmp_path) == []

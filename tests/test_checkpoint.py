"""prle.training.checkpoint: a state is whole or absent, and damage is found."""

import errno
import os
import shutil
import subprocess

import pytest
import torch
from safetensors import SafetensorError

import prle.training.checkpoint
from prle.training.checkpoint import Checkpoint, check_same, load_checkpoint, save_checkpoint
from prle.core import file_digest, temporary_name
from prle.trust import read_sealed, read_tensors, write_sealed, write_tensors


def write(folder, last=3):
    for n in range(1, last + 1):
        save_checkpoint(
            folder,
            Checkpoint(
                n,
                dict(model=dict(w=torch.arange(6.0).view(2, 3) + n)),
                dict(stream=torch.arange(n), deep=dict(a=[1, 2.5, None])),
                dict(auc=n / 7),
            ),
        )
    return folder


def test_everything_comes_back_and_two_stay(tmp_path):
    found = load_checkpoint(write(tmp_path / "c", 4))
    assert (
        found.epochs == 4
        and found.record == dict(auc=4 / 7)
        and found.state["deep"] == dict(a=[1, 2.5, None])
    )
    assert torch.equal(
        found.tensors["model"]["w"], torch.arange(6.0).view(2, 3) + 4
    ) and torch.equal(found.state["stream"], torch.arange(4))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["epoch-3", "epoch-4"]


class Tied(torch.nn.Module):
    "Two layers with one weight, as of an encoder and its decoder, and a view of it."

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.register_buffer("row", self.one.weight.detach()[1])


def test_weights_that_modules_share_survive(tmp_path):
    "In a checkpoint and in the file of a run, and are shared afterwards."
    net = Tied()
    state = net.state_dict()
    save_checkpoint(tmp_path / "c", Checkpoint(1, dict(model=state, best=state), {}, {}))
    write_tensors(tmp_path / "model.safetensors", state)
    found = load_checkpoint(tmp_path / "c").tensors
    for tensors in (*found.values(), read_tensors(tmp_path / "model.safetensors")):
        twin = Tied()
        twin.load_state_dict(tensors)
        assert tensors.keys() == state.keys() and twin.other.weight is twin.one.weight
        assert all(torch.equal(twin.state_dict()[name], state[name]) for name in state)


def test_ten_comes_after_nine(tmp_path):
    assert load_checkpoint(write(tmp_path, 10)).epochs == 10


def test_there_may_be_none(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None and load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_set_aside_and_named(tmp_path, file, harm):
    path = write(tmp_path) / "epoch-3" / file
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[2 * len(data) // 3] ^= 1
    path.write_bytes(dict(flip=data, cut=data[:-10], empty=b"", remove=b"")[harm])
    if harm == "remove":
        path.unlink()
    with pytest.warns(
        UserWarning,
        match=f"epoch-3/{file} (is|has|lacks|holds).*; the checkpoint is set aside "
        "as epoch-3.damaged-1 and training goes on after epoch 2",
    ):
        assert load_checkpoint(tmp_path).epochs == 2
    assert (tmp_path / "epoch-3.damaged-1").is_dir() and load_checkpoint(tmp_path).epochs == 2


def test_two_damaged_ones_leave_nothing(tmp_path):
    write(tmp_path)
    for n in (2, 3):
        (tmp_path / f"epoch-{n}/state.pt").write_bytes(b"")
    (tmp_path / "epoch-3.damaged-1").mkdir()
    with pytest.warns(UserWarning) as caught:
        assert load_checkpoint(tmp_path) is None
    assert [
        "epoch-3.damaged-2" in str(caught[0].message),
        "epoch-2.damaged-1" in str(caught[1].message),
    ] == [True, True]
    assert all("training starts anew" in str(w.message) for w in caught)


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 100, b"PK\x03\x04" + bytes(200), b"\x80\x02cos\nsystem\n."],
    ids=["empty", "garbage", "zip", "pickle"],
)
def test_what_is_no_state_is_set_aside_even_if_its_fingerprint_fits(tmp_path, file, content):
    forge(write(tmp_path) / "epoch-3", file, lambda path: path.write_bytes(content))
    with pytest.warns(
        UserWarning, match=f"epoch-3/{file} holds no .*; the checkpoint is set aside"
    ) as caught:
        assert load_checkpoint(tmp_path).epochs == 2
    assert len(str(caught[0].message)) < 600 and "\n" not in str(caught[0].message)


def forge(folder, file, change):
    "Change a file and make its fingerprint fit."
    change(folder / file)
    note = read_sealed(folder / "checkpoint.json")
    write_sealed(
        folder / "checkpoint.json",
        note | dict(files=note["files"] | {file: file_digest(folder / file)}),
    )


def test_nothing_in_it_is_executed(tmp_path):
    "A state.pt with a pickled call, its fingerprint made to fit, is refused."

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    forge(write(tmp_path) / "epoch-3", "state.pt", lambda path: torch.save(Bomb(), path))
    with pytest.warns(UserWarning, match="state.pt holds no state of a training"):
        assert load_checkpoint(tmp_path).epochs == 2
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "checkpoint.json"])
def test_pipes_do_not_stop_it(tmp_path, file):
    (write(tmp_path) / "epoch-3" / file).unlink()
    os.mkfifo(tmp_path / "epoch-3" / file)
    with pytest.warns(UserWarning, match=f"{file} is no ordinary file"):
        assert load_checkpoint(tmp_path).epochs == 2


@pytest.mark.parametrize("note", ["[]", "null", "3", '{"epochs": 3}', "[" * 10**5, "\x00"])
def test_a_note_that_is_none_is_set_aside(tmp_path, note):
    (write(tmp_path) / "epoch-3/checkpoint.json").write_text(note)
    with pytest.warns(UserWarning, match="epoch-3/checkpoint.json") as caught:
        assert load_checkpoint(tmp_path).epochs == 2
    assert len(str(caught[0].message)) < 600


def test_every_flipped_bit_is_found(tmp_path):
    whole = write(tmp_path / "whole", 1) / "epoch-1"
    for file in ("model.safetensors", "state.pt", "checkpoint.json"):
        content = (whole / file).read_bytes()
        for at in range(0, len(content), 7):
            folder = tmp_path / f"{file}-{at}"
            shutil.copytree(whole, folder / "epoch-1")
            (folder / "epoch-1" / file).write_bytes(
                content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            )
            with pytest.warns(UserWarning, match=file):
                assert load_checkpoint(folder) is None


def test_folders_of_others_are_not_deleted(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter").touch()
    for name in ("epoch-0", ".epoch-backup"):
        (tmp_path / name).mkdir()
    (tmp_path / "epoch-0/mine").touch()
    (tmp_path / "epoch-00").symlink_to(tmp_path / "thesis")
    write(tmp_path, 5)
    assert (tmp_path / "thesis/chapter").exists() and (tmp_path / ".epoch-backup").exists()
    assert (tmp_path / "epoch-0/mine").exists() or (tmp_path / "epoch-00").is_symlink()


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    write(tmp_path)
    for name in (temporary_name(), ".prle-del-0123abcd"):
        (tmp_path / name).mkdir()
    load_checkpoint(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-2", "epoch-3"]


@pytest.mark.parametrize("library", ["safetensors", "torch", "python"])
def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path, monkeypatch, library):
    "As the libraries tell it: safetensors in words, torch by an error after the system's, Python by that."
    write(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(*args):
        if library == "python":
            raise full
        if library == "safetensors":
            raise SafetensorError(
                f"Error while serializing: I/O error: {full.strerror} (os error 28)"
            )
        try:
            raise full
        finally:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
            )

    monkeypatch.setattr(
        *(
            (prle.training.checkpoint, "write_tensors")
            if library == "safetensors"
            else (torch, "save")
        ),
        save,
    )
    with pytest.raises(
        OSError,
        match="No space left on device: cannot write the checkpoint .*epoch-4. Earlier ones are whole",
    ) as e:
        save_checkpoint(tmp_path, Checkpoint(4, dict(model=dict(w=torch.ones(2))), {}, {}))
    assert e.value.errno == errno.ENOSPC and sorted(p.name for p in tmp_path.iterdir()) == [
        "epoch-2",
        "epoch-3",
    ]
    assert load_checkpoint(tmp_path).epochs == 3


@pytest.mark.parametrize("size", [1, 16, 64, 128])
def test_a_disk_that_is_really_full(tmp_path, size):
    "On a file system of some kilobytes, wherever in the checkpoint it ends."
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size + 48}k", "tmpfs", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("only root may mount")
    try:

        def save(n):
            return save_checkpoint(
                tmp_path,
                Checkpoint(
                    n,
                    dict(model=dict(w=torch.ones(n * 2000))),
                    dict(stream=torch.ones(n * 4000)),
                    {},
                ),
            )

        save(1)
        with pytest.raises(OSError, match="No space left on device: cannot write the checkpoint"):
            for n in range(2, 20):
                save(n)
        assert load_checkpoint(tmp_path).epochs >= 1 and all(
            p.name.startswith("epoch-") for p in tmp_path.iterdir()
        )
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_another_training_is_refused_with_every_difference():
    a, b = (
        dict(config=dict(lr=0.1, seed=0), mask="None", train=dict(faces=12)),
        dict(config=dict(lr=0.2, seed=0), mask="RandomMask()", train=dict(faces=12)),
    )
    check_same(a, dict(a), "here")
    check_same(dict(sizes=[1, 2]), dict(sizes=(1, 2)), "here")
    with pytest.raises(
        ValueError,
        match=r"here holds a checkpoint of another training: config.lr is 0.1 there and 0.2 here; "
        r"mask is 'None' there and 'RandomMask\(\)' here",
    ):
        check_same(a, b, "here")
    with pytest.raises(ValueError, match="detector.width is None there and 0.5 here"):
        check_same({}, dict(detector=dict(width=0.5)), "here")

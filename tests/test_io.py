"""On a full disk, writing HDF5 fails aloud, and what a file says is done is there."""

import errno
import subprocess
import sys

import h5py
import numpy as np
import pytest
from builders import ROOT, refuses

from minddiff_utils import io
from minddiff_utils.io import InputError, check_room, content_hash, open_to_write


@pytest.fixture
def disk(tmp_path):
    """A disk whose size in KiB a test sets; without the right to mount one, it is left out."""

    def of_size(n):
        options = ["-o", f"size={n}k", "tmpfs", str(tmp_path)]
        answer = subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True)
        if answer.returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(tmp_path)
        return tmp_path

    mounted = []
    yield of_size
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# As `reconstruct` writes: a row at a time, then how many are done. Without room to spare, so that
# the disk is full in the midst of it.
WRITE = """
import os, sys
import numpy as np
from minddiff_utils import io
io.SPARE = -(2**40)
values = np.load(sys.argv[1])
try:
    with io.open_to_write(sys.argv[2]) as file:
        file.create_dataset("pictures", values.shape, values.dtype)
        for k in range(len(values)):
            file["pictures"][k] = values[k]
            file.attrs["done"] = k + 1
            file.flush()
    print("whole", flush=True)
except (OSError, RuntimeError):
    print("raised", flush=True)
os._exit(0)  # HDF5 may not survive its own end after this
"""


@pytest.mark.parametrize("size", [44, 400])
def test_nothing_is_lost_in_silence(disk, size, tmp_path_factory):
    pictures = np.random.default_rng(0).integers(1, 256, (4, 64, 64, 3), np.uint8)
    source, path = tmp_path_factory.mktemp("source") / "pictures.npy", disk(size) / "file.h5"
    np.save(source, pictures)
    command = [sys.executable, "-c", WRITE, str(source), str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout == ("whole\n" if size == 400 else "raised\n"), answer.stderr
    try:
        with h5py.File(path, "r") as file:
            done = int(file.attrs["done"])
            found = file["pictures"][:done]
    except (OSError, KeyError):  # so damaged that a run begins again
        return
    assert done == 4 or size < 400
    np.testing.assert_array_equal(found, pictures[:done])


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "file.h5"
    check_room(path, 0)
    for n_bytes in (2**60, io.shutil.disk_usage(tmp_path).free):
        with pytest.raises(InputError, match=r"file.h5 cannot be written: no space.*Make room"):
            open_to_write(path, "w", n_bytes)
    assert not path.exists()


def test_what_cannot_be_read_now_is_not_taken_for_undone(tmp_path, monkeypatch):
    (tmp_path / "file.h5").write_text("damaged")
    assert io.rows_done(tmp_path / "file.h5", "r") == 0
    assert io.rows_done(tmp_path / "none.h5", "r") == 0

    def locked(*_):
        raise BlockingIOError(errno.EAGAIN, "unable to lock file")

    monkeypatch.setattr(io.h5py, "File", locked)
    refuses("is open for writing elsewhere", io.rows_done, tmp_path / "file.h5", "r")


def test_digest_is_that_of_the_content_and_of_nothing_else():
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    first = content_hash([("a", rows), ("b", rows[:1])])
    assert content_hash([("a", np.asfortranarray(rows)), ("b", rows.copy()[:1])]) == first
    others = [
        [("a", rows[[1, 0, 2]]), ("b", rows[:1])],  # the same values in another order
        [("a", -rows), ("b", rows[:1])],
        [("a", rows.reshape(2, 3)), ("b", rows[:1])],
        [("a", rows.view(np.int32)), ("b", rows[:1])],
        [("a", rows), ("c", rows[:1])],
        [("b", rows[:1]), ("a", rows)],
        [("a", rows[:2]), ("b", rows[2:])],
        [("a", rows)],
    ]
    assert len({first, *map(content_hash, others)}) == 1 + len(others)
    assert len({content_hash([("", np.zeros(shape))]) for shape in ((), 0, 1, (0, 2))}) == 4


def test_a_bit_that_flips_is_an_error_and_no_other_number(tmp_path):
    path, values = tmp_path / "a.h5", np.arange(12, dtype=np.float32).reshape(3, 4) + 0.5
    with open_to_write(path) as file:
        io.row_dataset(file, "a", values.shape, values.dtype)[...] = values
        assert io.row_dataset(file, "none", (3, 0), values.dtype).shape == (3, 0)
    content = bytearray(path.read_bytes())
    content[content.index(values[1].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["a"][0], values[0])
        with pytest.raises(OSError, match="filter returned failure"):
            file["a"][1]

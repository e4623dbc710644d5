"""What files hold: copies, pictures and trials never written; and what HDF5 says of its files."""

import errno

import h5py
import numpy as np
import pytest
from builders import refuses, write_hdf5
from test_own import made  # noqa: F401

from minddiff_utils.datasets import check_own, load_subject, recording
from minddiff_utils.datasets.recording import trial_fault
from minddiff_utils.io import UnreadableError, unreadable

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
X = RNG.normal(size=(48, 10))


def with_rows(values, rows, by):
    values = values.copy()
    values[rows] = by
    return values


TESTED = {"pictures": with_rows(PICTURES, [8, 11], PICTURES[[1, 2]])}
FOLDED = {"pictures": with_rows(PICTURES, 4, PICTURES[0]), "split": None, "fold": np.arange(12) % 3}
TWICE = {"responses": with_rows(X, slice(8, 12), X[:4])}
FAULTS = {
    "cast from 0 to 1": ({"pictures": PICTURES // 128}, "hold values from 0 to 1; expected 0 to"),
    "black": ({"pictures": PICTURES * 0}, "hold values from 0 to 0; expected 0 to 255"),
    "unwritten": ({"pictures": with_rows(PICTURES, 3, 0)}, "one colour throughout in picture 3"),
    "tested": (TESTED, "same pixels: test pictures 8, 11 (the first is training picture 1)"),
    "in two folds": (FOLDED, "same pixels: test picture 0 (the first is training picture 4)"),
    "cut off": ({"responses": with_rows(X, slice(30, 48), 0)}, "for trials 30, 31, 32 and 15 more"),
    "twice": (TWICE, "in trials 8, 9, 10 and 1 more (the first equals trial 0)"),
}


@pytest.mark.parametrize(("changes", "said"), FAULTS.values(), ids=FAULTS)
def test_content_that_no_shape_shows(made, changes, said):  # noqa: F811
    path, whole = made
    write_hdf5(path, {**whole, **changes, "session": None})
    (fault,) = check_own(path)
    assert fault.startswith(f"{path}: ") and said in fault
    assert refuses("", load_subject, "own", path, "S1") == fault


def test_copies_in_training_share_a_label_and_are_no_fault(made, monkeypatch):  # noqa: F811
    path, whole = made
    copied = with_rows(whole["pictures"], [5, 7], whole["pictures"][2])
    write_hdf5(path, {**whole, "pictures": copied})
    assert check_own(path) == []
    monkeypatch.setattr(recording, "BLOCK_BYTES", 500)  # two pictures at a time
    subject = load_subject("own", path, "S1")
    assert subject.picture_of(range(12)).tolist() == [2 if i in (5, 7) else i for i in range(12)]


@pytest.mark.parametrize("dtype", ["f4", "i2"])
@pytest.mark.parametrize("n_voxels", [2, 5, 300])
def test_trials_that_agree_by_chance_are_no_fault(dtype, n_voxels):
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5 if n_voxels < 10 else 5, (200, n_voxels)).astype(dtype)
    assert trial_fault(counts) == ""
    many = rng.normal(0, 500, (200, 60)).astype(dtype)
    assert "zero in all voxels for trial 7:" in trial_fault(with_rows(many, 7, 0))
    assert "in trial 9 (the first equals trial 4)" in trial_fault(with_rows(many, 9, many[4]))


# --- files and links of HDF5 ----------------------------------------------------------------------

LOCK = "Unable to open file (unable to lock file, errno = {}, error message = '…')"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BlockingIOError(errno.EAGAIN, LOCK.format(errno.EAGAIN)), "open for writing elsewhere"),
        (OSError(LOCK.format(errno.ENOLCK)), "HDF5_USE_FILE_LOCKING=FALSE"),
        (PermissionError(errno.EACCES, "…"), "may not be read by you (Permission denied)"),
        (OSError(errno.ESTALE, "…"), "cannot be reached (Stale file handle)"),
        (OSError("file read failed: errno = 5, error message"), "cannot be reached (Input/output"),
        (OSError("inflate() failed"), "is damaged"),
        (EOFError(), "is damaged"),
    ],
)
def test_what_the_system_refuses_is_not_damage(tmp_path, error, said):
    found = unreadable(tmp_path / "x.h5", error, "is damaged")
    assert said in str(found) and str(found).startswith(f"{tmp_path / 'x.h5'} ")
    assert isinstance(found, UnreadableError) == (said != "is damaged")


def virtual(file, source):
    layout = h5py.VirtualLayout(PICTURES.shape, "u1")
    layout[:] = h5py.VirtualSource(*source, PICTURES.shape)
    file.create_virtual_dataset("pictures", layout)


def unknown_filter(file):
    form, space = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple(PICTURES.shape)
    form.set_chunk(PICTURES.shape)
    form.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    h5py.h5d.create(file.id, b"pictures", h5py.h5t.NATIVE_UINT8, space, form)


STOLEN = {"external": [("/etc/passwd", 0, PICTURES.size)]}
LINKS = {
    "filter": unknown_filter,
    "external link": lambda f: f.update(pictures=h5py.ExternalLink("gone.h5", "/p")),
    "virtual": lambda f: virtual(f, ("gone.h5", "p")),
    "storage": lambda f: f.create_dataset("pictures", PICTURES.shape, "u1", **STOLEN),
    "huge": lambda f: f.create_dataset("pictures", (12, 20_000, 20_000, 3), "u1", chunks=True),
}
SAID = {"storage": "not HDF5", "huge": "2048 or fewer"}
SAID["filter"] = "filter 32015, which is not installed"


@pytest.mark.parametrize("kind", LINKS)
def test_pictures_that_are_elsewhere_or_nowhere_are_named(made, kind):  # noqa: F811
    path, whole = made
    write_hdf5(path, {**whole, "pictures": None})
    with h5py.File(path, "a") as file:
        LINKS[kind](file)
    (fault,) = check_own(path)
    assert fault.startswith(f"{path}: `pictures` ") and SAID.get(kind, "") in fault
    assert "delete" not in fault.lower()


def test_pictures_in_a_file_beside_are_read(made):  # noqa: F811
    path, whole = made
    write_hdf5(path, {**whole, "pictures": None})
    write_hdf5(path.with_name("beside.h5"), {"here": PICTURES})
    with h5py.File(path, "a") as file:
        file.update(pictures=h5py.ExternalLink("beside.h5", "here"))
    assert check_own(path) == []
    stimuli = load_subject("own", path, "S1").stimuli
    np.testing.assert_array_equal(stimuli.pictures([3, 1]), PICTURES[[3, 1]])

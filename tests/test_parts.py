"""Parts of NSD's large files by ranges of bytes, over loopback: as the whole files, bit for bit."""

import csv
import io
import mmap
import re
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
from builders import counted, refuses, run_cli, write_hdf5
from loopback import serve

from minddiff_utils.datasets import fetch as module
from minddiff_utils.datasets import load_subject, parts
from minddiff_utils.datasets.check import check_nsd, is_ready
from minddiff_utils.datasets.fetch import look_up
from minddiff_utils.datasets.nsd import NsdStimuli, NsdTree
from minddiff_utils.datasets.nsd.regions import Regions
from minddiff_utils.datasets.nsd.responses import inspect_betas, read_stored
from minddiff_utils.datasets.parts import fetch_pictures, fetch_voxels
from minddiff_utils.phantom.anatomy import AREAS
from studies.betas import make_tree

SHAPE, N_TRIALS = (24, 20, 18), 40


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A tree of two sessions as NSD stores it, with 30 photographs, 10 of them the subject's."""
    tree = NsdTree(tmp_path_factory.mktemp("bucket") / "tree", "subj01")
    make_tree(tree, SHAPE, N_TRIALS, 400, 2)
    with h5py.File(tree.session(1), "r+") as file:  # a chunk that was never written: zeros
        betas = file["betas"][()]
        betas[:, 9, 10, 11] = 0
        del file["betas"]
        stored = file.create_dataset("betas", betas.shape, "int16", chunks=(N_TRIALS, 1, 1, 1))
        for z, y, x in np.ndindex(*SHAPE[::-1]):
            if (z, y, x) != (9, 10, 11):
                stored.id.write_direct_chunk((0, z, y, x), betas[:, z, y, x].tobytes())
    tree.session(2).unlink()
    with h5py.File(tree.session(2), "w") as file:
        rng = np.random.default_rng(2)
        values = rng.integers(-99, 99, (N_TRIALS, *SHAPE[::-1]), np.int16)
        file.create_dataset("betas", data=values, chunks=(N_TRIALS, 1, 1, 1))
    mine = np.sort(np.random.default_rng(3).choice(30, 13, replace=False))
    names = ("masterordering", "sharedix")
    design = scipy.io.loadmat(tree.design, variable_names=names)
    design = {name: design[name] for name in names}
    scipy.io.savemat(tree.design, {**design, "subjectim": mine[None] + 1})
    brick = np.random.default_rng(4).integers(0, 256, (30, 40, 40, 3), np.uint8)
    write_hdf5(tree.pictures, {"imgBrick": brick})
    write_captions(tree)
    return tree


def write_captions(tree):
    with open(tree.stimulus_table, "w", newline="") as file:
        csv.writer(file).writerows([("nsdId", "cocoId"), *((n, n + 100) for n in range(30))])
    tree.captions[0].parent.mkdir(parents=True)
    texts = ",".join(f'{{"image_id": {n // 5 + 100}, "caption": "a"}}' for n in range(150))
    tree.captions[0].write_text(f'{{"annotations": [{texts}]}}')
    tree.captions[1].write_text('{"annotations": []}')


@pytest.fixture
def server(bucket, monkeypatch):
    paths = [path for path in bucket.root.rglob("nsddata*/**/*") if path.is_file()]
    files = {f"/{path.relative_to(bucket.root)}": path.read_bytes() for path in paths}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in bucket.captions:
            archive.write(path, f"annotations/{path.name}")
    with serve({**files, "/captions.zip": packed.getvalue()}) as running:
        monkeypatch.setattr(module, "BUCKET", running.url)
        monkeypatch.setattr(module, "CAPTIONS_URL", running.url + "/captions.zip")
        monkeypatch.setattr(module, "CAPTIONS_MD5", "")
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield running


@pytest.fixture
def fetched(server, capsys, monkeypatch):
    """A function that fetches parts of two sessions; returns the tree, and what was said."""

    def call(folder, *more):
        parts = ("--sessions", 2, "--only-seen", "--only-rois", "nsdgeneral", *more)
        code, said = run_cli(capsys, monkeypatch, "fetch", "nsd", folder, "--i-have-signed", *parts)
        assert not code
        return NsdTree(folder, "subj01"), said.err

    return call


def load(tree, **more):
    return load_subject("nsd", tree.root, "subj01", rois="nsdgeneral", **more)


def sizes(tree):
    return {p.name: p.stat().st_size for p in tree.root.rglob("*") if p.is_file()}


def test_the_subject_is_the_one_of_the_whole_tree(server, bucket, fetched, tmp_path):
    tree, _ = fetched(tmp_path / "small")
    there = sizes(tree)
    assert {name for name in there if name.endswith(".part.h5")} == {
        "betas_session01.subj01.part.h5",
        "betas_session02.subj01.part.h5",
        "nsd_stimuli.subj01.part.h5",
    }
    assert not {"betas_session01.hdf5", "nsd_stimuli.hdf5"} & set(there)
    small, whole = load(tree, cache=tmp_path / "cache"), load(bucket)
    np.testing.assert_array_equal(small.responses[:], whole.responses[:])
    assert small.n_dropped == whole.n_dropped
    np.testing.assert_array_equal(small.voxel_ijk, whole.voxel_ijk)
    np.testing.assert_array_equal(small.stimulus_id, whole.stimulus_id)
    ids = whole.stimuli.ids[::-1]
    np.testing.assert_array_equal(small.stimuli.pictures(ids), whole.stimuli.pictures(ids))
    assert small.stimuli.size == (40, 40)
    assert is_ready(check_nsd(tree.root, ["subj01"], "nsdgeneral", 2))
    assert sum(entry.state == "missing" for entry in check_nsd(tree.root, rois="nsdgeneral")) == 38
    # Fetching again fetches nothing, and a whole file that comes later is taken.
    server.asked.clear()
    fetched(tree.root)
    assert set(server.asked) == {None} and sizes(tree) == there
    shutil.copy(bucket.session(1), tree.whole(tree.session(1)))
    assert tree.session(1).suffix == ".hdf5" and tree.session(2).suffix == ".h5"
    np.testing.assert_array_equal(load(tree).responses[:], whole.responses[:])


def test_how_much_is_said_before(fetched, tmp_path):
    _, said = fetched(tmp_path / "small", "--dry-run")
    assert re.search(r"Of 3 more files, 2.\d+MB in all, a part for subj01", said)
    assert not (tmp_path / "small").exists()


def test_what_is_not_held_is_named(server, bucket, fetched, tmp_path):
    tree, _ = fetched(tmp_path / "small")
    regions, more = (region_of(bucket, n) for n in (30, 31))
    part = tree.session(1)
    few = tmp_path / "few.subj01.part.h5"
    fetch_voxels(remote_of(server, bucket.session(1)), few, regions)
    said = "few.* has the rows of 30 voxels and lacks 1 .*--only"
    refuses(said, read_stored, inspect_betas(few, SHAPE), more.ijk)
    every = NsdStimuli(tree, np.arange(30))
    refuses("lacks 1 .*--only-seen", every.pictures, [others(bucket)[0]])
    # Other regions are added to those that are there.
    fetch_voxels(remote_of(server, bucket.session(1)), few, more)
    file = inspect_betas(few, SHAPE)
    whole = inspect_betas(bucket.session(1), SHAPE)
    np.testing.assert_array_equal(read_stored(file, more.ijk), read_stored(whole, more.ijk))
    content = bytearray(part.read_bytes())
    content[-2000] ^= 1
    part.write_bytes(content)
    refuses(r"session01.subj01.part.h5 is truncated, damaged", load, tree)


def others(tree):
    subject = load(tree)
    return np.setdiff1d(np.arange(30), NsdStimuli(tree, subject.stimulus_id).ids)


def region_of(tree, n):
    ijk = load(tree).voxel_ijk[:n]
    return Regions(np.eye(4), SHAPE, ijk, {}, np.ones(n, np.float32))


def remote_of(server, path):
    key = path.as_posix().split("/tree/")[1]
    return look_up(f"{server.url}/{key}")


def test_broken_connections_and_other_versions(server, bucket, tmp_path):
    remote, regions = remote_of(server, bucket.session(1)), region_of(bucket, 40)
    part = tmp_path / "a.subj01.part.h5"
    server.cuts, server.cut_after = 5, 3000
    fetch_voxels(remote, part, regions)
    assert not server.cuts
    whole = inspect_betas(bucket.session(1), SHAPE)
    expected = read_stored(whole, regions.ijk)
    np.testing.assert_array_equal(read_stored(inspect_betas(part, SHAPE), regions.ijk), expected)
    part.unlink()
    server.shift = 10
    refuses("another part than asked", fetch_voxels, remote, part, regions)
    server.shift, server.ranges = 0, False
    refuses("sends no parts of files. Fetch it whole", fetch_voxels, remote, part, regions)
    server.ranges = True
    server.headers[remote.url.removeprefix(server.url)] = {"ETag": '"another"'}
    refuses("has changed meanwhile", fetch_voxels, remote, part, regions)
    assert not part.exists()


def test_pictures_go_on_where_they_stopped(server, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCH", 4)
    remote, part = remote_of(server, bucket.pictures), tmp_path / "b.subj01.part.h5"
    ids = np.arange(1, 30, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, parts, "read_rows", 1)
        fetch_pictures(remote, part, ids)
    assert [path.name for path in tmp_path.iterdir()] == [part.name + ".partial"]
    calls = counted(monkeypatch, parts, "read_rows")
    fetch_pictures(remote, part, ids)
    assert [rows.tolist() for _, rows in calls] == [ids[4:8].tolist(), ids[8:].tolist()]
    with h5py.File(part) as file, h5py.File(bucket.pictures) as whole:
        np.testing.assert_array_equal(file["imgBrick"][()], whole["imgBrick"][()][ids])


def areas_on_folds(shape, n):
    """Voxels of the phantom's areas, on a folded shell that fills a volume; bool (X, Y, Z)."""
    voxels = np.indices(shape).reshape(3, -1).T
    place = (voxels / np.array(shape) - 0.5) / 0.46
    distance = np.linalg.norm(place, axis=1) + 1e-9
    across = np.abs(place[:, 0]) / distance
    direction = np.stack([across, *(place[:, 1:] / distance[:, None]).T], axis=1)
    folds = 0.05 * (np.sin(voxels[:, 1] / 3.1) + np.sin(voxels[:, 2] / 2.7 + voxels[:, 0] / 4))
    depth = np.abs(distance - 0.9 + folds) * 0.46 * shape[0]
    tilt, turn = np.radians([0.8 * AREAS.tilt, AREAS.turn])
    seeds = np.array([np.sin(tilt) * np.cos(turn), -np.cos(tilt), np.sin(tilt) * np.sin(turn)])
    apart = np.degrees(np.arccos(np.clip(direction @ seeds, -1, 1)))
    outside = (apart - AREAS.radius.to_numpy()).min(axis=1)
    order = np.argsort(np.where(depth < 2.2, outside, 99 + depth), kind="stable")
    mask = np.zeros(len(voxels), bool)
    mask[order[:n]] = True
    return mask.reshape(shape)


def compare(folder, shape, n_trials, counts):
    """Fetch regions of one session; yield the requests and share of the bytes of each."""
    tree = NsdTree(folder / "tree", "subj01")
    make_tree(tree, shape, n_trials, 1, 1)
    path = tree.session(1)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
        with serve({"/betas.hdf5": body}) as server:
            server.headers["/betas.hdf5"] = {"ETag": '"one"'}
            remote = look_up(server.url + "/betas.hdf5")
            for n in counts:
                server.asked.clear()
                ijk = np.argwhere(areas_on_folds(shape, n))
                regions = Regions(np.eye(4), shape, ijk, {}, np.ones(n, np.float32))
                part = fetch_voxels(remote, folder / f"{n}.subj01.part.h5", regions)
                found, whole = (read_stored(inspect_betas(p, shape), ijk) for p in (part, path))
                np.testing.assert_array_equal(found, whole)
                ends = [one.removeprefix("bytes=").split("-") for one in server.asked]
                n_bytes = sum(int(last) + 1 - int(first) for first, last in ends)
                share = n_bytes / path.stat().st_size
                print(f"{n:,} voxels: {len(ends)} requests, {share:.1%} of the bytes")
                yield len(ends), share


def test_few_bytes_and_requests(tmp_path):
    """A third of NSD's volume a side, half the trials: few blocks lie between what is wanted."""
    for requests, share in compare(tmp_path, (27, 35, 28), 375, [500]):
        assert requests <= 60 and share <= 0.2


@pytest.mark.slow
def test_few_bytes_and_requests_at_nsds_own_size(tmp_path):
    """`pytest -m slow -s tests/test_parts.py`: a minute, 1.1 GB of disk."""
    for requests, share in compare(tmp_path, (81, 104, 83), 750, [7_000, 11_694, 15_000]):
        assert requests <= 600 and share <= 0.15

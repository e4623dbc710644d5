"""Gets of NSD's large files only what a run needs: the regions' voxels, the pictures seen.

NSD's betas keep all trials of a voxel in one chunk of HDF5, and its pictures lie one after another,
so that both can be fetched by ranges of bytes. What arrives is a small file beside where the whole
one would be, which the reader takes in its place. What is read goes through HDF5 itself; here is
only foreseen which bytes it will want.
"""

import io
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import requests

from minddiff_utils.datasets.fetch import RemoteFile, in_bucket, nsd_files, read_range, show_bytes
from minddiff_utils.datasets.nsd.design import NsdTree, read_design
from minddiff_utils.datasets.nsd.regions import Regions, read_regions
from minddiff_utils.datasets.nsd.responses import PLACE, fill_from_columns, one_chunk_a_voxel
from minddiff_utils.datasets.reading import open_dataset, open_hdf5, read_rows
from minddiff_utils.datasets.recording import Sessions
from minddiff_utils.datasets.subject import check_ids
from minddiff_utils.io import InputError, content_hash, write_rows

BLOCK = 4096  # bytes that are had or not
AHEAD = 16  # blocks that are fetched at least; a gap of so many costs less than another request
REQUESTS = 560  # for a file's part: gaps are bridged until there are no more
SPARE = 60  # of them for what was guessed wrong
AT_ONCE = 8  # connections
BATCH = 64  # pictures between two safe points
# An entry of a node of the chunks' B-tree: HDF5's file format, version 1, section III.A.1.
ENTRY = np.dtype([("size", "<u4"), ("mask", "<u4"), ("at", "<u8", 5), ("child", "<u8")])
TREE, HEAD = b"TREE\x01", 24  # how such a node begins, and bytes before its first entry


class RemoteHdf5(io.RawIOBase):
    """A file on a web server, for h5py: blocks are fetched when they are first read, or foreseen.

    Parameters
    ----------
    remote : RemoteFile

    Attributes
    ----------
    blocks : dict of int to bytes
        What has come.
    requests : int
        How often the server was asked.
    root : tuple of two int
        Address and bytes of the first node of the chunks' B-tree that was read; (0, 0) before.
    """

    def __init__(self, remote: RemoteFile):
        self.remote, self.session = remote, requests.Session()
        self.blocks: dict[int, bytes] = {}
        self.position, self.requests, self.root = 0, 0, (0, 0)

    def __repr__(self) -> str:
        """Return what messages call the file."""
        return self.remote.name

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self.position = offset + (0, self.position, self.remote.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read from the place on."""
        n = max(0, min(len(buffer), self.remote.size - self.position))
        buffer[:n] = data = self.read_at(self.position, n)
        if data[: len(TREE)] == TREE and not self.root[0]:
            self.root = (self.position, n)
        self.position += n
        return n

    def read_at(self, start: int, n: int) -> bytes:
        """Return `n` bytes from `start` on, fetched if they have not come yet."""
        first, stop = start // BLOCK, -(-(start + n) // BLOCK)
        missing = [block for block in range(first, stop) if block not in self.blocks]
        if missing:
            self._fetch_run(missing[0], max(missing[-1] + 1, missing[0] + AHEAD))
        data = b"".join([self.blocks[block] for block in range(first, stop)])
        return data[start - first * BLOCK :][:n]

    def fetch(self, starts: np.ndarray, n: int, spare: int = 0) -> None:
        """Fetch `n` bytes from each of `starts` on; leave `spare` of the requests to others."""
        starts = starts[starts < self.remote.size].astype(np.int64)
        spans = np.arange((n - 2) // BLOCK + 2) + starts[:, None] // BLOCK
        wanted = spans[spans * BLOCK < np.minimum(starts[:, None] + n, self.remote.size)]
        missing = np.setdiff1d(wanted, np.fromiter(self.blocks, np.int64))
        gaps = np.diff(missing)
        limit = max(0, REQUESTS - self.requests - spare - 1)
        cuts = np.sort(np.argsort(-gaps, kind="stable")[:limit])
        runs = np.split(missing, cuts[gaps[cuts] > AHEAD] + 1) if missing.size else []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda run: self._fetch_run(int(run[0]), int(run[-1]) + 1), runs))

    def _fetch_run(self, first: int, stop: int) -> None:
        self.requests += 1
        end = min(stop * BLOCK, self.remote.size)
        data = read_range(self.remote, first * BLOCK, end, self.session)
        for start in range(0, len(data), BLOCK):
            self.blocks[first + start // BLOCK] = data[start : start + BLOCK]


def foresee_voxels(raw: RemoteHdf5, betas: h5py.Dataset, ijk: np.ndarray) -> None:
    """Fetch the chunks of some voxels and the nodes of the index that lead to them.

    HDF5 looks for each chunk in a tree of nodes. A node of the last level lies amid the chunks
    that it lists, and one after the other alike; so their places are guessed from those of one
    node, and both are fetched together. Then the true places are known, and what the guess has
    missed follows.

    Parameters
    ----------
    raw : RemoteHdf5
    betas : h5py.Dataset of shape (n_trials, Z, Y, X)
        In `raw`.
    ijk : int array of shape (n_voxels, 3)
        Places in the volume (X, Y, Z).
    """
    voxels = np.sort(np.ravel_multi_index(ijk.T[::-1], betas.shape[1:]))
    n_bytes = betas.shape[0] * betas.dtype.itemsize
    fill_from_columns(betas, ijk[:1], np.empty((1, len(betas)), betas.dtype))  # passes the root
    address, n_node = raw.root
    nodes, level = np.array([address] * bool(n_node), np.int64), 1
    while len(nodes) and level:
        raw.fetch(nodes, n_node)
        read = [_entries(raw.read_at(int(one), n_node), betas.shape[1:]) for one in nodes]
        level = read[0][0]
        first, child = (np.concatenate([one[i] for one in read]) for i in (1, 2))
        entry = np.searchsorted(first, voxels, side="right") - 1  # of each voxel
        nodes = child[np.unique(entry)]
        if level == 1:
            example = int(nodes[len(nodes) // 2])  # the first and the last are filled otherwise
            places = _entries(raw.read_at(example, n_node), betas.shape[1:])[2] - example
            apart = np.abs(places - np.sort(places)[len(places) // 2])  # a few lie elsewhere
            near = np.flatnonzero(apart <= len(places) * (n_bytes + n_node))
            rank = voxels - first[entry]
            guessed = child[entry] + np.interp(rank, near, places[near]).astype(np.int64)
            # A node of a higher level may lie between, here or there.
            spans = np.concatenate([nodes, guessed - n_node])
            raw.fetch(spans, n_bytes + 2 * n_node, spare=SPARE)
    raw.fetch(nodes, n_bytes)


def _entries(node: bytes, shape: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray]:
    """Return a node's level; of its entries the first voxel and the address."""
    entries = np.frombuffer(node, ENTRY, int.from_bytes(node[6:8], "little"), HEAD)
    places = tuple(entries["at"][:, 1:4].T.astype(np.int64))
    return node[5], np.ravel_multi_index(places, shape), entries["child"].astype(np.int64)


def fetch_voxels(remote: RemoteFile, path: Path, regions: Regions) -> Path:
    """Fetch the voxels of some regions of one session, beside those that are there.

    Parameters
    ----------
    remote : RemoteFile
        Betas of a session.
    path : Path
        The HDF5 file to write, with a row a voxel: `voxel`, its place in the volume (X, Y, Z) as
        `PLACE` makes one number of it, and `betas`, (n_voxels, n_trials), each with a checksum.
    regions : Regions

    Raises
    ------
    InputError
        If the download fails, or the file is stored in another form than NSD's.
    """
    wanted = _with_held(path, "voxel", regions.ijk @ PLACE)

    def compute(_: slice) -> dict[str, np.ndarray]:
        ijk = wanted[:, None] // PLACE % 1000
        with RemoteHdf5(remote) as raw, h5py.File(raw, "r") as file:
            betas = open_dataset(file, "betas")
            if not one_chunk_a_voxel(betas) or betas.shape[:0:-1] != regions.shape:
                found = f"betas {betas.shape} in chunks {betas.chunks}"
                raise InputError(f"{remote.name} has {found}: fetch it whole, not by --only-rois.")
            foresee_voxels(raw, betas, ijk)
            out = np.empty((len(ijk), len(betas)), betas.dtype)
            fill_from_columns(betas, ijk, out)
        return {"betas": out}

    record = _record(remote, wanted, regions.shape)
    return write_rows(path, wanted, record, compute, len(wanted), path.name, ids_name="voxel")


def fetch_pictures(remote: RemoteFile, path: Path, ids: np.ndarray) -> Path:
    """Fetch some of NSD's pictures, beside those that are there.

    Parameters
    ----------
    remote : RemoteFile
        `nsd_stimuli.hdf5`.
    path : Path
        The HDF5 file to write: `stimulus_id` and `imgBrick`, a picture a row, with checksums.
    ids : int64 array
        NSD ids (from 0).

    Raises
    ------
    InputError
        If the download fails, or there is no such picture.
    """
    wanted = _with_held(path, "stimulus_id", ids)

    def compute(rows: slice) -> dict[str, np.ndarray]:
        with RemoteHdf5(remote) as raw, h5py.File(raw, "r") as file:
            brick = open_dataset(file, "imgBrick")
            places = check_ids(wanted[rows], len(brick))
            start, size = brick.id.get_offset(), brick.nbytes // len(brick)
            if start is not None:  # one after the other; chunks are fetched as HDF5 asks for them
                raw.fetch(start + places * size, size)
            return {"imgBrick": read_rows(brick, places)}

    return write_rows(path, wanted, _record(remote, wanted), compute, BATCH, path.name)


def _with_held(path: Path, name: str, wanted: np.ndarray) -> np.ndarray:
    """Return the rows that are wanted and those that a file has, sorted."""
    if not path.exists():
        return np.unique(wanted)
    with open_hdf5(path, name) as held:
        return np.union1d(wanted, held[()])


def _record(remote: RemoteFile, rows: np.ndarray, volume: Sequence[int] = ()) -> str:
    """Say what a file is a part of: another version, or other rows, are fetched from the start."""
    facts = [remote.name, remote.version, content_hash([("rows", rows)])]
    return json.dumps({"of": facts, "volume": volume})


def fetch_parts(
    root: str | Path,
    subjects: Sequence[str],
    rois: str,
    sessions: Sessions,
    partly: tuple[str, ...],
    synthetic: bool = False,
    dry_run: bool = False,
) -> None:
    """Download parts of NSD's large files, once `fetch_nsd` has brought what it needs for that.

    Parameters
    ----------
    root, subjects, rois, sessions, synthetic, dry_run
        As of `minddiff_utils.datasets.fetch.fetch_nsd`.
    partly : tuple of str
        How the names of those files begin: "betas_" for the voxels of `rois`, "nsd_stimuli" for
        the photographs of the subject's design. Files that are there whole are left alone.

    Raises
    ------
    InputError
        If a file is not in the bucket, there is too little space, or a download fails.
    """
    root = Path(root)
    for name in subjects if partly else ():
        tree = NsdTree(root, name)
        files = nsd_files(tree, rois, sessions, synthetic)
        files = [path for path in files if path.name.startswith(partly) and not path.is_file()]
        found = list(in_bucket(root, files, subjects))
        size = show_bytes(sum(remote.size for _, remote in found))
        print(f"Of {len(found)} more files, {size} in all, a part for {name}.", file=sys.stderr)
        for path, remote in () if dry_run else found:
            if path == tree.pictures:
                fetch_pictures(remote, tree.part(path), np.unique(read_design(tree)[0]))
            else:
                fetch_voxels(remote, tree.part(path), read_regions(tree, rois))

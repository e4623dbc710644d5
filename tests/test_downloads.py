"""Downloads over loopback from servers that fail: whole and verified, or not there at all."""

import hashlib
import shutil

import numpy as np
import pytest
from loopback import serve

from minddiff_utils import downloads
from minddiff_utils.downloads import (
    HttpSource,
    download,
    partial_path,
    require_space,
    show_bytes,
)
from minddiff_utils.files import InputError

BODY = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server():
    with serve({"/file.bin": BODY}) as running:
        yield running


def source_of(server, md5=MD5):
    return HttpSource.find(server.url + "/file.bin", md5)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file(server, tmp_path):
    seen = []
    path = download(source_of(server), tmp_path / "new/file.bin", progress=seen.append)
    assert path.read_bytes() == BODY and sum(seen) == len(BODY)
    assert files_in(path.parent) == ["file.bin"]


def test_broken_connections_resume_where_they_stopped(server, tmp_path):
    source = source_of(server)
    server.asked.clear()
    server.cuts, server.cut_after = 4, 700_000
    path = download(source, tmp_path / "file.bin", pause=0)
    assert path.read_bytes() == BODY
    assert server.asked == [None] + [f"bytes={700_000 * k}-" for k in (1, 2, 3, 4)]


def test_gives_up_keeps_what_came_and_goes_on_next_time(server, tmp_path):
    source, path = source_of(server), tmp_path / "file.bin"
    server.cuts, server.cut_after = 1, 1_000_000

    def broken(n):
        server.cuts, server.cut_after = -1, 0  # nothing more from now on

    with pytest.raises(InputError, match=r"2 connections .* nothing .*1.0 MB of 3.0 MB are kept"):
        download(source, path, progress=broken, pause=0, attempts=2)
    assert not path.exists()
    assert partial_path(path, source).stat().st_size == 1_000_000
    server.cuts = 0
    server.asked.clear()
    assert download(source, path).read_bytes() == BODY
    assert server.asked == ["bytes=1000000-"]


def test_a_file_shorter_than_announced_never_gets_its_name(server, tmp_path):
    source = source_of(server)
    longer = HttpSource(source.name, len(BODY) + 10, source.version)
    with pytest.raises(InputError, match="connections in a row brought nothing"):
        download(longer, tmp_path / "file.bin", pause=0, attempts=2)
    assert not (tmp_path / "file.bin").exists()


def test_server_without_ranges(server, tmp_path):
    server.ranges = False
    source = source_of(server)
    server.cuts, server.cut_after = 1, 1_500_000
    assert download(source, tmp_path / "file.bin", pause=0).read_bytes() == BODY


def test_damaged_partial_is_noticed_and_downloaded_again(server, tmp_path):
    source, path = source_of(server), tmp_path / "file.bin"
    partial_path(path, source).write_bytes(bytes(1000))
    seen = []
    assert download(source, path, progress=seen.append).read_bytes() == BODY
    assert sum(seen) == len(BODY) - 1000 and files_in(tmp_path) == ["file.bin"]


def test_wrong_checksum_leaves_nothing_and_keeps_the_old_file(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=f"MD5 is {MD5}; expected {'0' * 32}.*twice"):
        download(source_of(server, "0" * 32), path, pause=0)
    assert path.read_bytes() == b"old" and files_in(tmp_path) == ["file.bin"]


def test_partial_of_an_older_version_is_not_continued(server, tmp_path):
    path = tmp_path / "file.bin"
    old = source_of(server)
    partial_path(path, old).write_bytes(BODY[:1000])
    server.files["/file.bin"] = new = BODY[::-1]
    source = source_of(server, "")
    assert download(source, path).read_bytes() == new
    assert files_in(tmp_path) == ["file.bin"]


def test_file_that_changes_meanwhile_is_not_mixed(server, tmp_path):
    source = source_of(server)
    server.files["/file.bin"] = BODY[::-1]
    with pytest.raises(InputError, match="has changed meanwhile"):
        download(source, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_empty_file(tmp_path):
    with serve({"/empty": b""}) as server:
        source = HttpSource(server.url + "/empty", 0, "")
        assert download(source, tmp_path / "empty").read_bytes() == b""


def test_unknown_address(server):
    with pytest.raises(InputError, match="the server answers 404"):
        HttpSource.find(server.url + "/nothing")
    with pytest.raises(InputError, match="cannot be reached.*Is there a network"):
        HttpSource.find("http://127.0.0.1:9/file")
    with pytest.raises(InputError, match="cannot be reached"):
        HttpSource.find("no address")


def test_too_little_space_is_said_before(server, tmp_path, monkeypatch):
    source, path = source_of(server), tmp_path / "deep/folder/file.bin"
    assert require_space(path.parent, [(path, source)]) == len(BODY)
    usage = shutil.disk_usage(tmp_path)._replace(free=downloads.SPARE + len(BODY) - 1)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"deep/folder has 70.1 MB free; 70.1 MB are needed"):
        require_space(path.parent, [(path, source)])
    path.parent.mkdir(parents=True)
    partial_path(path, source).write_bytes(BODY[:1000])
    assert require_space(path.parent, [(path, source)]) == len(BODY) - 1000


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (252_907_541, "253 MB"), (4.2e10, "42.0 GB"),
     (2e12, "2.0 TB")],
)  # fmt: skip
def test_sizes_as_people_write_them(n, text):
    assert show_bytes(n) == text

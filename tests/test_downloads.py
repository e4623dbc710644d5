"""Downloads over loopback from servers that fail: whole and verified, or not there at all."""

import base64
import gzip
import hashlib
import shutil

import numpy as np
import pytest
from loopback import serve

from minddiff_utils.datasets.fetch import downloads
from minddiff_utils.datasets.fetch.bucket import connect
from minddiff_utils.datasets.fetch.downloads import (
    HttpSource,
    download,
    only_fetch,
    partial_path,
    require_space,
    show_bytes,
)
from minddiff_utils.io import InputError

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


def test_a_stall_loses_nothing_that_came(server, tmp_path, monkeypatch):
    source = source_of(server)
    server.asked.clear()
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    server.cuts, server.cut_after, server.stall = 2, 500_000, 1.0
    assert download(source, tmp_path / "file.bin", pause=0).read_bytes() == BODY
    assert server.asked == [None, "bytes=500000-", "bytes=1000000-"]


def test_another_part_than_asked_is_not_appended(server, tmp_path):
    source, path = source_of(server, ""), tmp_path / "file.bin"
    partial_path(path, source).write_bytes(BODY[:1000])
    server.shift = 10
    with pytest.raises(InputError, match="another part than asked: bytes 990-"):
        download(source, path, pause=0, attempts=2)
    assert partial_path(path, source).read_bytes() == BODY[:1000] and not path.exists()


def test_gzip_is_read_to_its_end_and_kept_if_damaged(server, tmp_path):
    for damage, body in enumerate((gzip.compress(BODY), gzip.compress(BODY)[:-8] + bytes(8))):
        server.files["/file.bin"] = body
        source, path = source_of(server, ""), tmp_path / f"{damage}.nii.gz"
        if not damage:
            assert download(source, path).read_bytes() == body
            continue
        with pytest.raises(InputError, match="cannot be unpacked to its end .*delete that"):
            download(source, path)
        assert partial_path(path, source).read_bytes() == body and not path.exists()


def test_a_second_fetch_into_a_folder_is_refused(tmp_path):
    with only_fetch(tmp_path / "new"):
        with pytest.raises(InputError, match="Another process is downloading into .*new"):
            with only_fetch(tmp_path / "new"):
                pass
    with only_fetch(tmp_path / "new"):
        pass
    assert not files_in(tmp_path / "new")


def test_passwords_and_keys_are_used_and_never_shown(server, tmp_path):
    server.files["/file.bin?key=k3y"] = BODY
    secret = server.url.replace("://", "://anna:s%20cret@") + "/file.bin?key=k3y"
    source = HttpSource.find(secret)
    assert download(source, tmp_path / "file.bin").read_bytes() == BODY
    assert base64.b64decode(server.logins[-1].removeprefix("Basic ")) == b"anna:s cret"
    said = [source.name]
    for address in (secret.replace("file", "none"), "ftp://anna:s%20cret@x:y/?key=k3y"):
        with pytest.raises(InputError) as caught:
            HttpSource.find(address)
        said.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        connect("anna:s%20cret@host?key=k3y")
    assert not [text for text in [*said, str(caught.value)] if "cret" in text or "k3y" in text]
    assert "://…@127.0.0.1" in source.name and source.name.endswith("/file.bin?…")


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

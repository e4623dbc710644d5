"""Downloads over loopback from servers that fail: whole and verified, or not there at all."""

import base64
import gzip
import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from builders import files_in, refuses
from loopback import serve
from tqdm import tqdm

from minddiff_utils.datasets import fetch as module
from minddiff_utils.datasets.fetch import digest, fetch_file, look_up, show_bytes
from minddiff_utils.io import InputError, lock_file

BODY = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve({"/file.bin": BODY}) as running:
        yield running


@pytest.fixture
def bar():
    with tqdm(file=io.StringIO()) as shown:
        yield shown


def look(server, md5=MD5):
    remote = look_up(server.url + "/file.bin", md5)
    server.asked.clear()
    return remote


def test_broken_connections_resume_where_they_stopped(server, tmp_path, bar):
    remote = look(server)
    server.cuts, server.cut_after = 4, 700_000
    path = fetch_file(remote, tmp_path / "new/file.bin", bar)
    assert path.read_bytes() == BODY and files_in(path.parent) == {"file.bin"}
    assert server.asked == [f"bytes={700_000 * k}-" for k in range(5)] and bar.n == len(BODY)


def test_gives_up_keeps_what_came_and_goes_on_next_time(server, tmp_path, bar):
    remote, path = look(server), tmp_path / "file.bin"
    remote.partial(path).write_bytes(BODY[:1_000_000])
    server.cuts, server.cut_after = -1, 0
    refuses(r"6 connections .* nothing .*1.00MB are kept", fetch_file, remote, path, bar)
    longer = replace(remote, size=len(BODY) + 10)
    refuses("in a row brought nothing", fetch_file, longer, tmp_path / "longer.bin", bar)
    assert not path.exists() and not (tmp_path / "longer.bin").exists()
    server.cuts = 0
    server.asked.clear()
    assert fetch_file(remote, path, bar).read_bytes() == BODY
    assert server.asked == ["bytes=1000000-"]


def test_a_stall_loses_nothing_that_came(tmp_path, monkeypatch, bar):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with serve({"/file.bin": BODY}) as server:
        remote = look(server)
        server.cuts, server.cut_after, server.stall = 2, 500_000, 0.6
        assert fetch_file(remote, tmp_path / "file.bin", bar).read_bytes() == BODY
    assert server.asked == ["bytes=0-", "bytes=500000-", "bytes=1000000-"]


def test_another_part_than_asked_is_not_appended(server, tmp_path, bar):
    remote, path = look(server, ""), tmp_path / "file.bin"
    remote.partial(path).write_bytes(BODY[:1000])
    server.shift = 10
    refuses("another part than asked: bytes 990-", fetch_file, remote, path, bar)
    assert remote.partial(path).read_bytes() == BODY[:1000] and not path.exists()


def test_gzip_is_read_to_its_end(server, tmp_path, bar):
    whole = gzip.compress(BODY[:100_000])
    server.files["/file.bin"] = whole
    assert fetch_file(look(server, ""), tmp_path / "a.nii.gz", bar).read_bytes() == whole
    server.files["/file.bin"] = whole[:-8] + bytes(8)
    said = "CRC check failed .*Nothing was kept"
    refuses(said, fetch_file, look(server, ""), tmp_path / "b.nii.gz", bar)
    assert files_in(tmp_path) == {"a.nii.gz"}


def test_a_second_download_of_the_same_file_is_refused(server, tmp_path, bar):
    remote, path = look(server), tmp_path / "file.bin"
    with open(remote.partial(path), "ab") as held:
        assert lock_file(held)
        refuses("Another process is downloading .*file.bin", fetch_file, remote, path, bar)
    assert fetch_file(remote, path, bar).read_bytes() == BODY


def test_passwords_and_keys_are_used_and_never_shown(server, tmp_path, bar):
    server.files["/file.bin?key=k3y"] = BODY
    secret = server.url.replace("://", "://anna:s%20cret@") + "/file.bin?key=k3y"
    remote = look_up(secret)
    assert fetch_file(remote, tmp_path / "file.bin", bar).read_bytes() == BODY
    assert base64.b64decode(server.logins[-1].removeprefix("Basic ")) == b"anna:s cret"
    said = [remote.name]
    unreachable = "http://anna:s%20cret@127.0.0.1:9/?key=k3y"
    for address in (secret.replace("file", "none"), "ftp://anna:s%20cret@x:y/?key=k3y",
                    "anna:s%20cret@host?key=k3y", unreachable):  # fmt: skip
        with pytest.raises(InputError, match="fetched .* Is the address right") as caught:
            look_up(address)
        said.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        fetch_file(replace(remote, url=unreachable), tmp_path / "other.bin", bar)
    assert not [text for text in [*said, str(caught.value)] if "cret" in text or "k3y" in text]
    assert "://…@127.0.0.1" in remote.name and remote.name.endswith("/file.bin?…")


def test_wrong_checksum_leaves_nothing_and_keeps_the_old_file(server, tmp_path, bar):
    """As of a partial file that a power cut has damaged, or one damaged at its source."""
    remote, path = look(server), tmp_path / "file.bin"
    path.write_bytes(b"old")
    remote.partial(path).write_bytes(bytes(1000))
    refuses(f"checksum .*; expected {MD5}. Nothing was kept", fetch_file, remote, path, bar)
    assert path.read_bytes() == b"old" and files_in(tmp_path) == {"file.bin"}
    assert fetch_file(remote, path, bar).read_bytes() == BODY


def test_versions_are_not_mixed(server, tmp_path, bar):
    remote, path = look(server), tmp_path / "file.bin"
    remote.partial(path).write_bytes(BODY[:1000])
    server.files["/file.bin"] = new = BODY[::-1]
    refuses("has changed meanwhile", fetch_file, remote, path, bar)
    assert not path.exists()
    assert fetch_file(look(server, ""), path, bar).read_bytes() == new
    server.files["/file.bin"] = b""
    assert fetch_file(look(server, ""), tmp_path / "empty", bar).read_bytes() == b""


@pytest.mark.parametrize(("size", "part"), [(0, 4), (8, 4), (9, 4), (3 * 2**20, 2**20 + 1)])
def test_digest_of_parts_of_any_size(tmp_path, size, part):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(content)
    pieces = [content[k : k + part] for k in range(0, size, part)]
    joined = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
    assert digest(tmp_path / "x", part) == f"{joined}-{len(pieces)}"
    assert digest(tmp_path / "x") == hashlib.md5(content).hexdigest()
    assert [show_bytes(n) for n in (0, 252_907_541, 4.2e10)] == ["0.00B", "253MB", "42.0GB"]

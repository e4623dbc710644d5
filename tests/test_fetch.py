"""Fetching recordings: NSD and the others, from a web server on loopback."""

import io
import shutil
import tarfile
import zipfile

import miyawaki_tree
import numpy as np
import pytest
import requests
import test_kay
from builders import files_in, refuses, run_cli
from loopback import serve
from test_nsd import DESIGN, NCSNR, PICTURES, ROI, SESSION, STIMULI, TABLE
from tqdm import tqdm

from minddiff_utils.datasets import fetch, load_subject
from minddiff_utils.datasets.check import check_nsd, is_ready
from minddiff_utils.datasets.fetch import digest, fetch_file, look_up
from minddiff_utils.datasets.nsd import NsdTree

CAPTIONS = ("captions_train2017.json", "captions_val2017.json")


@pytest.fixture(scope="module")
def web(three_sessions):
    """A server with NSD's bucket, filled with a phantom's tree, and the archive of captions."""
    paths = [path for path in three_sessions.rglob("nsddata*/**/*") if path.is_file()]
    files = {f"/{path.relative_to(three_sessions)}": path.read_bytes() for path in paths}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in CAPTIONS:
            archive.write(three_sessions / "coco/annotations" / name, f"annotations/{name}")
        archive.writestr("annotations/instances_val2017.json", "{}" * 1000)
    with serve({**files, "/captions.zip": packed.getvalue()}) as server:
        yield server


# -------------------------------------------------------------------------------- files of a bucket


def test_a_file_that_was_uploaded_in_parts_is_verified(web, tmp_path):
    """As S3 does it: its ETag is made of the parts, whose size it tells who asks for the first."""
    body, part = np.random.default_rng(0).bytes(250_000), 100_000
    (tmp_path / "whole").write_bytes(body)
    web.files |= {"/parts.bin": body, "/parts.bin?partNumber=1": body[:part]}
    web.headers["/parts.bin"] = {"ETag": f'"{digest(tmp_path / "whole", part)}"'}
    remote = look_up(f"{web.url}/parts.bin", bucket=True)
    assert remote.part == part and remote.md5.endswith("-3")
    with tqdm(file=io.StringIO()) as bar:
        assert fetch_file(remote, tmp_path / "a.bin", bar).read_bytes() == body
        web.files["/parts.bin"] = body[::-1]
        refuses("checksum .*; expected .*Nothing", fetch_file, remote, tmp_path / "b.bin", bar)
    assert files_in(tmp_path) == {"whole", "a.bin"}


# ------------------------------------------------------------------------------------- all of NSD


@pytest.fixture
def addresses(web, monkeypatch):
    """Fetch from here."""
    monkeypatch.setattr(fetch, "BUCKET", web.url)
    monkeypatch.setattr(fetch, "CAPTIONS_URL", web.url + "/captions.zip")
    monkeypatch.setattr(fetch, "CAPTIONS_MD5", "")


@pytest.fixture
def fetch_tree(addresses, capsys):
    """A function that fetches two sessions, or what it is told, and returns what was said."""

    def call(folder, **more):
        fetch.fetch_nsd(folder, ("subj01",), signed=True, **{"sessions": 2, **more})
        return capsys.readouterr().err

    return call


def test_only_what_is_needed_is_fetched_and_can_be_read(fetch_tree, three_sessions, tmp_path):
    assert "9 files" in fetch_tree(tmp_path / "nsd", dry_run=True)
    assert not (tmp_path / "nsd").exists()
    said = fetch_tree(tmp_path / "nsd")
    fetched = files_in(tmp_path / "nsd")
    sessions = {SESSION.format(1), SESSION.format(2)}
    captions = {f"coco/annotations/{name}" for name in CAPTIONS}
    assert fetched == {DESIGN, STIMULI, TABLE, ROI, PICTURES, NCSNR, *sessions, *captions}
    for name in fetched:
        assert (tmp_path / "nsd" / name).read_bytes() == (three_sessions / name).read_bytes()
    assert "9 files" in said and "to download" in said
    assert is_ready(check_nsd(tmp_path / "nsd", sessions=2))

    before = {name: (tmp_path / "nsd" / name).stat().st_mtime_ns for name in fetched}
    assert "0 files" in fetch_tree(tmp_path / "nsd")
    (tmp_path / "nsd" / PICTURES).write_bytes(b"cut short")
    assert "1 files," in fetch_tree(tmp_path / "nsd")
    after = {name: (tmp_path / "nsd" / name).stat().st_mtime_ns for name in fetched}
    assert {name for name in before if before[name] != after[name]} == {PICTURES}


def test_what_cannot_be_fetched_is_said_before_anything_comes(fetch_tree, tmp_path, monkeypatch):
    refuses("betas_session04.hdf5 cannot be fetched .404", fetch_tree, tmp_path / "nsd", sessions=9)
    nobody = NsdTree(tmp_path, "subj09")
    refuses("'subj09' is unknown; NSD has subj01 to", fetch.nsd_files, nobody, "V1", None, False)
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refuses("no space is left .* MB more are needed", fetch_tree, tmp_path / "nsd")
    assert not (tmp_path / "nsd").exists()
    counts = {"subj01": 40, "subj03": 32, "subj04": 30}
    for subject, count in counts.items():
        files = fetch.nsd_files(NsdTree(tmp_path, subject), "V1", None, False)
        assert sum("betas_session" in path.name for path in files) == count


# ----------------------------------------------------------------------------------- command line


def test_fetch_then_check_through_a_bad_connection(capsys, monkeypatch, tmp_path, web, addresses):
    def call(*words):
        return run_cli(capsys, monkeypatch, *words, "--sessions", "2")

    monkeypatch.setattr(web, "cut_after", 300_000)
    monkeypatch.setattr(web, "cuts", -1)
    code, shown = call("fetch", "nsd", tmp_path / "nsd")
    assert code == 2 and "data-access agreement" in shown.err and "--i-have-signed" in shown.err
    assert not (tmp_path / "nsd").exists()
    assert call("fetch", "nsd", "--i-have-signed", tmp_path / "nsd")[0] == 0
    assert "bytes=300000-" in web.asked
    code, shown = call("check", "nsd", tmp_path / "nsd")
    assert code == 0 and "Ready: 10 of 10 files" in shown.out


# ------------------------------------------------------------------------------- other recordings


def test_kay_through_bad_connections(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    path, content = test_kay.make(tmp_path)
    with serve({"/kay": path.read_bytes()}) as server:
        monkeypatch.setattr(fetch, "KAY_URL", server.url + "/kay")
        server.cuts, server.cut_after = 3, 10_000
        fetch.fetch_kay(tmp_path / "kay")
        assert files_in(tmp_path / "kay") == {"kay_images.npz"} and server.cuts == 0
        subject = load_subject("kay", tmp_path / "kay", "S1")
        np.testing.assert_allclose(subject.responses[3], content["responses"][3], rtol=1e-6)
        server.asked.clear()
        fetch.fetch_kay(tmp_path / "kay")
        assert not server.asked
        server.files["/kay"] = b"no npz at all"
        refuses("kay_images.npz is .* no archive", fetch.fetch_kay, tmp_path / "other")


def test_miyawaki_through_nilearn(tmp_path, monkeypatch):
    """nilearn downloads and unpacks an archive in its own way, from here instead of its server."""
    miyawaki_tree.write_tree(tmp_path / "made")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in (tmp_path / "made/miyawaki2008").iterdir():
            archive.add(path, path.name)
    send = requests.Session.send
    with serve({"/miyawaki2008.tgz": packed.getvalue()}) as server:

        def redirected(self, request, **more):
            assert request.url.startswith("https://www.nitrc.org/")
            request.url = server.url + "/miyawaki2008.tgz"
            return send(self, request, **more)

        monkeypatch.setattr(requests.Session, "send", redirected)
        fetch.fetch_miyawaki(tmp_path / "got")
        asked = len(server.asked)
        fetch.fetch_miyawaki(tmp_path / "got")
        assert len(server.asked) == asked
    assert load_subject("miyawaki_full", tmp_path / "got", "S1").responses.shape[0] == 76

"""Fetching recordings: NSD from a real S3 server on loopback, the others from a web server."""

import hashlib
import io
import shutil
import sys
import tarfile
import zipfile

import boto3
import miyawaki_tree
import numpy as np
import pytest
import requests
import test_kay
from loopback import CuttingProxy, serve
from moto.server import ThreadedMotoServer
from test_nsd import DESIGN, NCSNR, PICTURES, ROI, SESSION, STIMULI, TABLE
from tqdm import tqdm

from minddiff_utils import cli
from minddiff_utils.datasets import fetch, load_subject
from minddiff_utils.datasets.check import check_nsd, is_ready
from minddiff_utils.datasets.fetch import digest, fetch_file, look_up
from minddiff_utils.io import InputError

BUCKET = "natural-scenes-dataset"
KEY = "nsddata/some.bin"
BODY = np.random.default_rng(0).bytes(2_500_000)
PARTS = np.random.default_rng(1).bytes(5 * 2**20 + 1_000_000)  # S3 takes no smaller first part
CAPTIONS = ("captions_train2017.json", "captions_val2017.json")


@pytest.fixture(scope="module")
def s3(three_sessions):
    """A server with NSD's bucket, filled with a phantom's tree; yields its port and a client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "only-for-filling-the-bucket")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "only-for-filling-the-bucket")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        port = server.get_host_and_port()[1]
        client = boto3.client("s3", "us-east-1", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket=BUCKET, ACL="public-read")
        for path in three_sessions.rglob("*"):
            name = path.relative_to(three_sessions).as_posix()
            if path.is_file() and name.startswith("nsddata"):
                client.upload_file(str(path), BUCKET, name)
        client.put_object(Bucket=BUCKET, Key=KEY, Body=BODY)
        upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts.bin")["UploadId"]
        given = {"Bucket": BUCKET, "Key": "parts.bin", "UploadId": upload}
        pieces = (PARTS[: 5 * 2**20], PARTS[5 * 2**20 :])
        tags = [
            {"PartNumber": n, "ETag": client.upload_part(PartNumber=n, Body=piece, **given)["ETag"]}
            for n, piece in enumerate(pieces, start=1)
        ]
        client.complete_multipart_upload(MultipartUpload={"Parts": tags}, **given)
        yield port, client
    server.stop()


@pytest.fixture
def proxy(s3, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    between = CuttingProxy(s3[0])
    yield between
    between.close()


@pytest.fixture(scope="module")
def web(three_sessions):
    """A web server with the archive of captions."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in CAPTIONS:
            archive.write(three_sessions / "coco/annotations" / name, f"annotations/{name}")
        archive.writestr("annotations/instances_val2017.json", "{}" * 1000)
    with serve({"/captions.zip": packed.getvalue()}) as server:
        yield server


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# -------------------------------------------------------------------------------- files of a bucket


@pytest.mark.parametrize(("key", "body"), [(KEY, BODY), ("parts.bin", PARTS)])
def test_files_of_a_bucket_come_whole_and_verified(proxy, tmp_path, key, body):
    remote = look_up(f"{proxy.url}/{BUCKET}/{key}", bucket=True)
    halves = [hashlib.md5(p).digest() for p in (body[: 5 * 2**20], body[5 * 2**20 :])]
    in_parts = hashlib.md5(b"".join(halves)).hexdigest() + "-2"
    assert remote.md5 == (hashlib.md5(body).hexdigest() if key == KEY else in_parts)
    proxy.cut_after, proxy.cuts, proxy.received = 600_000, 3, 0
    with tqdm(file=io.StringIO()) as bar:
        path = fetch_file(remote, tmp_path / "a.bin", bar)
        assert path.read_bytes() == body and proxy.cuts == 0 and bar.n == len(body)
        # What had come before each cut was not asked for again.
        assert proxy.received < 1.2 * len(body) and files_in(tmp_path) == {"a.bin"}
        assert digest(path, remote.part) == remote.md5
        proxy.mangle = lambda data: data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 5000 else data
        with pytest.raises(InputError, match="checksum .*; expected .*Nothing was kept"):
            fetch_file(remote, tmp_path / "b.bin", bar)
    assert files_in(tmp_path) == {"a.bin"}


# ------------------------------------------------------------------------------------- all of NSD


@pytest.fixture
def addresses(s3, web, monkeypatch):
    """Fetch from here."""
    monkeypatch.setattr(fetch, "BUCKET", f"http://127.0.0.1:{s3[0]}/{BUCKET}")
    monkeypatch.setattr(fetch, "CAPTIONS_URL", web.url + "/captions.zip")
    monkeypatch.setattr(fetch, "CAPTIONS_MD5", "")


@pytest.fixture
def fetch_tree(addresses, capsys):
    """A function that fetches two sessions, or what it is told, and returns what was said."""

    def call(folder, **more):
        fetch.fetch_nsd(folder, ("subj01",), **{"sessions": 2, **more})
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
    with pytest.raises(InputError, match="betas_session04.hdf5 cannot be fetched .404"):
        fetch_tree(tmp_path / "nsd", sessions=9)
    with pytest.raises(InputError, match="'subj09' is unknown; NSD has subj01 to subj08"):
        fetch.nsd_files(tmp_path, ("subj09",))
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="no space is left .* MB more are needed"):
        fetch_tree(tmp_path / "nsd")
    assert not (tmp_path / "nsd").exists()
    counts = {"subj01": 40, "subj03": 32, "subj04": 30}
    for subject, count in counts.items():
        files = fetch.nsd_files(tmp_path, (subject,))
        assert sum("betas_session" in path.name for path in files) == count


def test_an_atlas_whose_labels_each_subject_has(fetch_tree, s3, three_sessions, tmp_path):
    """NSD keeps some tables of labels with the subjects, not with fsaverage."""
    roi = "nsddata/ppdata/subj01/func1pt8mm/roi/{}.nii.gz"
    table = "nsddata/freesurfer/subj01/label/other.mgz.ctab"
    upload = s3[1].upload_file
    upload(str(three_sessions / roi.format("Kastner2015")), BUCKET, roi.format("other"))
    with pytest.raises(InputError, match="subj01/label/other.mgz.ctab cannot be fetched .404"):
        fetch_tree(tmp_path, rois="other:V1v")
    labels = three_sessions / "nsddata/freesurfer/fsaverage/label/Kastner2015.mgz.ctab"
    upload(str(labels), BUCKET, table)
    fetch_tree(tmp_path, rois="other:V1v,V1d")
    assert (tmp_path / table).is_file() and not (tmp_path / "nsddata/freesurfer/fsaverage").exists()
    assert list(load_subject("nsd", tmp_path, "subj01", rois="other:V1v,V1d").roi) == ["V1v", "V1d"]
    entries = check_nsd(tmp_path, ("subj01",), rois="other:V1v,V1d", sessions=2)
    assert is_ready(entries) and tmp_path / table in {entry.path for entry in entries}
    assert "0 files" in fetch_tree(tmp_path, rois="other:V1v,V1d")


def test_damaged_captions_are_refused(fetch_tree, web, tmp_path, monkeypatch):
    broken = bytearray(web.files["/captions.zip"])
    broken[200] ^= 1
    for content in (bytes(broken), test_kay.make(tmp_path)[0].read_bytes()):  # or another archive
        with serve({"/captions.zip": content}) as server:
            monkeypatch.setattr(fetch, "CAPTIONS_URL", server.url + "/captions.zip")
            with pytest.raises(InputError, match="annotations_trainval2017.zip is damaged"):
                fetch_tree(tmp_path / "nsd")
    assert not [name for name in files_in(tmp_path / "nsd") if name.startswith("coco")]


# ----------------------------------------------------------------------------------- command line


def test_fetch_then_check_through_a_bad_connection(capsys, monkeypatch, tmp_path, proxy, addresses):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["minddiff", *map(str, arguments), "--sessions", "2"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr()

    monkeypatch.setattr(fetch, "BUCKET", f"{proxy.url}/{BUCKET}")
    proxy.cut_after, proxy.cuts = 100_000, 3
    code, shown = call("fetch", "nsd", tmp_path / "nsd")
    assert code == 2 and "data-access agreement" in shown.err and "--i-have-signed" in shown.err
    assert not (tmp_path / "nsd").exists()
    assert call("fetch", "nsd", "--i-have-signed", tmp_path / "nsd")[0] == 0 and proxy.cuts == 0
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
        # A file that was cut short is fetched again.
        file = tmp_path / "kay/kay_images.npz"
        file.write_bytes(file.read_bytes()[:5000])
        fetch.fetch_kay(tmp_path / "kay")
        assert file.read_bytes() == path.read_bytes()
        server.files["/kay"] = b"no npz at all"
        with pytest.raises(InputError, match="kay_images.npz is .* no archive"):
            fetch.fetch_kay(tmp_path / "other")


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

    def unreachable(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "send", unreachable)
    with pytest.raises(InputError, match="nilearn could not download it .*network"):
        fetch.fetch_miyawaki(tmp_path / "none")

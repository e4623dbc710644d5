"""Fetching recordings: NSD from a real S3 server on loopback, the others from a web server."""

import hashlib
import io
import json
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
from test_nsd_writer import SMALL

from minddiff_utils import cli
from minddiff_utils.datasets import load_subject
from minddiff_utils.datasets.check import is_ready, take_stock
from minddiff_utils.datasets.fetch import downloads
from minddiff_utils.datasets.fetch import recordings as fetch
from minddiff_utils.datasets.fetch.bucket import connect, find, multipart_digest
from minddiff_utils.datasets.fetch.downloads import download, partial_path
from minddiff_utils.io import InputError
from minddiff_utils.phantom.nsd_writer import write_tree

KEY = "nsddata/some.bin"
BODY = np.random.default_rng(0).bytes(2_500_000)
PARTS = np.random.default_rng(1).bytes(5 * 2**20 + 1_000_000)  # S3 takes no smaller first part
CAPTIONS = ("captions_train2017.json", "captions_val2017.json")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("bucket") / "tree", ("subj01",), **SMALL)


@pytest.fixture(scope="module")
def s3(tree):
    """A server with NSD's bucket, filled with a phantom's tree; yields its port."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ID", "SECRET"):
            variable = "AWS_ACCESS_KEY_ID" if name == "ID" else "AWS_SECRET_ACCESS_KEY"
            patch.setenv(variable, "only-for-filling-the-bucket")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        port = server.get_host_and_port()[1]
        client = boto3.client("s3", "us-east-1", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket=fetch.BUCKET, ACL="public-read")
        for path in tree.rglob("*"):
            name = path.relative_to(tree).as_posix()
            if path.is_file() and name.startswith("nsddata"):
                client.upload_file(str(path), fetch.BUCKET, name)
        client.put_object(Bucket=fetch.BUCKET, Key=KEY, Body=BODY)
        upload = client.create_multipart_upload(Bucket=fetch.BUCKET, Key="parts.bin")["UploadId"]
        given = {"Bucket": fetch.BUCKET, "Key": "parts.bin", "UploadId": upload}
        pieces = (PARTS[: 5 * 2**20], PARTS[5 * 2**20 :])
        tags = [
            {"PartNumber": n, "ETag": client.upload_part(PartNumber=n, Body=piece, **given)["ETag"]}
            for n, piece in enumerate(pieces, start=1)
        ]
        client.complete_multipart_upload(MultipartUpload={"Parts": tags}, **given)
    yield port
    server.stop()


@pytest.fixture
def proxy(s3):
    between = CuttingProxy(s3)
    yield between
    between.close()


@pytest.fixture(scope="module")
def web(tree):
    """A web server with the archive of captions."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in CAPTIONS:
            archive.write(tree / "coco/annotations" / name, f"annotations/{name}")
        archive.writestr("annotations/instances_val2017.json", "{}" * 1000)
    with serve({"/captions.zip": packed.getvalue()}) as server:
        yield server


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# -------------------------------------------------------------------------------- files of a bucket


def test_connections_that_break_resume(proxy, tmp_path):
    source = find(connect(proxy.url), fetch.BUCKET, KEY)
    assert source.checksum == "MD5" and source.version == hashlib.md5(BODY).hexdigest()
    proxy.cut_after, proxy.cuts, proxy.received = 600_000, 3, 0
    seen = []
    path = download(source, tmp_path / "a.bin", progress=seen.append, pause=0)
    assert path.read_bytes() == BODY and sum(seen) == len(BODY) and proxy.cuts == 0
    # What had come before each cut was not asked for again.
    assert proxy.received < 1.2 * len(BODY)
    assert files_in(tmp_path) == {"a.bin"}


def test_a_run_that_gave_up_is_continued_by_the_next(proxy, tmp_path):
    source = find(connect(proxy.url), fetch.BUCKET, KEY)
    path = tmp_path / "a.bin"
    proxy.cut_after, proxy.cuts = 1_000_000, 1

    def nothing_more(_):
        proxy.cut_after, proxy.cuts = 0, 10**6

    with pytest.raises(InputError, match="are kept: the same command goes on from there"):
        download(source, path, progress=nothing_more, pause=0, attempts=2)
    kept = partial_path(path, source).stat().st_size
    assert not path.exists() and 0 < kept < 1_000_000
    proxy.cuts = proxy.received = 0
    assert download(source, path, pause=0).read_bytes() == BODY
    assert proxy.received < len(BODY) - kept + 10_000


def test_multipart_checksum_is_computed(proxy, tmp_path):
    source = find(connect(proxy.url), fetch.BUCKET, "parts.bin")
    assert source.part == 5 * 2**20 and source.checksum == "MD5 of the parts"
    assert download(source, tmp_path / "parts.bin").read_bytes() == PARTS
    digests = [hashlib.md5(p).digest() for p in (PARTS[: 5 * 2**20], PARTS[5 * 2**20 :])]
    expected = hashlib.md5(b"".join(digests)).hexdigest() + "-2"
    assert multipart_digest(tmp_path / "parts.bin", 5 * 2**20) == expected == source.version


@pytest.mark.parametrize(("size", "part"), [(0, 4), (4, 4), (8, 4), (9, 4), (3 * 2**20, 2**20 + 1)])
def test_multipart_digest_of_any_size(tmp_path, size, part):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(content)
    pieces = [content[k : k + part] for k in range(0, size, part)]
    joined = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
    assert multipart_digest(tmp_path / "x", part) == f"{joined}-{len(pieces)}"


@pytest.mark.parametrize("key", [KEY, "parts.bin"])
def test_altered_content_is_refused(proxy, tmp_path, key):
    source = find(connect(proxy.url), fetch.BUCKET, key)
    proxy.mangle = lambda data: data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 5000 else data
    with pytest.raises(InputError, match="checksum .*; expected .*nothing was kept"):
        download(source, tmp_path / "a.bin", pause=0)
    assert not files_in(tmp_path)


def test_file_replaced_in_the_bucket_is_not_mixed(s3, tmp_path):
    source = find(connect(f"http://127.0.0.1:{s3}"), fetch.BUCKET, KEY)
    other = type(source)(source.client, source.bucket, source.key, source.size, "0" * 32)
    with pytest.raises(InputError, match="has changed since it was looked up"):
        download(other, tmp_path / "a.bin", pause=0)


def test_missing_file_and_bucket(s3):
    client = connect(f"http://127.0.0.1:{s3}")
    with pytest.raises(InputError, match="s3://natural-scenes-dataset/no/file: there is no such"):
        find(client, fetch.BUCKET, "no/file")
    with pytest.raises(InputError, match="s3://other-bucket/x: "):
        find(client, "other-bucket", "x")
    with pytest.raises(InputError, match="is no address"):
        connect("nowhere")


# ------------------------------------------------------------------------------------- all of NSD


def fetch_tree(folder, port, web, **more):
    said = []
    fetch.fetch_nsd(
        folder, ("subj01",), connect(f"http://127.0.0.1:{port}"), pause=0, say=said.append,
        **{"sessions": 2, "captions_url": web.url + "/captions.zip"} | more,
    )  # fmt: skip
    return said


def test_only_what_is_needed_is_fetched_and_can_be_read(s3, web, tree, tmp_path):
    said = fetch_tree(tmp_path / "nsd", s3, web)
    fetched = files_in(tmp_path / "nsd")
    betas = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    assert fetched == {
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "nsddata/freesurfer/fsaverage/label/Kastner2015.mgz.ctab",
        "nsddata/ppdata/subj01/func1pt8mm/roi/Kastner2015.nii.gz",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        f"{betas}/ncsnr.nii.gz",
        f"{betas}/betas_session01.hdf5",
        f"{betas}/betas_session02.hdf5",
        *(f"coco/annotations/{name}" for name in CAPTIONS),
    }
    for name in fetched:
        assert (tmp_path / "nsd" / name).read_bytes() == (tree / name).read_bytes()
    here = load_subject("nsd", tmp_path / "nsd", "subj01", sessions=2)
    there = load_subject("nsd", tree, "subj01", sessions=2)
    np.testing.assert_array_equal(here.responses, there.responses)
    assert here.stimuli.captions(here.stimulus_ids[:3]) == there.stimuli.captions(
        there.stimulus_ids[:3]
    )
    assert "9 files" in said[1] and "to download" in said[1]


def test_second_time_nothing_is_downloaded(s3, web, tmp_path):
    fetch_tree(tmp_path, s3, web)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files_in(tmp_path)}
    assert "Nothing to download" in fetch_tree(tmp_path, s3, web)[-1]
    short = tmp_path / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    short.write_bytes(short.read_bytes()[:1000])
    assert "1 file," in fetch_tree(tmp_path, s3, web)[1]
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in files_in(tmp_path)}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"}


def test_dry_run_only_says(s3, web, tmp_path):
    said = fetch_tree(tmp_path / "nsd", s3, web, dry_run=True)
    assert "to download" in said[-1] and not (tmp_path / "nsd").exists()


def test_too_little_space_before_anything_comes(s3, web, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="1.0 MB free; .* are needed"):
        fetch_tree(tmp_path / "nsd", s3, web)
    assert not (tmp_path / "nsd").exists()


def test_file_that_the_bucket_lacks_is_named(s3, web, tmp_path):
    with pytest.raises(InputError, match="betas_session04.hdf5: there is no such file"):
        fetch_tree(tmp_path, s3, web, sessions=9)
    assert not files_in(tmp_path)


def test_an_atlas_whose_labels_each_subject_has(s3, web, tree, tmp_path, monkeypatch):
    """NSD keeps some tables of labels with the subjects, not with fsaverage."""
    roi = "nsddata/ppdata/subj01/func1pt8mm/roi/{}.nii.gz"
    table = "nsddata/freesurfer/subj01/label/other.mgz.ctab"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "only-for-filling-the-bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "only-for-filling-the-bucket")
    client = boto3.client("s3", "us-east-1", endpoint_url=f"http://127.0.0.1:{s3}")
    client.upload_file(str(tree / roi.format("Kastner2015")), fetch.BUCKET, roi.format("other"))
    with pytest.raises(InputError, match="subj01/label/other.mgz.ctab: there is no such file"):
        fetch_tree(tmp_path, s3, web, rois="other:V1v")
    labels = tree / "nsddata/freesurfer/fsaverage/label/Kastner2015.mgz.ctab"
    client.upload_file(str(labels), fetch.BUCKET, table)
    fetch_tree(tmp_path, s3, web, rois="other:V1v,V1d")
    assert (tmp_path / table).is_file() and not (tmp_path / "nsddata/freesurfer/fsaverage").exists()
    assert list(load_subject("nsd", tmp_path, "subj01", rois="other:V1v,V1d").roi) == ["V1v", "V1d"]
    entries = take_stock("nsd", tmp_path, ("subj01",), rois="other:V1v,V1d", sessions=2)
    assert is_ready(entries) and tmp_path / table in {entry.path for entry in entries}
    said = fetch_tree(tmp_path, s3, web, rois="other:V1v,V1d")
    assert "Nothing to download" in said[-1]


def test_unknown_subject(tmp_path):
    with pytest.raises(InputError, match="'subj09' is unknown; NSD has subj01 to subj08"):
        fetch.nsd_files(tmp_path, ("subj09",))


def test_all_sessions_of_each_subject(tmp_path):
    count = {
        name: sum("betas_session" in p.name for p in fetch.nsd_files(tmp_path, (name,)))
        for name in ("subj01", "subj03", "subj04")
    }
    assert count == {"subj01": 40, "subj03": 32, "subj04": 30}


def test_damaged_captions_are_refused(s3, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in CAPTIONS:
            archive.writestr(f"annotations/{name}", json.dumps({"annotations": [name] * 99}))
    broken = bytearray(packed.getvalue())
    broken[200] ^= 1
    with serve({"/captions.zip": bytes(broken)}) as server:
        with pytest.raises(InputError, match="annotations_trainval2017.zip is damaged"):
            fetch_tree(tmp_path, s3, server)
    assert not [name for name in files_in(tmp_path) if name.startswith("coco")]


# ----------------------------------------------------------------------------------- command line


def call(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["minddiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, capsys.readouterr()


def test_nothing_happens_without_the_agreement(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, shown = call(capsys, monkeypatch, "fetch", "nsd", tmp_path / "nsd")
    assert code == 2 and "data-access agreement" in shown.err and "--i-have-signed" in shown.err
    assert not (tmp_path / "nsd").exists()


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("y\n", 0)])
def test_asks_a_person(capsys, monkeypatch, tmp_path, s3, web, answer, code):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    got, shown = call(
        capsys, monkeypatch, "fetch", "nsd", tmp_path / "nsd", "--sessions", 1, "--dry-run",
        "--endpoint", f"http://127.0.0.1:{s3}", "--captions-url", web.url + "/captions.zip",
    )  # fmt: skip
    assert got == code
    assert "Have you signed the data-access agreement of NSD" in shown.err


def test_fetch_then_check_through_a_bad_connection(capsys, monkeypatch, tmp_path, proxy, web):
    proxy.cut_after, proxy.cuts = 100_000, 3
    monkeypatch.setattr("time.sleep", lambda _: None)
    code, shown = call(
        capsys, monkeypatch, "fetch", "nsd", tmp_path, "--i-have-signed", "--sessions", 2,
        "--endpoint", proxy.url, "--captions-url", web.url + "/captions.zip",
    )  # fmt: skip
    assert code == 0 and proxy.cuts == 0
    code, shown = call(capsys, monkeypatch, "check", "nsd", tmp_path, "--sessions", 2)
    assert code == 0 and "Ready: all 10 files" in shown.out


# ------------------------------------------------------------------------------- other recordings


def test_kay_through_bad_connections(tmp_path):
    path, content = test_kay.make(tmp_path)
    with serve({"/kay": path.read_bytes()}) as server:
        server.cuts, server.cut_after = 3, 10_000
        said = []
        fetch.fetch_kay(tmp_path / "kay", url=server.url + "/kay", say=said.append, pause=0)
        assert files_in(tmp_path / "kay") == {"kay_images.npz"}
        assert "Ready" in said[-1] and server.cuts == 0
        subject = load_subject("kay", tmp_path / "kay", "S1")
        np.testing.assert_allclose(subject.responses[3], content["responses"][3], rtol=1e-6)
        server.asked.clear()
        fetch.fetch_kay(tmp_path / "kay", url=server.url + "/kay", say=said.append)
        assert not server.asked
        # A file that was cut short is fetched again.
        file = tmp_path / "kay/kay_images.npz"
        file.write_bytes(file.read_bytes()[:5000])
        fetch.fetch_kay(tmp_path / "kay", url=server.url + "/kay", say=said.append)
        assert file.read_bytes() == path.read_bytes()


def test_kay_stopped_and_continued(tmp_path):
    path, _ = test_kay.make(tmp_path)
    with serve({"/kay": path.read_bytes()}) as server:
        server.cuts, server.cut_after = -1, 0
        with pytest.raises(InputError, match="the same command goes on"):
            fetch.fetch_kay(tmp_path / "kay", url=server.url + "/kay", pause=0)
        assert not (tmp_path / "kay/kay_images.npz").exists()


def test_kay_another_file_is_refused(tmp_path):
    with serve({"/kay": b"no npz at all"}) as server:
        with pytest.raises(InputError, match="download is not whole"):
            fetch.fetch_kay(tmp_path / "kay", url=server.url + "/kay", pause=0)


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
        said = []
        fetch.fetch_miyawaki(tmp_path / "got", say=said.append)
        assert "Ready: all 81 files" in said[-1]
        asked = len(server.asked)
        fetch.fetch_miyawaki(tmp_path / "got", say=said.append)
        assert len(server.asked) == asked
    subject = load_subject("miyawaki_full", tmp_path / "got", "S1")
    assert subject.responses.shape[0] == 76


def test_miyawaki_without_a_network(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "send", unreachable)
    with pytest.raises(InputError, match="nilearn could not download the recording.*network"):
        fetch.fetch_miyawaki(tmp_path)

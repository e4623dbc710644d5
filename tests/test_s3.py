"""Fetching from S3 as moto imitates it: listings in pages, ETags of files and of their parts.

Needs moto, which the other tests do not, so it runs only when asked for:

    pip install "moto[s3,server]"
    python -m pytest -m slow tests/test_s3.py
"""

import pytest
from test_laion import PICTURES, call, tree  # noqa: F401  (fixtures)
from tqdm import tqdm

from minddiff_utils.datasets import fetch
from minddiff_utils.io import InputError

pytestmark = pytest.mark.slow
PART = 5 * 2**20  # bytes, the least of a part that S3 takes


@pytest.fixture
def bucket(monkeypatch):
    """An empty public bucket, and its address."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", "us-east-1", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="laion-fmri")
    yield client, f"http://{host}:{port}/laion-fmri"
    server.stop()


def upload(client, name, body):
    """In parts, if it is large, as those who publish large files do."""
    if len(body) <= PART:
        client.put_object(Bucket="laion-fmri", Key=name, Body=body, ACL="public-read")
        return
    place = {"Bucket": "laion-fmri", "Key": name}
    number = client.create_multipart_upload(**place)["UploadId"]
    parts = []
    for start in range(0, len(body), PART):
        given = {"PartNumber": len(parts) + 1, "UploadId": number, **place}
        tag = client.upload_part(Body=body[start : start + PART], **given)["ETag"]
        parts.append({"ETag": tag, "PartNumber": len(parts) + 1})
    given = {"UploadId": number, "MultipartUpload": {"Parts": parts}, **place}
    client.complete_multipart_upload(**given)


def test_a_subject_comes_from_s3_byte_for_byte(bucket, tree, tmp_path, call, monkeypatch):  # noqa: F811
    client, url = bucket
    for path in tree.rglob("*"):
        name = path.relative_to(tree).as_posix()
        if path.is_file() and name != PICTURES:
            package = f"{fetch.LAION_COMMIT}/laion_fmri/splits/data/"
            upload(client, name.replace("splits/", package, 1), path.read_bytes())
    monkeypatch.setattr(fetch, "LAION_BUCKET", url)
    monkeypatch.setattr(fetch, "LAION_PACKAGE", url)
    to = tmp_path / "to"
    code, said = call("fetch", "laion", to, "--subject", "sub-01", "--sessions", "1-2")
    assert code == 0, said
    made = [path for path in to.rglob("*") if path.is_file() and path.name[0] != "."]
    assert len(made) == 25
    for path in made:
        assert path.read_bytes() == (tree / path.relative_to(to)).read_bytes()


def test_checksums_of_files_in_parts_are_checked(bucket, tmp_path):
    client, url = bucket
    body = bytes(range(256)) * (PART * 5 // 2 // 256)
    upload(client, "large.bin", body)
    remote = fetch.look_up(f"{url}/large.bin", bucket=True)
    assert remote.part == PART and remote.md5.endswith("-3")
    (tmp_path / "large.bin").write_bytes(body)
    assert fetch.digest(tmp_path / "large.bin", remote.part) == remote.md5
    client.put_object(Bucket="laion-fmri", Key="private.bin", Body=b"")
    for name, code in (("absent", 404), ("private", 403)):
        with pytest.raises(fetch.NotThere, match=f"{name}.bin cannot be fetched .{code}"):
            fetch.look_up(f"{url}/{name}.bin", bucket=True)


def test_listing_goes_on_from_page_to_page(bucket):
    client, url = bucket
    names = [f"rois/mask-{number:04d}.nii.gz" for number in range(1005)]
    for name in [*names, "rois/README"]:
        client.put_object(Bucket="laion-fmri", Key=name, Body=b"")
    assert fetch.list_bucket(url, "rois/") == names


def test_a_stopped_download_goes_on_and_a_spoilt_one_is_not_kept(bucket, tmp_path):
    client, url = bucket
    body = bytes(range(256)) * (PART * 3 // 2 // 256)
    upload(client, "large.bin", body)
    remote, path = fetch.look_up(f"{url}/large.bin", bucket=True), tmp_path / "large.bin"
    remote.partial(path).write_bytes(b"spoilt" + body[6:PART])
    with tqdm(disable=True) as bar, pytest.raises(InputError, match="checksum .*Nothing was kept"):
        fetch.fetch_file(remote, path, bar)
    assert not list(tmp_path.iterdir())
    remote.partial(path).write_bytes(body[:PART])  # a process was killed here
    with tqdm() as bar:
        assert fetch.fetch_file(remote, path, bar).read_bytes() == body
        assert bar.n == len(body) - PART  # no byte came twice
    upload(client, "large.bin", body[: PART // 2])  # another, shorter version meanwhile
    with tqdm(disable=True) as bar, pytest.raises(InputError, match="has changed meanwhile"):
        fetch.fetch_file(remote, tmp_path / "again.bin", bar)

"""Fetching from S3 as moto imitates it: listings in pages, ETags of files and of their parts.

Needs moto, which the other tests do not, so it runs only when asked for:

    pip install "moto[s3,server]"
    python -m pytest -m slow tests/test_s3.py
"""

import pytest

from minddiff_utils.datasets import fetch

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

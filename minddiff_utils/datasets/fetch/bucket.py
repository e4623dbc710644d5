"""Files of a public S3 bucket, read without an account."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minddiff_utils.datasets.fetch.downloads import BLOCK, PATIENCE, BrokenConnection, hide_secrets
from minddiff_utils.io import InputError

if TYPE_CHECKING:
    from botocore.client import BaseClient

REGION = "us-east-2"  # where the bucket of NSD is
SIMPLE = re.compile(r"[0-9a-f]{32}")
MULTIPART = re.compile(r"([0-9a-f]{32})-(\d+)")


class NotThere(InputError):
    """The bucket has no such file, or does not show it."""


def connect(endpoint: str | None = None, region: str = REGION) -> "BaseClient":
    """Return an S3 client that signs nothing, as public buckets allow.

    Parameters
    ----------
    endpoint : str, optional
        Address of a server other than Amazon's, such as a mirror.
    region : str

    Raises
    ------
    InputError
        If boto3 is not installed, or the address is none.
    """
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise InputError(
            "boto3 is not installed, which reads from the bucket: pip install boto3, or "
            "pip install -r requirements.lock."
        ) from None
    config = Config(
        signature_version=UNSIGNED,
        connect_timeout=PATIENCE,
        read_timeout=PATIENCE,
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    try:
        return boto3.client("s3", region_name=region, endpoint_url=endpoint, config=config)
    except ValueError as error:
        why = hide_secrets(f"{endpoint} is no address of a server ({error}).")
        raise InputError(why) from None


@dataclass(frozen=True)
class BucketSource:
    """One file of a bucket; made by `find`.

    Parameters
    ----------
    client : S3 client
    bucket, key : str
    size : int
        Bytes.
    version : str
        The ETag: MD5 of a file that was uploaded in one piece; of one uploaded in n parts, the MD5
        of the parts' MD5s, then -n.
    part : int
        Bytes of each part but the last; 0 if unknown or there are none.
    checked : bool
        Whether the ETag is a checksum; it is none of files encrypted with a key of their own.
    """

    client: "BaseClient"
    bucket: str
    key: str
    size: int
    version: str
    part: int = 0
    checked: bool = True

    @property
    def name(self) -> str:
        """For messages."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def checksum(self) -> str:
        """How the content is verified, in words."""
        if self.checked and SIMPLE.fullmatch(self.version):
            return "MD5"
        if self.checked and self.part and MULTIPART.fullmatch(self.version):
            return "MD5 of the parts"
        return "size only"

    def read(self, start: int) -> Iterator[bytes]:
        """Yield the content from byte `start` on, of this version only."""
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        try:
            answer = self.client.get_object(
                Bucket=self.bucket,
                Key=self.key,
                Range=f"bytes={start}-",
                IfMatch=f'"{self.version}"',
            )
            if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise InputError(f"{self.name}: the server does not send parts of a file.")
            with answer["Body"] as body:
                # As much as has come, so that a stall loses none of it.
                while block := body.read1(BLOCK):
                    yield block
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status >= 500:
                raise BrokenConnection(str(error)) from error
            if status == 412:
                raise InputError(
                    f"{self.name} has changed since it was looked up. Run the command again."
                ) from None
            raise InputError(f"{self.name}: {error}.") from None
        except (BotoCoreError, HTTPError, OSError) as error:
            raise BrokenConnection(str(error) or type(error).__name__) from error

    def fault(self, path: Path) -> str:
        """Compare size and ETag."""
        size = path.stat().st_size
        if size != self.size:
            return f"{size} bytes came; {self.size} were announced"
        if self.checksum == "size only":
            return ""
        if self.checksum == "MD5":
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        else:
            found = multipart_digest(path, self.part)
        return "" if found == self.version else f"checksum {found}; expected {self.version}"


def find(client: "BaseClient", bucket: str, key: str) -> BucketSource:
    """Look up size and checksum of a file.

    Parameters
    ----------
    client : S3 client
        From `connect`.
    bucket, key : str

    Raises
    ------
    NotThere
        If there is no such file or bucket.
    InputError
        If there is no connection.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    name = f"s3://{bucket}/{key}"
    try:
        head = client.head_object(Bucket=bucket, Key=key)
        size, version = int(head["ContentLength"]), head["ETag"].strip('"')
        parts = MULTIPART.fullmatch(version)
        part = _part_size(client, bucket, key, size, int(parts[2])) if parts else 0
    except ClientError as error:
        code = error.response["ResponseMetadata"]["HTTPStatusCode"]
        reason = {403: "access is refused", 404: "there is no such file"}.get(code)
        kind = NotThere if reason else InputError
        raise kind(f"{name}: {reason or error}.") from None
    except (BotoCoreError, OSError) as error:
        why = hide_secrets(error)
        raise InputError(f"{name} cannot be reached ({why}). Is there a network?") from None
    # Encrypted with a key of the owner's, a file's ETag is no digest of what is downloaded.
    encrypted = "kms" in head.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in head
    return BucketSource(client, bucket, key, size, version, part, not encrypted)


def _part_size(client: "BaseClient", bucket: str, key: str, size: int, count: int) -> int:
    """Return the bytes of the first part if all parts but the last can be as long; else 0."""
    if count == 1:
        return size
    first = int(client.head_object(Bucket=bucket, Key=key, PartNumber=1)["ContentLength"])
    return first if first and -(-size // first) == count else 0


def multipart_digest(path: str | Path, part: int) -> str:
    """Return the ETag that S3 gives to a file uploaded in parts.

    Parameters
    ----------
    path : str or Path
    part : int
        Bytes of each part but the last.

    Returns
    -------
    str
        MD5 of the parts' MD5s in hexadecimal, a dash, the number of parts.
    """
    digests = []
    with open(path, "rb") as file:
        while True:
            digest, left = hashlib.md5(usedforsecurity=False), part
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
            if left == part:
                break
            digests.append(digest.digest())
            if left:
                break
    total = hashlib.md5(b"".join(digests), usedforsecurity=False)
    return f"{total.hexdigest()}-{len(digests)}"

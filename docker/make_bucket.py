"""Make buckets that are not there yet, and prove that they can be used. Usage: make_bucket.py BUCKET...

The address and the keys come from the standard AWS variables. S3 servers listen before they can store anything: this
tries for a minute.
"""

import os
import sys
import time

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


def make(client: BaseClient, bucket: str) -> None:
    """Make one bucket, and write and read an object in it."""
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="health", Body=b"yes")
    assert client.get_object(Bucket=bucket, Key="health")["Body"].read() == b"yes"


def main(buckets: list[str]) -> None:
    """Make each bucket, or end with what went wrong."""
    config = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 1})
    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
    client = botocore.session.get_session().create_client("s3", endpoint_url=endpoint, config=config)
    deadline = time.monotonic() + 60
    for bucket in buckets:
        while True:
            try:
                make(client, bucket)
                break
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    sys.exit(f"bucket {bucket} at {endpoint}: {error}")
                time.sleep(1)
        print(f"bucket {bucket} is ready")


if __name__ == "__main__":
    main(sys.argv[1:])

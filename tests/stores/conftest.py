"""Every behaviour is shown on a folder and on S3 (tests/support/s3.py)."""

import pytest


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path):
    """An empty place for a store."""
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3")

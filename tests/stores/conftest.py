"""Every behaviour is shown on a folder and on S3 (tests/support/s3.py)."""

import pytest


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def url(request, tmp_path):
    """An empty place for a store."""
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3")

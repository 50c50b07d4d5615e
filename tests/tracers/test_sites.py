"""The table of sites is complete: a name that a job may use has a row, and rows come in forward order."""

from typing import get_args

from posttrace.tracers.operations import SITES, STREAM_SITES
from posttrace.tracers.sites import Site


def test_every_name_that_a_job_may_use_has_one_row():
    assert get_args(Site) == SITES
    assert set(SITES) - set(STREAM_SITES) == {"z"}

"""CSV files of users: large ones cost little, links keep their name, and nothing is read as what it is not."""

import numpy as np
import pytest

from posttrace.pipeline import statements
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.rows import read_rows
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.statements import Statement, drawn, read_set
from tests.support.jobs import write_csv


def rows_of(path, **options):
    return read_rows(str(path), "set x", "edit sets", needed=("a",), help="it needs a", **options)


def test_cells_come_in_the_order_asked_for_and_blank_lines_count_for_none(tmp_path):
    (tmp_path / "x.csv").write_text('\ufeffb,a,c\r\n1,"2, 3",4\r\n\r\n5,6\r\n7,8,9,,\r\n', encoding="utf-8")
    found = rows_of(tmp_path / "x.csv", optional=("c", "d"))
    assert [row.cells for row in found] == [("2, 3", "4", None), ("6", "", None), ("8", "9", None)]
    assert [row.line for row in found] == [2, 4, 5]


def test_only_the_rows_that_are_wanted_are_kept(tmp_path):
    write_csv(tmp_path / "x.csv", [(i, i % 3) for i in range(9)], ("a", "kind"))
    assert [row.cells for row in rows_of(tmp_path / "x.csv", where={"kind": "1"})] == [("1",), ("4",), ("7",)]
    assert rows_of(tmp_path / "x.csv", where={"kind": "5"}) == []
    with pytest.raises(JobError, match="has no column 'sort'"):
        rows_of(tmp_path / "x.csv", where={"sort": "1"})


def test_a_link_keeps_its_name(tmp_path, job_file):
    """As data that a version control keeps elsewhere: the link ends in .csv, the file that it leads to does not."""
    (tmp_path / "cities.csv").rename(tmp_path / "5d41402a")
    (tmp_path / "cities.csv").symlink_to("5d41402a")
    job = load_job(str(job_file), [f"sets=[{tmp_path / 'cities.csv'}]"])
    assert [one.name for one in job.sets] == ["cities"] and len(read_set(job.sets[0])) == 72


def test_of_a_large_set_some_statements_are_drawn_and_pairs_stay_together(monkeypatch):
    monkeypatch.setattr(statements, "DRAWN", 100)
    spec = StatementSet(name="x", csv="x.csv")
    many = [Statement(f"w{i}", i % 2 == 0, f"pair {i // 2}") for i in range(1000)]
    some = drawn(spec, many, seed=0)
    assert len(some) == 100 and some == sorted(some, key=many.index) and some == drawn(spec, many, seed=0)
    assert all(np.unique([s.pair for s in some], return_counts=True)[1] == 2)
    assert some != drawn(spec, many, seed=1)
    assert drawn(spec, many[:100], seed=0) == many[:100]
    alone = [Statement(f"w{i}", i % 2 == 0, "") for i in range(1000)]
    assert len(drawn(spec, alone, seed=0)) == 100


def test_more_statements_than_can_be_tokenised_are_refused(tmp_path, job_file, monkeypatch):
    from posttrace.pipeline.plan import prepare

    monkeypatch.setattr(statements, "MOST", 20)
    with pytest.raises(
        JobError, match=r"72 statements of .* are more than the 20 .*; set max_pairs, or choose"
    ):
        prepare(load_job(str(job_file), ["max_pairs=null"]))

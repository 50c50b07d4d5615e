"""What the records of the benchmarks hold."""

COLUMNS = {
    "method", "device", "cells", "seconds", "max_abs_diff", "ratio_to_paper_loop", "ratio_to_floor", "peak_rss_mib"
}  # fmt: skip

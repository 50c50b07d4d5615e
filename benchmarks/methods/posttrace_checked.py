"""posttrace as a job runs it: the grid, then up to 8 of its cells again by whole forward passes."""

from __future__ import annotations

import random

from benchmarks.methods import posttrace_grid
from posttrace.tracers.checked import checked_grid

PEER = posttrace_grid.PEER


class Method(posttrace_grid.Method):
    def grid(self):
        options = dict(unchanged=self.unchanged, share=0.01, rng=random.Random(0), **self.options)
        return checked_grid(self.model, self.prompts, self.source, **options).grid

"""The reference for all methods: `tracers.oracles.patching.naive_cell`, never timed."""

from __future__ import annotations

from benchmarks.methods import posttrace_grid
from posttrace.tracers.oracles.patching import naive_cell

PEER = posttrace_grid.PEER


class Method(posttrace_grid.Method):
    def run(self, cells):
        return [
            float(
                naive_cell(
                    self.model,
                    self.prompts[pair],
                    token,
                    self.source[0, pair, layer, token],
                    site=posttrace_grid.SITE,
                    layer=layer,
                    answers=self.task.answers,
                )
            )
            for pair, layer, token in cells
        ]

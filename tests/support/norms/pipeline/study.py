"""The study `norms`."""

from collections.abc import Iterator

import numpy as np

from posttrace.pipeline.study import Result, Study, Work
from posttrace.stores import Group
from posttrace.tracers.cost import Cost, run_cost
from posttrace.tracers.engines.activations import read_statements
from tests.support.norms.pipeline.arrays import norms_group
from tests.support.norms.pipeline.inputs import NormsSet, read_norms_set
from tests.support.norms.pipeline.job import NormsJob
from tests.support.norms.pipeline.units import planned


class Norms(Study[NormsJob, dict[str, NormsSet]]):
    """A `norms` job, planned; `inputs` has its sets by name."""

    def read_inputs(self) -> dict[str, NormsSet]:
        return {spec.name: read_norms_set(spec, self.stages) for spec in self.job.sets}

    def arrays(self) -> Iterator[Group]:
        for name, one in self.inputs.items():
            yield norms_group(self.job, name, one, self.stages.n_layers)

    def units(self) -> Iterator[Work]:
        return planned(self.job, self.inputs)

    def _prompts(self, work: Work):
        return self.inputs[work.about["set"]].prompts[work.open_stage][slice(*work.unit.region["statement"])]

    def run_read(self, work: Work, model, store) -> Result:
        layers = range(self.stages.n_layers)
        found = model.run(
            read_statements, self._prompts(work), site="resid_post", layers=layers, tokens="last"
        )
        return {"norm": found.values[:, :, 0].float().norm(dim=-1).numpy()[None]}, {}

    def run_gap(self, work: Work, model, store) -> Result:
        norm = store.read(work.unit.group, "norm")
        true = np.array([s.label for s in self.inputs[work.about["set"]].statements])
        return {"gap": norm[:, true].mean(axis=1) - norm[:, ~true].mean(axis=1)}, {}

    def cost(self, work: Work) -> Cost:
        if work.stage is None:
            return Cost()
        return run_cost(self.stages.shape, [0], [len(p.ids) for p in self._prompts(work)])

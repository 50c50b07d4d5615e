"""One module per tool; each has a class `Method` and runs in its own process and, if need be, environment.

    method = Method(loaded)              load the model (loaded: see `Load`)
    method.logits(ids)                   last-token logits of one prompt, to compare the weights
    method.prepare(task)                 read the activations of the clean runs; never timed
    method.run(cells)                    logit difference of each cell (pair, layer, statement token); timed

A module imports the standard library, torch, transformers and its own peer only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

METHODS = {
    "paper loop": "paper_loop",
    "raw hooks": "raw_hooks",
    "TransformerLens 4, generic_activation_patch": "transformer_lens_4",
    "TransformerLens 3, generic_activation_patch": "transformer_lens_3",
    "TransformerLens 3, batched, start_at_layer": "transformer_lens_3_batched",
    "pyvene": "pyvene_cells",
    "posttrace": "posttrace_grid",
    "posttrace, cells checked": "posttrace_checked",
    "naive oracle": "oracle",
}
"""Name in the records -> module."""


@dataclass(frozen=True)
class Load:
    """What a method loads."""

    folder: str | None
    """A checkpoint; with None, every process makes the same random weights on the device."""
    shape: dict
    device: str
    dtype: str

    def module(self, **options):
        """Load the transformers model."""
        import torch
        from transformers import AutoModelForCausalLM

        if self.folder is None:
            from benchmarks.shapes import Shape, random_module

            return random_module(Shape(**self.shape), device=self.device, dtype=self.dtype)
        return AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), device_map=self.device, **options
        ).eval()


def load(method: str, what: Load):
    """Return a method with its model loaded; raise ImportError if its tool is not installed."""
    return import_module(f"benchmarks.methods.{METHODS[method]}").Method(what)


def answer(logits, answers) -> float:
    """Return the logit of the first answer minus that of the second; dims of logits: vocab."""
    two = logits[list(answers)].detach().float()
    return float(two[0] - two[1])

"""A sixth study, as docs/add-a-study.md has it added: does post-training change how long the stream is?

Not part of the package: `add()` puts its two lines into the registries of the process that runs it.
"""

from posttrace.figures import registry
from posttrace.pipeline import studies


def add() -> None:
    studies.STUDIES["norms"] = "tests.support.norms.pipeline"
    registry.STUDIES["norms"] = "tests.support.norms.figures"

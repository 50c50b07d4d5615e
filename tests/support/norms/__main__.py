"""The command line with the sixth study in it."""

from posttrace.pipeline.cli import main
from tests.support import norms

norms.add()
main()

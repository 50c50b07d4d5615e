"""`python -m posttrace ...` is `posttrace ...`."""

from posttrace.pipeline.cli import main

main()

"""One folder a study: what a job declares, reads, stores and does (see docs/add-a-study.md)."""

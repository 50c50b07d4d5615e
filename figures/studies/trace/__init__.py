"""Tables of the study `trace`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.trace.data:TraceGroup",
    guide="posttrace.figures.studies.trace.guide:GUIDE",
    verdict="posttrace.figures.studies.trace.verdict:verdict",
    hero="trace/next_tokens",
    figures=(
        Figure(
            "trace/next_tokens",
            "table: the most probable next tokens of each prompt, with and without the operations",
            "posttrace.figures.studies.trace.tables:next_tokens",
        ),
        Figure(
            "trace/completions",
            "table: how every stage continues the prompts, with and without steering (jobs that generate)",
            "posttrace.figures.studies.trace.tables:completions",
            folded=True,
        ),
    ),
)

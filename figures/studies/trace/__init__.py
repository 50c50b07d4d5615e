"""Figures and tables of the study `trace`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="posttrace.figures.studies.trace.data:TraceGroup.from_dataset",
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
        Figure(
            "trace/lens",
            "logit lens, layer x token: what the stream would say next, with its probability (jobs with `lens`)",
            "posttrace.figures.studies.trace.maps:lens",
        ),
        Figure(
            "trace/norms",
            "length of the activations that reads keep, by layer and token",
            "posttrace.figures.studies.trace.maps:norms",
        ),
        Figure(
            "trace/projections",
            "component of what reads keep along every declared direction, by layer and token",
            "posttrace.figures.studies.trace.maps:projections",
        ),
    ),
)

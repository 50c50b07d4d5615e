"""Figures of the study `norms`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="tests.support.norms.figures.data:NormsData.from_dataset",
    guide="tests.support.norms.figures.guide:GUIDE",
    figures=(
        Figure(
            "norms/gap", "table: stream length of true minus false", "tests.support.norms.figures.tables:gap"
        ),
        Figure(
            "norms/lines", "lines: length of the stream, by layer", "tests.support.norms.figures.lines:lines"
        ),
    ),
)

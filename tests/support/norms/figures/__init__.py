"""Figures of the study `norms`."""

from posttrace.figures.study import Figure, Study

STUDY = Study(
    reader="tests.support.norms.figures.data:NormsData.from_dataset",
    guide="tests.support.norms.figures.guide:GUIDE",
    verdict="tests.support.norms.figures.tables:verdict",
    hero="norms/lines",
    figures=(
        Figure("norms/gap", "table: length, true minus false", "tests.support.norms.figures.tables:gap"),
        Figure("norms/lines", "lines: length, by layer", "tests.support.norms.figures.lines:lines"),
    ),
)

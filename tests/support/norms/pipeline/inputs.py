"""Statements, tokenised for every stage."""

from dataclasses import dataclass

from posttrace.pipeline.few_shot import check_prompt
from posttrace.pipeline.spec import StatementSet
from posttrace.pipeline.stages import Stages
from posttrace.pipeline.statements import Statement, check_number, read_set
from posttrace.tracers.prompts import Prompt, encode


@dataclass(frozen=True)
class NormsSet:
    """One set; its prompts by stage."""

    statements: list[Statement]
    prompts: dict[str, list[Prompt]]


def read_norms_set(spec: StatementSet, stages: Stages) -> NormsSet:
    statements = read_set(spec)
    check_number(spec, statements, "where")
    prompts = {}
    for stage, tokenizer in stages.tokenizers.items():
        prompts[stage] = [encode(tokenizer, "", s.text) for s in statements]
        for s, prompt in zip(statements, prompts[stage], strict=True):
            check_prompt(f"set {spec.name}: stage {stage}", s.text, prompt, tokenizer, stages.room)
    return NormsSet(statements, prompts)

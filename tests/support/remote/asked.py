"""A request over a random model, the same in every process."""

from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.prompts import encode
from posttrace.tracers.remote.request import request


def some_prompts(tokenizer, n=2):
    return [encode(tokenizer, "w1 w2 is w3.\n", f"w{i} w4 is w5.") for i in range(n)]


def asked_of(model):
    options = dict(site="resid_post", layers=(0, 1), answers=(5, 6))
    return request(model, read_statements, (some_prompts(model.tokenizer),), options, dtype="torch.float32")

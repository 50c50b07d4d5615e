"""Jobs over small random families, and the files that they read."""

import csv

import yaml

CHAT = "<user> {{ messages[0].content }} <answer>"
WORDS = ["The", " city", " of", " is", " in", ".", " This", " statement", ":", "'", " not"]
UNITS = 2 * 2 * (3 + 3)
"""Of the job that `write_job` writes: stages times clean and grid times the blocks of both sets."""


def good_job(study, inputs):
    family = {"name": "x", "stages": {"base": str(inputs / "model")}}
    cities, other = str(inputs / "cities.csv"), str(inputs / "other.csv")
    return {"study": study, "family": family, "execution": {"device": "cpu"}} | {
        "knowledge": {"sets": [cities], "max_pairs": 7},
        "truthfulness": {
            "sets": [cities, other],
            "max_statements": 24,
            "intervene_layer": 1,
            "probe_layer": 1,
        },
        "confidence": {"sets": [], "candidates": 2, "top_share": 0.5, "controls": 50},
        "difference": {
            "texts": [{"name": "mine", "file": str(inputs / "text.txt"), "documents": 4, "tokens": 12}],
            "samples": 16,
            "steering": {"documents": 1, "layers": [1], "random": 2, "prompts": 1, "new_tokens": 2},
            "patchscope": {"prompt": "w1 w1 w2 w2 w3", "slot": "w3", "known": 4},
        },
        "norms": {"sets": [cities], "statements_per_unit": 20},
        "refusal": {
            "harmful": str(inputs / "harmful.csv"),
            "harmless": str(inputs / "harmless.csv"),
            "openings": str(inputs / "openings.yaml"),
            "templates": {"base": "User: {instruction}\nAssistant:"},
            "new_tokens": 3,
            "random_directions": 2,
        },
        "stages": {
            "behaviours": ["refusal", "verdict", {"name": "mine", "texts": ["The city of w1 is in w2."]}],
            "sets": [cities],
            "harmful": str(inputs / "harmful.csv"),
            "harmless": str(inputs / "harmless.csv"),
            "openings": str(inputs / "openings.yaml"),
            "max_prompts": 4,
            "controls": 2,
            "prompts_per_unit": 3,
        },
        "trace": {
            "prompts": ["The city of w1 is in"],
            "operations": [{"op": "steer", "direction": "up", "tokens": "last"}],
            "directions": {"up": {"file": str(inputs / "none.npy")}},
        },
    }[study]


def write_job(folder, family, statements):
    write_csv(folder / "cities.csv", statements)
    free = []
    for i in range(12):
        middle = " is" * (i % 4)
        free += [(f"w{i}{middle} w7 of w8.", 1), (f"w{i}{middle} w{9 + i % 2} of w8.", 0)]
    write_csv(folder / "free.csv", free)
    job = {
        "study": "knowledge",
        "family": {
            "name": "random",
            "stages": {"base": str(family / "base"), "instruct": str(family / "instruct")},
        },
        "sets": [
            {"name": "cities", "csv": "cities.csv"},
            {"name": "free", "csv": "free.csv", "pairs": "free"},
        ],
        "max_pairs": 7,
        "pairs_per_unit": 3,
        "execution": {"device": "cpu"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def write_csv(path, rows, header=("statement", "label")):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])

"""Inputs that are wrong by mistake or by malice: name -> (job to begin with, what makes it bad, words of the message).

What makes it bad gets a folder of its own and the job as a dict; it changes the job and writes files. If it returns
bytes or text, that is the whole job file; if a list, those are the arguments instead of `run job.yaml`.
"""

import json
import os
import shutil

import numpy as np

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)
)
CASES = {}


def bad(name, words, job="knowledge"):
    def keep(change):
        CASES[name] = (job, change, words)
        return change

    return keep


def put(name, words, keys, job="knowledge"):
    """A job with some keys changed; `{folder}` in texts is the case's folder."""
    bad(name, words, job)(lambda folder, raw: raw.update(keys))


# --- the job file, and --set ---------------------------------------------------------------------------------------

TEXTS = {
    "recursive alias": ("study: knowledge\nsets: &a [*a]", "an alias (*) that contains itself"),
    "exploding aliases": (LAUGHS, "more than 200,000 values"),
    "deep nesting": ("a: " + "[" * 100_000, "more than 32 levels deep"),
    "deep mapping": ("".join(f"{'  ' * i}a:\n" for i in range(500)), "more than 32 levels deep"),
    "study that is a list": ("study: [x]", "study: ['x'] is none of"),
    "study that is a mapping": ("study: {x: 1}", "study: {'x': 1} is none of"),
    "list at the top": ("- study", "a job is a YAML mapping"),
    "text at the top": ("knowledge", "a job is a YAML mapping"),
    "nothing": ("", "a job is a YAML mapping"),
    "two documents": ("study: trace\n---\nstudy: trace", "expected a single document"),
    "number of 5,000 digits": (f"study: trace\nseed: {'9' * 5000}", "integer of 5,000 digits"),
    "number of 90 hex digits": (f"study: trace\nseed: 0x{'f' * 90}", "more than 64 bits"),
    "lone surrogate": ('study: "\\ud800"', "invalid Unicode character"),
    "undecodable bytes": (b"study: \xff\xfe", "is not UTF-8 text (byte 7)"),
    "UTF-16": ("study: trace".encode("utf-16"), "is not UTF-8 text"),
    "NUL bytes": (b"study: trace\0", "byte 12 is NUL"),
    "NUL character": ('study: "a\\0"', "NUL character"),
    "key twice": ("study: trace\nstudy: knowledge", "line 2: the key 'study' stands twice"),
    "key that is a list": ("? [a]\n: b", "unhashable key"),
    "key that is a number": ("study: knowledge\nfamily: embedded\nsets: [cities]\n1: 2", "should be strings"),
    "tag": ("study: !!python/object/apply:os.system [ls]", "use plain texts"),
    "tag that lies": ("study: !!int x", "use plain texts"),
    "date": ("study: 2024-01-01", "is read as a date; quote it"),
    "no YAML": ("a: [", "not a readable YAML file"),
    "2 MB": ("# " + "x" * 2**21, "at most 1,048,576 are read"),
    "50,000 mistakes": ("study: trace\n" + "".join(f"k{i}: 1\n" for i in range(50_000)), "more mistakes"),
}  # fmt: skip
for name, (text, words) in TEXTS.items():
    bad(f"job: {name}", words)(lambda folder, raw, text=text: text)

SETTINGS = {
    "recursive alias": ("sets=&a [*a]", "an alias (*) that contains itself"),
    "deep nesting": ("sets=" + "[" * 50_000, "more than 32 levels deep"),
    "deep key": ("a." * 3000 + "b=1", "a job goes 32 deep at most"),
    "number of 5,000 digits": ("seed=" + "9" * 5000, "integer of 5,000 digits"),
    "undecodable bytes": ("family=\udcff", "is no UTF-8 text"),
    "no value": ("max_pairs", "write it as key.path=value"),
    "overlong value": ("site=" + "x" * 100_000, "site: Input should be"),
    "overlong path": ("sets=[" + "x" * 5000 + ".csv]", "is no usable path"),
    "home of nobody": ("sets=[~nobody-here/a.csv]", "is no usable path"),
    "path with NUL": ('sets=["a\\0b.csv"]', "NUL character"),
    "set of the wrong kind": ("sets=cities", "sets: Input should be"),
    "set that is null": ("sets=[null]", "sets.0"),
    "family that is a list": ("family=[a]", "family"),
    "stage that is a number": ("family={name: x, stages: {base: 1}}", "family.stages.base"),
    "model that is a list": ("family={name: x, stages: {base: {model: [a]}}}", "family.stages.base.model"),
    "key of a number": ("max_pairs.x=1", "max_pairs is 7 in the job"),
    "empty": ("", "write it as key.path=value"),
}  # fmt: skip
for name, (text, words) in SETTINGS.items():
    bad(f"--set: {name}", words)(lambda folder, raw, text=text: ["--set", text])


@bad("job: missing", "no file")
def _(folder, raw):
    return ["run", folder / "nowhere.yaml"]


@bad("job: overlong path", "file name too long")
def _(folder, raw):
    return ["run", "x" * 5000]


@bad("job: undecodable path", "is no UTF-8 text")
def _(folder, raw):
    return ["run", str(folder / "\udcff.yaml")]


# --- files that are none, wherever a job names one -----------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path.name)


def vast(path):
    with path.open("wb") as stream:
        stream.truncate(2**40)


NO_FILES = {
    "pipe": (pipe, "is no regular file but a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file but a device"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "link to itself": (loop, ""),
    "missing": (lambda path: None, "no file"),
    "terabyte": (vast, "are read; give a smaller file"),
}
PLACES = {
    "statements": ("knowledge", "x.csv", lambda raw: raw.update(sets=["x.csv"])),
    "prompts": ("trace", "x.csv", lambda raw: raw.update(prompts={"csv": "x.csv"})),
    "instructions": ("refusal", "x.csv", lambda raw: raw.update(harmful="x.csv")),
    "phrases": ("refusal", "x.txt", lambda raw: raw.update(phrases="x.txt")),
    "openings": ("refusal", "x.yaml", lambda raw: raw.update(openings="x.yaml")),
    "text": ("confidence", "x.txt", lambda raw: raw.update(text={"file": "x.txt"})),
    "direction": ("trace", "x.npy", lambda raw: raw.update(directions={"up": {"file": "x.npy"}})),
}
for place, (job, file, use) in PLACES.items():
    for kind, (make, words) in NO_FILES.items():

        def _(folder, raw, file=file, use=use, make=make):
            make(folder / file)
            use(raw)

        bad(f"{place}: {kind}", words, job)(_)
for kind, (make, words) in NO_FILES.items():

    def _(folder, raw, make=make):
        make(folder / "other.yaml")
        return ["run", folder / "other.yaml"]

    bad(f"job: {kind}", words)(_)

# --- CSV and text --------------------------------------------------------------------------------------------------

CONTENTS = {
    "undecodable bytes": (lambda head, row: f"{head}\n{row}\n".encode() + b"\xff", "is not UTF-8 text"),
    "UTF-16": (lambda head, row: f"{head}\n{row}\n".encode("utf-16"), ""),
    "NUL bytes": (lambda head, row: f"{head}\n{row}\0\n".encode(), "is NUL"),
    "unclosed quote": (lambda head, row: f'{head}\n"{row}\n{row}\n', "quotes must be closed"),
    "enormous field": (lambda head, row: f"{head}\n{'x' * 200_000}{row}\n", "field larger than field limit"),
    "unquoted comma": (lambda head, row: f"{head}\n{row},really\n", "put texts that contain commas"),
    "nothing": (lambda head, row: "", "has no column"),
    "header only": (lambda head, row: f"{head}\n", "has no rows"),
    "column twice": (lambda head, row: f"{head},{head}\n{row},{row}\n", "more than one column"),
    "other columns": (lambda head, row: "a,b\n1,2\n", "has no column"),
    "50 MB": (lambda head, row: f"{head}\n" + f"{row}\n" * (50 * 2**20 // (len(row) + 1)), "more than 250,000 rows"),
    "100 MB": (lambda head, row: "x" * 100 * 2**20, "at most 67,108,864 are read"),
}  # fmt: skip
TABLES = {
    "statements": ("statement,label", "The city of w1 is in w2.,1"),
    "prompts": ("prompt,source", "The city of w1 is in,The city of w2 is in"),
    "instructions": ("instruction,split", "w1 w2,test"),
}
for place, (head, row) in TABLES.items():
    job, file, use = PLACES[place]
    for kind, (content, words) in CONTENTS.items():

        def _(folder, raw, file=file, use=use, content=content, head=head, row=row):
            made = content(head, row)
            (folder / file).write_bytes(made if isinstance(made, bytes) else made.encode())
            use(raw)

        bad(f"{place}: {kind}", words, job)(_)

for place in ("phrases", "text"):
    job, file, use = PLACES[place]
    for kind, content, words in (
        ("undecodable bytes", b"I can\xff", "is not UTF-8 text (byte 5)"),
        ("NUL bytes", b"I can\0", "is NUL"),
        ("nothing", b"", ""),
    ):

        def _(folder, raw, file=file, use=use, content=content):
            (folder / file).write_bytes(content)
            use(raw)

        bad(f"{place}: {kind}", words, job)(_)

OPENINGS = {
    "recursive alias": ("refusal: &a [*a]", "contains itself"),
    "exploding aliases": (LAUGHS, "more than 200,000 values"),
    "list": ("[a]", "refusal is None; give two lists of texts"),
    "text": ("refusal: a\ncompliant: b", "refusal is 'a'; give two lists of texts"),
    "numbers": ("refusal: [I]\ncompliant: [Yes]", "compliant: YAML reads True as no text; quote it"),
}
for kind, (text, words) in OPENINGS.items():

    def _(folder, raw, text=text):
        (folder / "x.yaml").write_text(text)
        raw["openings"] = "x.yaml"

    bad(f"openings: {kind}", words, "refusal")(_)

# --- directions ----------------------------------------------------------------------------------------------------


def header(path, descr, shape):
    """A .npy file that is its header only, however large it says that it is."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, dict(descr=descr, fortran_order=False, shape=shape))


def broken(path, content):
    path.write_bytes(content)


CODE = b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').getcwd()".ljust(32)
ARRAYS = {
    ".npz": (lambda p: np.savez(p.open("wb"), a=np.ones(32)), "is no readable .npy file"),
    "strings": (lambda p: np.save(p, np.array(["a"] * 32)), "not real numbers"),
    "complex": (lambda p: np.save(p, np.ones(32, complex)), "complex128, not real numbers"),
    "bool": (lambda p: np.save(p, np.ones(32, bool)), "bool, not real numbers"),
    "objects": (lambda p: np.save(p, np.array([1] * 32, object)), "object, not real numbers"),
    "dates": (lambda p: np.save(p, np.zeros(32, "datetime64[s]")), "not real numbers"),
    "records": (lambda p: np.save(p, np.zeros(32, "f4,f4")), "not real numbers"),
    "petabyte": (lambda p: header(p, "<f4", (2**48,)), "shape (281474976710656,), must be (32,) or (3, 32)"),
    "less than it says": (lambda p: header(p, "<f4", (32,)), "is no readable .npy file"),
    "wrong shape": (lambda p: np.save(p, np.ones(31, "f4")), "shape (31,), must be (32,) or (3, 32)"),
    "scalar": (lambda p: np.save(p, np.float32(1)), "shape (), must be"),
    "NaN": (lambda p: np.save(p, np.full(32, np.nan)), "must be finite"),
    "infinite": (lambda p: np.save(p, np.full(32, np.inf)), "must be finite"),
    "beyond float32": (lambda p: np.save(p, np.full(32, 1e300)), "no value beyond 1e+09"),
    "zero": (lambda p: np.save(p, np.zeros(32)), "not zero"),
    "zero in a block": (lambda p: np.save(p, np.eye(3, 32) * [[1], [0], [1]]), "not zero in any block"),
    "no .npy": (lambda p: broken(p, b"1 2 3"), "is no readable .npy file"),
    "unknown version": (lambda p: broken(p, b"\x93NUMPY\x09\x00" + b" " * 90), "version (9, 0)"),
    "header that is code": (lambda p: broken(p, CODE), "is no readable .npy file"),
    "deep header": (lambda p: broken(p, b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 8192), "is no readable .npy file"),
}  # fmt: skip
for kind, (make, words) in ARRAYS.items():

    def _(folder, raw, make=make):
        make(folder / "x.npy")
        raw["directions"] = {"up": {"file": "x.npy"}}

    bad(f"direction: {kind}", words, "trace")(_)

# --- numbers -------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
put(
    "trace: top above the vocabulary",
    "top: 301 is not in 1-300",
    {"top": 301, "operations": [], "directions": {}},
    "trace",
)
for value in (1e300, -1e300, NAN, INF):
    steer = {"op": "steer", "direction": "up", "tokens": "last", "coefficient": value}
    put(f"trace: coefficient {value}", "operations.0", {"operations": [steer]}, "trace")
    put(f"truthfulness: coefficient {value}", "coefficient:", {"coefficient": value}, "truthfulness")
    put(
        f"truthfulness: sweep of {value}", "coefficient_sweep", {"coefficient_sweep": [value]}, "truthfulness"
    )
    put(f"refusal: search of {value}", "coefficient_search", {"coefficient_search": [value]}, "refusal")
    chosen = {"base": {"layer": 1, "position": -1, "coefficient": value}}
    put(f"refusal: coefficient {value}", "selected.base.coefficient", {"selected": chosen}, "refusal")
put("knowledge: check_share NaN", "check_share", {"execution": {"check_share": NAN}})
put("knowledge: deadline infinite", "deadline", {"execution": {"remote": {"deadline": INF}}})
put("knowledge: 10^15 layers", "layers: 1000000000000000 is not in 0-2", {"layers": [10**15]})
put("knowledge: 65 bits", "more than 64 bits", {"seed": 2**64})
put("knowledge: exact_share NaN", "exact_share", {"exact_share": NAN})
put("confidence: 10^15 documents", "text.documents", {"text": {"documents": 10**15}}, "confidence")
put("confidence: 10^15 candidates", "candidates:", {"candidates": 10**15}, "confidence")
put("confidence: 10^15 controls", "controls:", {"controls": 10**15}, "confidence")

# --- checkpoints ---------------------------------------------------------------------------------------------------

TEMPLATES = {
    "raises": ("{{ raise_exception('roles must alternate') }}", "raises TemplateError: roles must alternate"),
    "recurses": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "raises RecursionError"),
    "never ends": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
    "takes all memory": ("{{ 'x' * 10 ** 11 }}", "raises MemoryError"),
    "writes a gigabyte": ("{{ 'x' * 10 ** 8 }}", "characters together"),
    "is no Jinja": ("{% if %}", "raises TemplateSyntaxError"),
    "divides by zero": ("{{ 1 // 0 }}", "raises ZeroDivisionError"),
}  # fmt: skip


def copied(folder, raw):
    """The job's first stage as a folder that may be spoiled."""
    shutil.copytree(raw["family"]["stages"]["base"], folder / "base")
    raw["family"] = {"name": "x", "stages": {"base": "base"}}
    raw.pop("stages", None)
    return folder / "base"


for kind, (template, words) in TEMPLATES.items():

    def _(folder, raw, template=template):
        (copied(folder, raw) / "chat_template.jinja").write_text(template)
        raw["templates"] = {"base": "chat"}

    bad(f"chat template: {kind}", words, "refusal")(_)


def edited(folder, raw, file, **keys):
    path = copied(folder, raw) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def nameless(folder, raw):
    edited(folder, raw, "tokenizer_config.json", chat_template=[{"name": "rag", "template": "x"}])
    (folder / "base" / "chat_template.jinja").unlink()
    raw["templates"] = {"base": "chat"}


CHECKPOINTS = {
    "templates without a default": (lambda f, r: nameless(f, r), "no default"),
    "config of 10^9 layers": (lambda f, r: edited(f, r, "config.json", num_hidden_layers=10**9), "not in 1-1000"),
    "config of -1 layers": (lambda f, r: edited(f, r, "config.json", num_hidden_layers=-1), "num_hidden_layers"),
    "config of no vocabulary": (lambda f, r: edited(f, r, "config.json", vocab_size=0), ""),
    "config of half a layer": (lambda f, r: edited(f, r, "config.json", num_hidden_layers=2.5), ""),
    "config deep": (lambda f, r: (copied(f, r) / "config.json").write_text("[" * 100_000), "cannot be loaded"),
    "config list": (lambda f, r: (copied(f, r) / "config.json").write_text("[]"), "cannot be loaded"),
    "tokenizer garbage": (lambda f, r: (copied(f, r) / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    "half a vocabulary": (lambda f, r: edited(f, r, "config.json", vocab_size=20), "the model only 20"),
}  # fmt: skip
for kind, (make, words) in CHECKPOINTS.items():
    bad(f"checkpoint: {kind}", words, "refusal")(lambda folder, raw, make=make: make(folder, raw) and None)
for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
    for kind in ("pipe", "device", "folder"):

        def _(folder, raw, file=file, kind=kind):
            path = copied(folder, raw) / file
            path.unlink()
            NO_FILES[kind][0](path)

        bad(f"checkpoint: {file} is a {kind}", file)(_)

# --- stores and folders --------------------------------------------------------------------------------------------

for command in (["show"], ["verify"], ["figures", "--out", "out"], ["report", "--out", "out"]):
    for kind in ("pipe", "folder", "missing", "link to itself"):

        def _(folder, raw, command=command, kind=kind):
            NO_FILES[kind][0](folder / "store")
            return [command[0], folder / "store", *(folder / a if a == "out" else a for a in command[1:])]

        bad(f"{command[0]}: {kind}", "")(_)
    for name, url in (
        ("overlong", "x" * 5000),
        ("NUL", "a\0b"),
        ("undecodable", "\udcff"),
        ("scheme", "ftp://x/y"),
        ("half", "s3://[x"),
    ):

        def _(folder, raw, command=command, url=url):
            return [command[0], url, *(folder / a if a == "out" else a for a in command[1:])]

        bad(f"{command[0]}: {name} URL", "")(_)
for name, url in (
    ("overlong", "x" * 5000),
    ("NUL", "a\0b"),
    ("undecodable", "\udcff"),
    ("device", "/dev/null"),
    ("home", "~nobody-here/x"),
):
    bad(f"run: {name} store", "")(lambda folder, raw, url=url: ["run", "JOB", "--store", url])
bad("ls: nonsense", "")(lambda folder, raw: ["ls", "nonsense"])
bad("run: no job", "")(lambda folder, raw: ["run"])
bad("run: unknown option", "")(lambda folder, raw: ["run", "JOB", "--colour", "red"])

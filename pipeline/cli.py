"""The command line: `posttrace run JOB`, `check`, `describe`, `fetch`, `figures STORE`, `report`, `view`, `show` ..."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from posttrace.stores.errors import StoreError

# Threads of OpenMP that spin while they wait make shared cores several times slower; said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = App(
    name="posttrace",
    help="What did post-training change inside this model?",
    help_epilogue="A job is one YAML file: `posttrace ls jobs` lists some, `posttrace describe STUDY` all keys.",
    version=lambda: __import__("posttrace").__version__,
    version_flags=["--version"],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command()


def _command(*examples: str):
    """Register a command of the application, with examples at the end of its help."""
    return app.command(help_epilogue="Examples:\n" + "\n".join(f"  {e}" for e in examples))


Store = Annotated[str, Parameter(help="Folder or s3:// URL of a store.")]
JobName = Annotated[str, Parameter(help="A job file, or the name of a built-in job (`posttrace ls jobs`).")]
Changes = Annotated[
    list[str] | None,
    Parameter(name="--set", help="key.path=value, a change to the job; may be repeated.", negative=()),
]
Backend = Annotated[
    Literal["local", "remote", "simulated"] | None,
    Parameter(help="Where the models are; the same as --set execution.backend=..., see docs/remote.md."),
]


@_command(
    "posttrace run knowledge",
    "posttrace run knowledge --set sets=[cities] --set max_pairs=null",
    "posttrace run my-job.yaml --store s3://bucket/my-run",
    "posttrace run refusal --dry-run",
    "posttrace run my-job.yaml --dry-run --device-flops 4e14",
    "posttrace run my-job.yaml --max-hours 3.5",
    "posttrace run my-job.yaml --quiet --log runs/my-job.log",
    "posttrace run knowledge --backend remote --set family=llama-3.1-8b",
    "posttrace run knowledge --workers 4",
    "posttrace run my-job.yaml --shard 0/4",
)
def run(
    job: JobName,
    /,
    *,
    store: Annotated[str | None, Parameter(help="Folder or s3:// URL; runs/JOB if not given.")] = None,
    set_: Changes = None,
    backend: Backend = None,
    dry_run: Annotated[
        bool, Parameter(help="Estimate time, memory, downloads and disk without running.", negative=())
    ] = False,
    quiet: Annotated[bool, Parameter(help="Print nothing but errors.", negative=())] = False,
    log: Annotated[
        Path | None, Parameter(help="File to append messages and progress to, with the time.")
    ] = None,
    max_hours: Annotated[
        float | None,
        Parameter(
            help="Start no unit after so many hours; exit status 75 if some are left for the next run."
        ),
    ] = None,
    device_flops: Annotated[
        float | None,
        Parameter(
            help="Operations a second of another device that the time is to be estimated for, e.g. 4e14."
        ),
    ] = None,
    workers: Annotated[
        int | None, Parameter(help="Processes: one for each GPU, or on a CPU as many as you like.")
    ] = None,
    scheduler: Annotated[
        str | None, Parameter(help="Address of a Dask scheduler; its workers run the job.")
    ] = None,
    cluster: Annotated[
        Literal["slurm"] | None, Parameter(help="Submit --workers N jobs to it, see docs/clusters.md.")
    ] = None,
    shard: Annotated[
        str | None, Parameter(help="i/n: one of n processes that share a job, as in a SLURM array.")
    ] = None,
) -> None:
    """Run a job; run it again to go on where it stopped."""
    from posttrace.pipeline.job import load_job

    overrides = _changes(set_, backend)
    loaded = load_job(job, overrides)
    crew = _crew(loaded, workers, scheduler, cluster, shard)
    url = store or f"runs/{Path(job).stem}"
    if dry_run:
        _dry_run(loaded, url, device_flops)
        return
    from posttrace.pipeline.finished import finished

    if (n := finished(loaded, url)) is not None:
        from posttrace.pipeline.progress_bar import log_file

        with log_file(log) as logged:
            for say in [*([] if quiet else [_to_stderr]), *([logged] if logged else [])]:
                say(f"{url}: {n} of {n} units were done; 0 to go")
    else:
        from posttrace.pipeline.run import run_job

        given = {"max_hours": max_hours, "device_flops": device_flops, **crew}
        run_job(loaded, url, overrides=overrides, quiet=quiet, log=log, **given)
    if not quiet:
        print(f"{url}: complete; next: posttrace report {quote(url)}")


def _crew(job, workers: int | None, scheduler: str | None, cluster, shard: str | None) -> dict:
    """Who runs the job besides this process, as `run_job` takes it."""
    crew: dict[str, Any] = {}
    if (workers, scheduler, cluster) != (None, None, None):
        from posttrace.pipeline.executors.dask import Workers

        crew["workers"] = Workers(number=workers, scheduler=scheduler, cluster=cluster)
        crew["workers"].check(job)
    if shard is not None:
        from posttrace.pipeline.shards import check_shard, parse_shard

        crew["shard"] = parse_shard(shard)
        check_shard(crew["shard"], job, crew.get("workers"))
    return crew


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@_command(
    "posttrace check knowledge",
    "posttrace check knowledge --backend remote --set family=llama-3.1-8b",
)
def check(job: JobName, /, *, set_: Changes = None, backend: Backend = None) -> int:
    """Look for what would stop a job, and at the server that it would be sent to; exit status 1 if anything would."""
    from posttrace.pipeline.job import load_job
    from posttrace.pipeline.preflight import examine

    wrong = 0
    for finding in examine(load_job(job, _changes(set_, backend))):
        wrong += finding.verdict == "wrong"
        print(f"{finding.verdict:6}{finding.text}", flush=True)
    return 1 if wrong else 0


@_command(
    "posttrace fetch knowledge --set family=olmo-2-1b",
    "HF_HUB_OFFLINE=1 posttrace run knowledge --set family=olmo-2-1b",
)
def fetch(job: JobName, /, *, set_: Changes = None, backend: Backend = None) -> None:
    """Download what a job needs (checkpoints, published sets), e.g. on a login node; then it runs without a network."""
    from posttrace.pipeline.fetch import fetch as download
    from posttrace.pipeline.job import load_job

    download(load_job(job, _changes(set_, backend)), lambda line: print(line, flush=True))
    print(f"next, also without a network: HF_HUB_OFFLINE=1 posttrace run {quote(job)}")


@_command(
    "posttrace describe knowledge",
    "posttrace describe trace --schema > trace.schema.json",
)
def describe(
    study: Annotated[str, Parameter(help="A study, e.g. knowledge.")],
    /,
    *,
    schema: Annotated[bool, Parameter(help="A JSON schema, for editors.", negative=())] = False,
) -> None:
    """List the keys of a study's jobs: type, default, range and meaning."""
    from json import dumps

    from posttrace.pipeline import describe as about

    print(dumps(about.schema(study), indent=2, ensure_ascii=False) if schema else about.described(study))


def _changes(set_: list[str] | None, backend: str | None) -> list[str]:
    return [*(set_ or []), *([f"execution.backend={backend}"] if backend else [])]


@_command(
    "posttrace figures runs/knowledge",
    "posttrace figures runs/knowledge --out runs/figures --only knowledge/heatmaps",
)
def figures(
    store: Store,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for the figures; STORE-figures if not given.")] = None,
    only: Annotated[
        list[str] | None,
        Parameter(help="A figure's or study's name (`posttrace ls figures`); may be repeated.", negative=()),
    ] = None,
    verbose: Annotated[bool, Parameter(help="List every file.", negative=())] = False,
) -> None:
    """Draw every figure and table from a store, and a page with all of them; needs no model."""
    from posttrace.figures import render
    from posttrace.figures.files import default_folder

    folder = out or default_folder([store], "figures")
    drawn = render(store, folder, only=only, progress=print if verbose else None, page=only is None)
    print(f"{len(drawn)} files in {folder}" if only else f"{len(drawn)} files; report: {drawn[-1]}")


@_command(
    "posttrace report runs/knowledge",
    "posttrace report runs/knowledge runs/refusal runs/truthfulness --out runs/report",
)
def report(
    store: Store,
    /,
    *more: Annotated[str, Parameter(help="More stores, for one page about all.")],
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder for the page, report.html; next to the stores, with their names, if not given."
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a store, or about several."""
    from posttrace.figures import report as write

    print(f"report: {write([store, *more], out)}")


@_command(
    "posttrace view runs/knowledge",
    "posttrace view runs/knowledge s3://bucket/knowledge-13b --port 0 --no-browser",
)
def view(
    store: Store,
    /,
    *more: Annotated[str, Parameter(help="More stores, e.g. to subtract one from another.")],
    port: Annotated[int, Parameter(help="Port on this machine; 0 for any free one.")] = 5006,
    browser: Annotated[bool, Parameter(help="Open the page in the browser.", negative="--no-browser")] = True,
) -> None:
    """Look at any slice of a store, or of several, in the browser, on this machine only; Ctrl-C ends it.

    Needs `pip install 'posttrace[view]'`.
    """
    from posttrace.figures import view as serve

    serve([store, *more], port=port, browser=browser)


@_command(
    "posttrace show runs/knowledge",
    "posttrace show runs/knowledge --json",
)
def show(
    store: Store,
    /,
    *,
    json: Annotated[bool, Parameter(help="Everything that is known, as JSON.", negative=())] = False,
) -> None:
    """Say what a store holds, how much of it is done, and where it comes from."""
    from json import dumps

    from posttrace.stores import summary

    known = summary(store)
    print(dumps(known, indent=1, ensure_ascii=False) if json else "\n".join(_described(known)))


def _described(known: dict):
    job, units, source = known["job"], known["units"], known["provenance"]
    kinds = ", ".join(f"{kind} {n['done']} of {n['total']}" for kind, n in units["kinds"].items())
    state = "complete" if known["complete"] else "unfinished"
    yield f"{known['url']}: {state}, {units['done']} of {units['total']} units ({kinds})"
    yield f"job: {_job_in_words(job)}"
    versions = ", ".join(f"{name} {version}" for name, version in source.get("versions", {}).items())
    commit = f", commit {source['git_commit'][:10]}" if source.get("git_commit") else ""
    dirty = " with local changes" if source.get("git_dirty") else ""
    device = f" on {source['device']}" if source.get("device") else ""
    yield ", ".join(part for part in (f"from: {known['created']}{device}", versions) if part) + commit + dirty
    yield f"fingerprint: {known['fingerprint']}"
    for path, group in known["groups"].items():
        yield path
        for name, array in group["arrays"].items():
            dims = " x ".join(f"{d} {n}" for d, n in zip(array["dims"], array["shape"], strict=True))
            yield f"  {name:20} {array['dtype']:9} {dims}"


def _job_in_words(job: dict) -> str:
    """Describe the job in a few words; what another program wrote into the store is shown as far as it goes."""
    family = job.get("family")
    if isinstance(family, dict) and isinstance(family.get("stages"), dict):
        return f"{job.get('study')}, family {family.get('name')} ({', '.join(family['stages'])})"
    text = ", ".join(f"{key} {value}" for key, value in job.items() if isinstance(value, str | int | float))
    return text or "not written by a study"


@_command(
    "posttrace verify runs/knowledge",
    "posttrace verify runs/knowledge --repair",
)
def verify(
    store: Store,
    /,
    *,
    repair: Annotated[
        bool, Parameter(help="Mend what can be mended, and forget damaged units.", negative=())
    ] = False,
) -> int:
    """Read every chunk of a store again and name what is damaged; exit status 1 if anything is."""
    from posttrace.stores import repair as mend
    from posttrace.stores import summary
    from posttrace.stores import verify as check

    if repair:
        return _repaired(store, mend(store))
    problems = check(store)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{store}: {len(problems)} problems; next: posttrace verify {quote(store)} --repair")
        return 1
    units = summary(store)["units"]
    if not units["done"]:
        print(f"{store}: nothing to read: 0 of {units['total']} units are done; only metadata were checked")
        return 1
    print(f"{store}: no damage; {units['done']} of {units['total']} units are done, and were read")
    return 0


def _repaired(store: str, done) -> int:
    """Say what a repair did; exit status 1 if the job has to be run before the store is whole."""
    for problem in done.found:
        print(problem)
    for path in done.restored:
        print(f"{path}: restored")
    for unit in done.derived:
        print(f"{unit}: marked again, from its data")
    for problem in done.left:
        print(f"{problem}; run the job again")
    if done.forgotten:
        print(f"{store}: {len(done.forgotten)} units forgotten; run the job again to redo them")
    elif not done.left:
        print(f"{store}: nothing is damaged now")
    return 1 if done.left else 0


@_command(
    "posttrace ls models",
    "posttrace ls jobs",
    "posttrace ls architectures",
    "posttrace ls models --json",
)
def ls(
    what: Literal["models", "datasets", "jobs", "figures", "architectures"],
    /,
    *,
    json: Annotated[
        bool, Parameter(help="The same as JSON: name -> what it stands for.", negative=())
    ] = False,
) -> None:
    """List models (families and their stages), datasets, jobs or figures; or what was verified of each architecture."""
    listed = _listing(what)
    if json:
        from json import dumps

        print(dumps(dict(listed), indent=1, ensure_ascii=False))
        return
    for name, value in listed:
        print(
            f"{name:24} {value if isinstance(value, str) else value.get('question') or _family_in_words(**value)}"
        )


def _family_in_words(stages: dict[str, str], about: str) -> str:
    return f"{', '.join(f'{stage}: {model}' for stage, model in stages.items())}; {about}"


def _listing(what: str):
    from posttrace.pipeline import job, spec

    if what == "models":
        known = spec.about_families()
        return [(name, {"stages": stages, "about": known[name]}) for name, stages in spec.families().items()]
    if what == "datasets":
        return [(name, str(path)) for name, path in spec.datasets().items()]
    if what == "jobs":
        known_jobs = job.built_in_jobs().items()
        return [(name, {"question": job.question(path), "file": str(path)}) for name, path in known_jobs]
    if what == "architectures":
        from posttrace.tracers.models.verified import lines

        return lines()
    from posttrace.figures import figures

    return [(figure.name, figure.description) for figure in figures()]


def _dry_run(job, url: str, device_flops: float | None) -> None:
    from posttrace.pipeline.estimate import Estimate
    from posttrace.pipeline.plan import prepare
    from posttrace.tracers.models.loading import quiet_libraries

    quiet_libraries()
    study = prepare(job)
    rows = study.summary()
    columns = list(rows[0])
    for line in [columns, *([row.get(c, "") for c in columns] for row in rows)]:
        print("  ".join(f"{c:>14}" for c in map(_shown, line)))
    cells = sum(w.cells for w in study.work)
    for note in study.notes():
        print(f"note: {note}")
    print(f"{len(study.work)} units, {cells:,} cells, into {url}; stages: {', '.join(job.stage_names)}")
    for said in Estimate(study, study.work, url, device_flops).lines():
        print(said)
    if why := study.stages.shape.whole:
        print(f"every run is a whole forward pass, no prefix is shared: {why}")


def _shown(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _check_text(arguments: list[str]) -> None:
    from posttrace.pipeline.errors import JobError, shown

    for argument in map(str, arguments):
        if "\0" in argument or any("\ud800" <= c <= "\udfff" for c in argument):
            raise JobError(f"argument {shown(repr(argument))} is no UTF-8 text; write it in UTF-8")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's mistake becomes one message and status 2; a stopped run 130, one out of time 75."""
    from posttrace.figures.errors import FigureError
    from posttrace.pipeline import interrupts
    from posttrace.pipeline.errors import JobError
    from posttrace.tracers.errors import TracerError

    interrupts.listen()
    try:
        with interrupts.noticed():
            _check_text(sys.argv[1:] if arguments is None else arguments)
            status = app(arguments, result_action="return_value", exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"posttrace: {' '.join(str(error).split())} (posttrace --help says more)", file=sys.stderr)
        sys.exit(2)
    except (JobError, TracerError, FigureError, StoreError) as error:
        text = re.sub(r"\S{400,}", lambda word: f"{word[0][:180]}...{word[0][-180:]}", str(error))
        print(f"posttrace: {text}", file=sys.stderr)
        sys.exit(2)
    except interrupts.OutOfTime as over:
        print(f"posttrace: {over}; the same command goes on from there", file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        print(
            "\nposttrace: stopped; what was finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(status or 0)

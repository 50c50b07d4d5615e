"""Download what a job needs, so that it runs where there is no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.files import ADAPTER, folder_of
from posttrace.tracers.models.safetensors import INDEX, SINGLE

SMALL_FILES = (".json", ".jinja", ".txt", ".model")
"""Endings of the files that come with the weights: configurations, tokenizers, templates."""
GB = 1e9


def fetch(job: Job, say: Callable[[str], None]) -> None:
    """Download the checkpoints of a job's stages, and the published sets that it names, into the usual caches.

    >>> fetch(load_job("knowledge"), print)                            # doctest: +SKIP
    stage base: .../embedded/checkpoints/base is a folder

    Of a checkpoint only the weights that are read (safetensors) and the small files that come with them are fetched;
    for a job that runs on a server, no weights unless the study reads them. Raises JobError or TracerError for what
    cannot be had.
    """
    weights = job.execution.backend != "remote" or job.reads_weights
    for name in job.stages_read:
        stage = job.family.stages[name]
        if folder_of(stage.model, stage.revision) is not None:
            say(f"stage {name}: {stage.model} is a folder")
        else:
            say(f"stage {name}: {_fetch_checkpoint(stage.model, stage.revision, weights, say)}")
    for kind in ("harmful", "harmless"):
        spec = getattr(job, kind, None)
        if spec is not None and spec.csv is None:
            from posttrace.pipeline.studies.refusal.instructions import file_of

            say(f"{kind}: {file_of(spec)}")


def to_download(model: str, revision: str | None = None) -> int | None:
    """Return the bytes of weights that are not on this machine yet: 0 for a folder, None where the hub does not tell.

    Examples
    --------
    >>> to_download("allenai/OLMo-2-0425-1B")                          # doctest: +SKIP
    2969676800
    """
    if folder_of(model, revision) is not None:
        return 0
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(model, name, revision=revision)
        return found if isinstance(found, str) else None

    try:
        if cached(SINGLE) or (
            (index := cached(INDEX)) and all(map(cached, set(_read_index(index).values())))
        ):
            return 0
        sizes = _wanted_on_hub(model, revision, weights=True)
        return sum(n for name, n in sizes.items() if name.endswith(".safetensors") and not cached(name))
    except Exception:  # an estimate must not stop a run, which says itself what it cannot get
        return None


def wanted(names: Iterable[str], weights: bool, read_index: Callable[[], Mapping[str, str]]) -> list[str]:
    """Of a repository's files, those that a job reads.

    >>> wanted(["config.json", "model.safetensors", "original/params.json", "README.md"], True, dict)
    ['config.json', 'model.safetensors']

    read_index: gives the index of a checkpoint in shards, tensor -> file.
    """
    top = [name for name in names if "/" not in name or name.startswith("additional_chat_templates/")]
    found = [name for name in top if name.endswith(SMALL_FILES) and name != INDEX]
    if weights and SINGLE in top:
        found.append(SINGLE)
    elif weights and INDEX in top:
        found += [INDEX, *sorted(set(read_index().values()))]
    return found


def _wanted_on_hub(model: str, revision: str | None, weights: bool) -> dict[str, int]:
    """Return name -> bytes of the files in a repository of the hub that a job reads."""
    from huggingface_hub import HfApi, hf_hub_download

    about = HfApi().model_info(model, revision=revision, files_metadata=True)
    sizes = {one.rfilename: one.size or 0 for one in about.siblings or ()}
    names = wanted(sizes, weights, lambda: _read_index(hf_hub_download(model, INDEX, revision=revision)))
    return {name: sizes.get(name, 0) for name in names}


def _read_index(file: str) -> Mapping[str, str]:
    return json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"]


def _fetch_checkpoint(model: str, revision: str | None, weights: bool, say: Callable[[str], None]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    try:
        files = _wanted_on_hub(model, revision, weights)
        if ADAPTER in files:
            raise TracerError(
                f"model {model}: a PEFT adapter; merge it into its base model and name that folder"
            )
        if weights and not any(name.endswith(".safetensors") for name in files):
            raise TracerError(
                f"model {model}: no safetensors weights; convert them in a folder and name that"
            )
        say(f"{model}: {len(files)} files, {sum(files.values()) / GB:.2f} GB")
        # Names have no wildcards: each pattern is one file.
        folder = snapshot_download(model, revision=revision, allow_patterns=list(files))
    except GatedRepoError:
        raise JobError(
            f"model {model}: access is restricted: accept its licence at https://huggingface.co/{model}, log in with "
            "`hf auth login` (or set HF_TOKEN), and run this again"
        ) from None
    except (HFValidationError, HfHubHTTPError, OSError, ValueError, KeyError) as error:
        raise JobError(
            f"model {model}: not to be had from the hub ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); check the spelling, the network and your access to it"
        ) from None
    return folder

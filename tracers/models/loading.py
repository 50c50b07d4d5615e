"""Open a model for tracing, whatever its architecture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
import transformers
from nnsight import TransformersModel

from posttrace.tracers.batching.prefix_cache import give_each_kind_its_mask
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import Architecture, recognise
from posttrace.tracers.models.files import check_folder, check_tokenizer, folder_of
from posttrace.tracers.models.safetensors import Checkpoint
from posttrace.tracers.sites import PLAIN

MOST_LAYERS = 1000
"""Blocks of a model."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class OpenModel:
    """A model that is loaded, wrapped for tracing, and checked."""

    name: str
    """As the user called it: a directory or a hub id."""
    nn: TransformersModel
    """The nnsight model; `nn.layers[i]` is block i in every architecture (see tracers.models.architecture)."""
    tokenizer: transformers.PreTrainedTokenizerBase
    architecture: Architecture

    ships = False
    """Whether a run's arguments travel, so that it pays to let the engine compute what it can."""

    def run(self, engine, *arguments, **options):
        """Run an engine, `engine(model, ...)`, on this model: the one way in which a study computes with a model.

        >>> model.run(read_statements, prompts, site="resid_post", layers=[3], answers=(1, 2))   # doctest: +SKIP

        An engine is a module-level function that keeps nothing between calls; on another backend a call is one
        request.
        """
        return engine(self, *arguments, **options)

    @property
    def config(self) -> transformers.PretrainedConfig | SimpleNamespace:
        return self.nn._module.config

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return self.nn._module.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        inner = self.nn._module
        device = torch.device("meta") if inner is None else inner.get_input_embeddings().weight.device
        # Without weights (a view, or a server that does not show them) the model itself moves what it is given.
        return torch.device("cpu") if device.type == "meta" else device


def open_model(
    model: str, *, revision: str | None = None, device: str = "auto", dtype: str = "auto", check: bool = True
) -> OpenModel:
    """Load a causal language model and its tokenizer, and make its sites reachable.

    >>> model = open_model("path/to/checkpoint", dtype="float32")      # doctest: +SKIP

    model: directory of a checkpoint, or a hub id; weights are read from safetensors only, and no code of the
    checkpoint is run. device: `auto` (the fewest GPUs that hold it; without any, the CPU), `cpu`, `cuda` ...
    dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere. check: prove on a short prompt that
    the sites are where they should be (see tracers.models.validation).

    Raises TracerError when the model cannot be loaded or its sites misbehave.
    """
    where = resolve_device(device)
    config = load_config(model, revision)
    tokenizer = load_tokenizer(model, revision)
    precision = resolve_dtype(dtype, device, model, revision)
    wrapper = wrapper_class(model, revision)
    module, info = _loaded(
        wrapper or transformers.AutoModelForCausalLM,
        model,
        revision,
        dtype=precision,
        **placement(where, model, revision, precision),
        use_safetensors=True,
        output_loading_info=True,
    )
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        # transformers would fill them with random numbers and say so in a warning only.
        raise TracerError(
            f"model {model}: its files lack {len(absent)} of the weights that its config.json asks for "
            f"({', '.join(absent[:3])}{' ...' if len(absent) > 3 else ''}); give a complete causal language model"
        )
    if wrapper is not None:
        module = _text_model(module, config, model)
    return wrap(module, tokenizer, name=model, check=check)


def wrap(module, tokenizer, *, name: str, check: bool = True) -> OpenModel:
    """Make a loaded transformers model an OpenModel.

    >>> model = wrap(module, tokenizer, name="mine")                   # doctest: +SKIP

    Raises TracerError as `open_model` does.
    """
    from posttrace.tracers.models.validation import proven

    try:
        architecture = recognise(module)
        give_each_kind_its_mask(module)
        # nnsight builds on transformers' pipelines, which move a model to the first GPU unless told where it is.
        placed = {} if getattr(module, "hf_device_map", None) else {"device": module.device}
        nn = named(module.eval(), architecture, tokenizer=tokenizer, **placed)
        opened = OpenModel(name=name, nn=nn, tokenizer=tokenizer, architecture=architecture)
        return replace(opened, architecture=proven(opened)) if check else opened
    except TracerError as error:
        raise TracerError(str(error) if name in str(error) else f"model {name}: {error}") from error
    except Exception as error:  # what a foreign architecture raises comes from many libraries
        raise _unfit(name, module, error) from error


def named(source, architecture: Architecture, **options) -> TransformersModel:
    """Return a model (or where to find it) under nnsight, its parts named as sites ask for them.

    >>> named(module, recognise(module), tokenizer=tokenizer).layers[0].attn        # doctest: +SKIP
    """
    nn = TransformersModel(source, task="text-generation", rename=architecture.rename, **options)
    if architecture.form != PLAIN:
        for layer in range(len(nn.layers)):
            nn.layers[layer].form = architecture.form
    return nn


def _unfit(name: str, module, error: Exception) -> TracerError:
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return TracerError(
        f"model {name}: architecture {type(module).__name__} cannot be traced: a forward pass over a short prompt "
        f"ends with {why}"
    )


def resolve_device(device: str) -> str:
    """Return the `device_map` that a device name stands for: `auto` spreads over the GPUs, or is the CPU.

    >>> resolve_device("cpu")
    'cpu'

    Raises TracerError for a device that this machine does not have.
    """
    if device == "auto":
        return "auto" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise TracerError(
            f"device: {device!r} is not one of auto, cpu, cuda, cuda:N; edit execution.device"
        ) from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind.type, 0)
    if (kind.index or 0) >= available:
        raise TracerError(
            f"device: {device!r} is not on this machine (CUDA devices: {torch.cuda.device_count()}); "
            "edit execution.device, `auto` takes what there is"
        )
    return device


SPARE = 0.2
"""Share of a GPU's free memory that is left for what a run computes."""


def placement(where: str, model: str, revision: str | None, dtype: torch.dtype) -> dict[str, object]:
    """Return what transformers is told about devices: `auto` takes the fewest GPUs that hold the model.

    Examples
    --------
    >>> placement("cpu", "path/to/checkpoint", None, torch.float32)
    {'device_map': 'cpu'}
    """
    if where != "auto" or torch.cuda.device_count() == 1:
        return {"device_map": where}
    free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
    size = sum(one.numel() for one in empty_model(model, revision).parameters()) * dtype.itemsize
    chosen = fewest_gpus(size, free)
    if len(chosen) == 1:
        return {"device_map": f"cuda:{chosen[0]}"}
    return {"device_map": "auto", "max_memory": {i: free[i] for i in chosen}}


def fewest_gpus(size: int, free: Sequence[int]) -> list[int]:
    """Return the fewest GPUs that hold a model, those with the most free memory; all of them if it needs more.

    Parameters
    ----------
    size
        Bytes of the model's weights.
    free
        Free bytes of every GPU.

    Examples
    --------
    >>> fewest_gpus(16, [80, 80, 80, 80]), fewest_gpus(140, [80, 40, 80, 80]), fewest_gpus(16, [4, 80])
    ([0], [0, 2, 3], [1])
    """
    by_room = sorted(range(len(free)), key=lambda i: -free[i])
    held = 0.0
    for n, i in enumerate(by_room, start=1):
        held += free[i] * (1 - SPARE)
        if held >= size:
            return sorted(by_room[:n])
    return list(range(len(free)))


def resolve_dtype(dtype: str, device: str, model: str, revision: str | None = None) -> torch.dtype:
    """Return the dtype that a name stands for: `auto` is float32 on a CPU, the checkpoint's own elsewhere.

    >>> resolve_dtype("float16", "cpu", "path/to/checkpoint")
    torch.float16

    Raises TracerError for an unknown name.
    """
    if dtype not in DTYPES:
        raise TracerError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}; edit dtype")
    if dtype == "auto" and resolve_device(device) == "cpu":
        return torch.float32
    if dtype == "auto":
        stored = load_config(model, revision).dtype or torch.float32
        return getattr(torch, stored) if isinstance(stored, str) else stored
    return getattr(torch, dtype)


def load_config(model: str, revision: str | None = None) -> transformers.PretrainedConfig:
    """Return the configuration of a checkpoint's text model, without its weights.

    >>> load_config("path/to/checkpoint").num_hidden_layers            # doctest: +SKIP
    8

    Of a multimodal checkpoint, what it says of the text model within. Raises TracerError when there is none.
    """
    check_folder(model, revision)
    stored = _loaded(transformers.AutoConfig, model, revision)
    if getattr(stored, "is_encoder_decoder", False):
        raise TracerError(
            f"model {model}: {type(stored).__name__} describes an encoder-decoder, no decoder-only text model; give "
            "a causal language model"
        )
    config = _text_config(stored)
    if not hasattr(config, "num_hidden_layers"):
        raise TracerError(
            f"model {model}: {type(stored).__name__} describes no decoder-only text model; give a causal language model"
        )
    layers = config.num_hidden_layers
    if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
        raise TracerError(
            f"model {model}: num_hidden_layers in config.json is {str(layers)[:40]}, not in 1-{MOST_LAYERS}; give a "
            "complete checkpoint"
        )
    return config


def _text_config(stored) -> transformers.PretrainedConfig:
    """Return what a configuration says of the text model: all, or a part of it."""
    try:
        config = stored.get_text_config(decoder=True)
    except ValueError:  # several, of which none is the text model
        return stored
    if config is not stored:
        config.dtype = config.dtype or stored.dtype
        config.tie_word_embeddings = stored.tie_word_embeddings
    return config


def wrapper_class(model: str, revision: str | None = None) -> type | None:
    """Return the class of a checkpoint that holds a text model and more, as it names it; None for a text model alone.

    >>> wrapper_class("path/to/gemma-3-4b-it").__name__                # doctest: +SKIP
    'Gemma3ForConditionalGeneration'

    Raises TracerError when transformers has no class for the text model alone.
    """
    stored = _loaded(transformers.AutoConfig, model, revision)
    config = _text_config(stored)
    if config is stored:
        return None
    kind = getattr(transformers, (stored.architectures or [""])[0], None)
    text = transformers.AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is None or text is None or kind is text:
        what = (
            f"no class {stored.architectures}" if kind is None else f"no text model for {config.model_type}"
        )
        raise TracerError(
            f"model {model}: {type(stored).__name__}: transformers has {what} of its own; give the text model's "
            "checkpoint"
        )
    return kind


def _text_model(wrapper, config, name: str) -> transformers.PreTrainedModel:
    """Return the text model within a multimodal one, with its weights."""
    with torch.device("meta"):
        text = transformers.AutoModelForCausalLM.from_config(config)
    inner = wrapper.get_decoder()
    if type(inner) is type(text):  # Llama 4 holds it whole
        return inner
    if type(inner) is not type(text.base_model):
        raise TracerError(
            f"model {name}: {type(wrapper).__name__} holds a {type(inner).__name__}, not the "
            f"{type(text.base_model).__name__} of {type(text).__name__}; give the text model's checkpoint"
        )
    setattr(text, text.base_model_prefix, inner)
    text.set_output_embeddings(wrapper.get_output_embeddings())
    text.config = inner.config
    if getattr(wrapper, "hf_device_map", None):
        text.hf_device_map = wrapper.hf_device_map
    return text


def check_weights(model: str, revision: str | None = None, device: str = "auto") -> None:
    """Check, without reading a weight, what would stop a checkpoint from being opened.

    >>> check_weights("path/to/checkpoint")                            # doctest: +SKIP

    The weights of a folder must be safetensors files, all there and whole, as their headers and index say. A quantised
    checkpoint must be one that transformers opens here. Raises TracerError naming what is wrong.
    """
    text, stored = load_config(model, revision), _loaded(transformers.AutoConfig, model, revision)
    quantised = getattr(stored, "quantization_config", None) or getattr(text, "quantization_config", None)
    if quantised is not None:
        _check_quantised(model, quantised, resolve_device(device))
    if folder_of(model, revision) is not None:
        Checkpoint(model, revision).check()


def _check_quantised(model: str, quantised, device: str) -> None:
    from transformers.quantizers import AutoHfQuantizer

    named = quantised if isinstance(quantised, dict) else quantised.to_dict()
    try:
        quantizer = AutoHfQuantizer.from_config(deepcopy(quantised), pre_quantized=True)
        quantizer.validate_environment(device_map=device, weights_only=True)
    except Exception as error:  # of whatever library the method needs
        raise TracerError(
            f"model {model}: its weights are quantised ({named.get('quant_method')}), which transformers cannot open "
            f"here ({' '.join(str(error).split())[:300]}); install what it asks for, or give a checkpoint that is not "
            "quantised"
        ) from error


def empty_model(model: str, revision: str | None = None) -> transformers.PreTrainedModel:
    """Return the modules of a checkpoint without any weight in them (on the meta device), to look at its structure.

    >>> sum(p.numel() for p in empty_model("path/to/checkpoint").parameters())     # doctest: +SKIP
    3311200

    Raises TracerError when transformers knows no causal language model of that configuration.
    """
    config = load_config(model, revision)
    wrapper_class(model, revision)
    try:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise TracerError(
            f"model {model}: {type(config).__name__} is no causal language model ({' '.join(str(error).split())[:200]})"
        ) from error


def load_tokenizer(model: str, revision: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint, without its weights; raises TracerError when there is no fast one."""
    check_tokenizer(model, revision)
    tokenizer = _loaded(transformers.AutoTokenizer, model, revision)
    if not tokenizer.is_fast:
        raise TracerError(
            f"model {model}: its tokenizer is not a fast one, and offsets need one; convert it to a tokenizer.json"
        )
    known = load_config(model, revision).get_text_config().vocab_size
    if tokenizer.vocab_size > known:
        raise TracerError(
            f"model {model}: its tokenizer has {tokenizer.vocab_size} tokens, the model only {known} (vocab_size); "
            "fetch both from the same checkpoint"
        )
    tokenizer.embedded = known  # tracers.prompts looks at every id
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def quiet_libraries() -> None:
    """Keep transformers' progress bars and warnings out of our own progress lines."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("nnsight").setLevel(logging.ERROR)


def _loaded(kind, model: str, revision: str | None, **kwargs):
    """Have transformers load something of a checkpoint; the checkpoint's own code is never run."""
    folder = folder_of(model, revision)
    try:
        return kind.from_pretrained(
            model if folder is None else str(folder), revision=revision, trust_remote_code=False, **kwargs
        )
    except Exception as error:  # what a damaged or foreign checkpoint raises comes from many libraries
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise TracerError(
            f"model {model}: cannot be loaded ({why}); give the folder of a transformers checkpoint with "
            "safetensors weights, or a hub id, and check the spelling, the network and your access to it"
        ) from error

"""How many layers each pipeline stage holds: in equal parts, or as the flags for uneven stages say.

The rules are the engine's: ``validate_args``, ``TransformerConfig`` and ``get_num_layers_to_build`` check them one by
one, some of them only when the layers are built.
"""

import re
from collections.abc import Mapping
from typing import Any

from megatron_mixcpt.errors import ConfigError, nearest_divisors
from megatron_mixcpt.flags import flag_name

Settings = Mapping[str, Any]

_ENDS = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
_ACCOUNTED = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
_CHUNKS = ("num_virtual_stages_per_pipeline_rank", "num_layers_per_virtual_pipeline_stage")
_LAYOUT = "pipeline_model_parallel_layout"
_REMOVE_CHUNKS = f"remove {' and '.join(map(flag_name, _CHUNKS))}"


def stages_of(settings: Settings) -> list[list[int]]:
    """The number of layers in each chunk of each pipeline stage, by stage.

    Args:
        settings: the engine's arguments by name.

    Raises:
        ConfigError: flags that contradict one another, or that the model's layers cannot be divided by.
    """
    _refuse_two_ways(settings)
    stages = settings.get("pipeline_model_parallel_size", 1)
    if settings.get(_LAYOUT):
        return _written(settings, stages)
    if any(settings.get(name) is not None for name in _ENDS):
        return _uneven_ends(settings, stages)
    return _even(settings, stages)


def _refuse_two_ways(settings: Settings) -> None:
    """The engine knows four ways to divide the layers, and takes one of them; the ends' has no chunks of N layers."""
    given = {name: settings[name] for name in (*_CHUNKS, _LAYOUT, *_ENDS, *_ACCOUNTED) if settings.get(name)}
    virtual, layers = _CHUNKS
    for one, others in {
        virtual: (layers,),
        _LAYOUT: (*_CHUNKS, *_ENDS, *_ACCOUNTED),
        _ENDS[0]: (layers, *_ACCOUNTED),
        _ENDS[1]: (layers, *_ACCOUNTED),
    }.items():
        for other in others:
            if one in given and other in given:
                also = f", or {flag_name(virtual)}" if one in _ENDS and other == layers else ""
                raise ConfigError(
                    f"{_as_given(one, given[one])} and {_as_given(other, given[other])} both say how layers are divided"
                    f" over pipeline stages: give one of them{also}"
                )


def _as_given(name: str, value: Any) -> str:
    return flag_name(name) if value is True else f"{flag_name(name)} {value}"


def _chunks(settings: Settings, stages: int) -> int:
    """Chunks of layers on each rank, where ``--num-virtual-stages-per-pipeline-rank`` says it, or nothing does."""
    chunks = settings.get(_CHUNKS[0]) or 1
    _check_chunks(chunks, stages)
    return chunks


def _check_chunks(chunks: int, stages: int) -> None:
    if chunks > 1 and stages == 1:
        raise ConfigError(
            f"{chunks} chunks of layers on each rank need --pipeline-model-parallel-size 2 or more: {_REMOVE_CHUNKS}"
        )


def _even(settings: Settings, stages: int) -> list[list[int]]:
    """Equal parts; the embedding and the loss count as a layer each where a flag says so."""
    embedding, loss = (int(bool(settings.get(name))) for name in _ACCOUNTED)
    num_layers = settings["num_layers"] + embedding + loss
    counted = f"the model's {settings['num_layers']} layers"
    if embedding or loss:
        flags = " and ".join(flag_name(name) for name in _ACCOUNTED if settings.get(name))
        counted = f"{num_layers}, the model's {settings['num_layers']} layers and what {flags} counts as one"
    if num_layers % stages:
        sizes = nearest_divisors(stages, num_layers)
        raise ConfigError(f"--pipeline-model-parallel-size {stages} does not divide {counted}: choose {sizes}")
    of_stage = num_layers // stages
    if layers := settings.get(_CHUNKS[1]):
        if of_stage % layers:
            sizes = nearest_divisors(layers, of_stage)
            raise ConfigError(
                f"--num-layers-per-virtual-pipeline-stage {layers} does not divide the {of_stage} layers of each "
                f"pipeline stage ({counted}, --pipeline-model-parallel-size {stages}): choose {sizes}"
            )
        chunks = of_stage // layers
        _check_chunks(chunks, stages)
    else:
        chunks = _chunks(settings, stages)
    parts = [_in_chunks(of_stage, chunks, "each pipeline stage") for _ in range(stages)]
    parts[0][0] -= embedding
    parts[-1][-1] -= loss
    if parts[0][0] < 0 or parts[-1][-1] < 0:
        raise ConfigError(
            f"--pipeline-model-parallel-size {stages} leaves no layer beside the embedding and the loss, which "
            f"{' and '.join(map(flag_name, _ACCOUNTED))} count as layers: choose a smaller size, or remove them"
        )
    return parts


def _in_chunks(num_layers: int, chunks: int, where: str) -> list[int]:
    if num_layers % chunks:
        sizes = nearest_divisors(chunks, num_layers)
        raise ConfigError(
            f"--num-virtual-stages-per-pipeline-rank {chunks} does not divide the {num_layers} layers of {where}: "
            f"choose {sizes}"
        )
    return [num_layers // chunks] * chunks


def _uneven_ends(settings: Settings, stages: int) -> list[list[int]]:
    """The first and the last stage as given, what is left over the others in equal parts."""
    chunks = _chunks(settings, stages)
    given = {name: settings[name] for name in _ENDS if settings.get(name) is not None}
    listed = " and ".join(f"{flag_name(name)} {value}" for name, value in given.items())
    num_left, num_others = settings["num_layers"] - sum(given.values()), stages - len(given)
    if any(value < 1 for value in given.values()):
        raise ConfigError(f"{listed}: must be greater than 0")
    if num_others < 0:
        raise ConfigError(f"{listed}: needs --pipeline-model-parallel-size 2 or more, not {stages}: remove one of them")
    remedy = "change it, or --pipeline-model-parallel-size" if len(given) == 1 else "change one of them"
    if num_left < 0 or bool(num_left) != bool(num_others) or (num_others and num_left % num_others):
        raise ConfigError(
            f"{listed}: leaves {num_left} of the model's {settings['num_layers']} layers, which cannot be divided over "
            f"the {num_others} other pipeline stages: {remedy}"
        )
    middle = [num_left // num_others] * num_others if num_others else []
    first, last = ([given[name]] if name in given else [] for name in _ENDS)
    named = [(f"the {which} stage", part) for which, part in (("first", first), ("other", middle), ("last", last))]
    return [_in_chunks(num_layers, chunks, where) for where, part in named for num_layers in part]


def _written(settings: Settings, stages: int) -> list[list[int]]:
    """``--pipeline-model-parallel-layout``: E, t for each layer and L, in chunks with | between them."""
    layout, num_layers = settings[_LAYOUT], settings["num_layers"]
    parts = _unrolled(layout).split("|")
    whole = "".join(parts)
    problem = ""
    if wrong := sorted(set(whole) - set("EtL")):
        problem = f"has {' '.join(wrong)}, and only E (embedding), t (a layer), L (loss), | and *N are known"
    elif len(parts) % stages:
        problem = f"has {len(parts)} parts, no multiple of --pipeline-model-parallel-size {stages}"
    elif whole.count("t") != num_layers:
        problem = f"has {whole.count('t')} layers (t), and the model {num_layers}"
    elif not re.fullmatch("Et*L", whole) or not parts[0].startswith("E") or not parts[-1].endswith("L"):
        problem = "must have one E, at its start, and one L, at its end"
    if problem:
        raise ConfigError(f"{flag_name(_LAYOUT)} {layout}: {problem}; change it")
    _check_chunks(len(parts) // stages, stages)
    return [[part.count("t") for part in parts[stage::stages]] for stage in range(stages)]


def _unrolled(layout: str) -> str:
    """The layout with (...)*N and x*N written out, and without commas, as the engine reads it."""
    layout = layout.replace(",", "")
    for repeated in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        layout = re.sub(repeated, lambda found: found[1] * int(found[2]), layout)
    return layout

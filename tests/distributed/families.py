"""What proves that a family of models is right: the same weights here and in transformers, at real layouts of ranks.

Each proof takes a kind of ``tiny_models.KINDS`` and gives a figure, so that tests compare it with a tolerance and
``benchmarks/parity/families.py`` writes it down. The reference is transformers, in float32.

On the ranks of a layout a model folder is read straight into the engine's model, its converted release is read by the
engine's own ``load_checkpoint``, and the engine's own ``save_checkpoint`` writes what is exported afterwards.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.testing import run_distributed
from tests.distributed.tiny_models import KINDS, build_model, load_model
from tests.distributed.tiny_shape import VOCAB_SIZE

# Longer than the windows of the kinds; both chunks of a context-parallel rank are shorter than some of them.
TOKENS = torch.arange(2 * 48).view(2, 48) * 7 % VOCAB_SIZE


def tolerance_of(kind: str) -> float:
    """What float32 on both sides, in another order of sums, may differ by where values are around 1.

    The recurrence of gated delta nets multiplies exponentials along the sequence, in chunks here and there.
    """
    layer_types = getattr(KINDS[kind]().get_text_config(), "layer_types", None) or ()
    return 3e-5 if "linear_attention" in layer_types else 1e-5


class RankSizes(NamedTuple):
    """Sizes of the parallel groups."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    context: int = 1

    @property
    def sequence_parallel(self) -> bool:
        """With tensor parallelism, but not between stages: inference sends complete hidden states."""
        return self.tensor > 1 and self.pipeline == 1

    @property
    def num_ranks(self) -> int:
        """How many ranks there are."""
        return self.tensor * self.pipeline * self.expert * self.context


LAYOUTS = {
    "1x1": RankSizes(),
    "TP2+SP": RankSizes(tensor=2),
    "PP2": RankSizes(pipeline=2),
    "TP2xPP2": RankSizes(tensor=2, pipeline=2),
    "EP2": RankSizes(expert=2),
    "CP2": RankSizes(context=2),
}


def make_folder(kind: str, root: Path) -> None:
    """Fill ``root/KIND``: ``hf`` (float32), ``release`` (converted), ``expected.pt`` (logits, gradients by name)."""
    folder, model = root / kind, build_model(kind, seed=0)
    model.save_pretrained(folder / "hf", max_shard_size="50KB")
    convert_from_hf(folder / "hf", folder / "release")
    logits = model(TOKENS).logits
    next_token_loss(logits).backward()
    gradients = torch.stack([part.grad.norm() for part in model.parameters() if part.grad is not None])
    embedding = model.get_input_embeddings().weight.grad
    expected = {"logits": logits.detach(), "grad-norm": gradients.norm(), "embedding gradient": embedding}
    torch.save(expected, folder / "expected.pt")


def next_token_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean over all but the last position of logits [b, s, v]."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), TOKENS[:, 1:].flatten())


def figures_at(
    layout: str,
    kinds: Sequence[str],
    root: Path,
    save_root: Path,
    *,
    check: Callable[..., None] | None = None,
    timeout_s: int = 300,
) -> dict[str, dict]:
    """Run the kinds on the layout's ranks and export what these save; what the ranks print is in ``save_root.log``.

    ``check`` stands in for :func:`check_kinds`, with its arguments.

    Returns:
        For each kind: ``logits`` and ``released``, the largest difference from transformers' logits, over the largest
        logit where that is above 1, of weights read directly and through the release; ``exported``, whether the export
        equals the source bit for bit; at 1x1 also ``grad-norm`` and ``embedding gradient``, relative differences.
    """
    arguments = (layout, list(kinds), str(root), str(save_root))
    run_distributed(
        check or check_kinds, LAYOUTS[layout].num_ranks, *arguments, cpu_emulation=True, timeout_s=timeout_s
    )
    figures = {}
    for kind in kinds:
        copy_hf_metadata(root / kind / "hf", save_root / kind)
        export(save_root / kind, save_root / kind / "exported", root / kind / "hf")
        same = same_tensors(save_root / kind / "exported", root / kind / "hf")
        figures[kind] = {**json.loads((save_root / kind / "figures.json").read_text()), "exported": same}
    return figures


def check_kinds(layout: str, kinds: Sequence[str], root: str, save_root: str) -> None:
    """On each rank; the first one writes ``figures.json`` of each kind."""
    log = os.open(f"{save_root}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)  # of the engine's checkpoints, a thousand lines each
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    sizes = LAYOUTS[layout]
    parallel_state.initialize_model_parallel(
        sizes.tensor,
        sizes.pipeline,
        context_parallel_size=sizes.context,
        expert_model_parallel_size=sizes.expert,
    )
    init_num_microbatches_calculator(0, None, sizes.expert, micro_batch_size=1, data_parallel_size=sizes.expert)
    model_parallel_cuda_manual_seed(1)
    for kind in kinds:
        check_kind(Path(root) / kind, Path(save_root) / kind, sizes)


def check_kind(folder: Path, save_dir: Path, sizes: RankSizes) -> None:
    """One kind on this rank."""
    from megatron.training.checkpointing import load_checkpoint, save_checkpoint

    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.inference.engine_model import build_engine_model, load_on_this_rank, transformer_config

    hf_model = read_model_folder(folder / "hf")
    config = transformer_config(hf_model, sequence_parallel=sizes.sequence_parallel)
    model = build_engine_model(hf_model, config).eval()
    expected = torch.load(folder / "expected.pt")

    forget(model)
    load_on_this_rank(model, hf_model)
    figures = {"logits": difference(model, expected["logits"])}
    if sizes.num_ranks == 1:
        figures |= gradient_differences(model, expected)

    forget(model)
    set_engine_arguments(hf_model.engine_arguments, sizes, load=folder / "release", save=save_dir)
    load_checkpoint([model], None, None)
    figures["released"] = difference(model, expected["logits"])
    save_checkpoint(7, [model], None, None, 0)
    of_all_ranks = [None] * sizes.num_ranks
    torch.distributed.all_gather_object(of_all_ranks, figures)
    worst = {key: max(found[key] for found in of_all_ranks if found[key] is not None) for key in figures}
    if torch.distributed.get_rank() == 0:
        (save_dir / "figures.json").write_text(json.dumps(worst))


def forget(model: torch.nn.Module) -> None:
    """Make every parameter and every buffer of a checkpoint nan, so that one left unfilled shows."""
    for tensor in model.state_dict().values():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.fill_(float("nan"))


def difference(model: torch.nn.Module, expected: torch.Tensor) -> float | None:
    """Of the last stage's logits, without the vocabulary's padding, which must be zero; None on earlier stages."""
    from megatron_mixcpt.inference.engine_model import forward_through_stages

    mine = positions_of_this_rank()
    logits = forward_through_stages(model, TOKENS[:, mine], mine.expand(len(TOKENS), -1))
    if logits is None:
        return None
    assert not logits[..., VOCAB_SIZE:].any()
    expected = expected[:, mine]
    return ((logits[..., :VOCAB_SIZE] - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def positions_of_this_rank() -> torch.Tensor:
    """The r-th and the r-th last of 2 n chunks, where n context-parallel ranks share a sequence."""
    from megatron.core import parallel_state

    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    chunks = torch.arange(TOKENS.shape[1]).chunk(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def gradient_differences(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of the norm over all parameters and of the embedding's gradient, relative to the largest of the expected."""
    from megatron_mixcpt.inference.engine_model import logit_scaling

    positions = torch.arange(TOKENS.shape[1]).expand(len(TOKENS), -1)
    logits = logit_scaling(model.config)(model(TOKENS, positions, None))
    next_token_loss(logits[..., :VOCAB_SIZE]).backward()
    norm = torch.stack([part.grad.norm() for part in model.parameters() if part.grad is not None]).norm()
    embedding = model.embedding.word_embeddings.weight.grad
    apart = (embedding - expected["embedding gradient"]).abs().max() / expected["embedding gradient"].abs().max()
    model.zero_grad()
    return {"grad-norm": (norm / expected["grad-norm"] - 1).abs().item(), "embedding gradient": apart.item()}


def set_engine_arguments(engine_arguments: dict, sizes: RankSizes, load: Path, save: Path) -> None:
    """Arguments as the engine's programs have them, for its checkpoint functions."""
    from megatron.training import global_vars
    from megatron.training.arguments import parse_args, validate_args

    flags = f"--load {load} --save {save} --tensor-model-parallel-size {sizes.tensor}"
    flags += f" --pipeline-model-parallel-size {sizes.pipeline} --expert-model-parallel-size {sizes.expert}"
    flags += f" --context-parallel-size {sizes.context}"
    run = "--micro-batch-size 1 --seq-length 64 --train-iters 1 --lr 1e-4 --save-interval 1 --transformer-impl local"
    sys.argv = ["test", *flags.split(), *run.split()]
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    args = parse_args()
    vars(args).update(engine_arguments)
    validate_args(args)
    args.padded_vocab_size = -(-args.vocab_size // sizes.tensor) * sizes.tensor
    global_vars.set_args(args)


def round_trip(kind: str, folder: Path, dtype: torch.dtype) -> bool:
    """Whether a folder in ``dtype`` survives the way to Megatron and back: every bit, and config.json's bytes."""
    build_model(kind, seed=1).to(dtype).save_pretrained(folder / "hf", max_shard_size="60KB")
    convert_from_hf(folder / "hf", folder / "megatron")
    export(folder / "megatron", folder / "out", folder / "hf")
    configs = [(folder / name / "config.json").read_bytes() for name in ("hf", "out")]
    return configs[0] == configs[1] and same_tensors(folder / "out", folder / "hf")


def export(checkpoint: Path, target: Path, source: Path) -> None:
    """As ``tools/convert_to_hf.py``, with the base model's folder where tensors travel from it."""
    has_others = read_model_folder(source).carried
    convert_to_hf(checkpoint, target, max_shard_bytes=60_000, hf_reference=source if has_others else None)


def same_tensors(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same names, dtypes and bits."""
    ours, theirs = read_all(folder), read_all(other)
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by the safetensors library."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def generate(folder: Path, num_tokens: int = 16) -> list[int]:
    """What transformers makes of a folder: the most probable continuation of a few tokens."""
    options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
    return load_model(folder).generate(TOKENS[:1, :8], **options)[0].tolist()

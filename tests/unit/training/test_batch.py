"""Microbatches: the mask of documents against one written token by token, what the model makes of it, and which bytes
the host sends to the device for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from megatron_mixcpt.testing import run_distributed
from tests.distributed.dense_iteration import engine_dataset_config
from tests.distributed.tiny_run import SEQ_LENGTH, make_world


def test_document_mask() -> None:
    run_distributed(check_document_mask, 1, cpu_emulation=True)


def check_document_mask() -> None:
    from megatron_mixcpt.models.query_blocks import MASKED_SCORE
    from megatron_mixcpt.training.batch import document_mask

    seq_length = 7
    # Rows as the engine pads them: documents' first positions, then the sequence length as often as it takes.
    boundaries = torch.tensor([[0, 3, 4, 7, 7], [0, 7, 7, 7, 7]], dtype=torch.int32)
    documents = [[0, 0, 0, 1, 2, 2, 2], [0] * 7]
    expected = torch.tensor(
        [
            [[key > query or row[key] != row[query] for key in range(seq_length)] for query in range(seq_length)]
            for row in documents
        ]
    )
    for dtype in (torch.float32, torch.bfloat16):
        mask = document_mask(boundaries, seq_length, dtype)
        assert torch.equal(mask, expected.unsqueeze(1).to(dtype) * MASKED_SCORE) and mask.dtype == dtype


def test_documents_of_a_sequence_are_read_as_if_each_stood_alone(tmp_path: Path) -> None:
    run_distributed(check_documents_stand_alone, 1, str(make_world(tmp_path)), cpu_emulation=True)


def check_documents_stand_alone(root: str) -> None:
    from megatron.core import parallel_state

    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.inference.engine_model import (
        build_engine_model,
        forward_through_stages,
        load_on_this_rank,
        transformer_config,
    )
    from megatron_mixcpt.training.batch import get_batch

    parallel_state.initialize_model_parallel()
    folder = read_model_folder(Path(root) / "llama")
    model = build_engine_model(folder, transformer_config(folder))
    load_on_this_rank(model, folder)
    sample = packed_sample(Path(root) / "mixture")
    ends = sample["cu_seqlens"].unique().tolist()
    assert len(ends) > 2, "the sequence holds one document only"
    loader = iter([{name: torch.as_tensor(value)[None] for name, value in sample.items()}])
    options = {"packed_attention": False, "mask_dtype": torch.float32, "cp_group": torch.distributed.group.WORLD}
    batch = get_batch(loader, fraction=0.0, seed=0, **options)
    together = forward_through_stages(model, batch.tokens, batch.position_ids, batch.attention_mask)
    for start, end in zip(ends, ends[1:], strict=False):
        alone = forward_through_stages(model, batch.tokens[:, start:end])
        # Float32 with sums in another order; rotary positions count from the document's first token.
        torch.testing.assert_close(together[:, start:end], alone, rtol=1e-5, atol=1e-5)
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))
    crossing = forward_through_stages(model, batch.tokens)[:, ends[1] :]
    assert (together[:, ends[1] :] - crossing).abs().max() > 1e-2, "the mask changes nothing"


def packed_sample(mixture: Path) -> dict:
    """A training sequence with its document boundaries, from the engine's own dataset."""
    from megatron_mixcpt.data.datasets.mixture_datasets import build_mixture_datasets
    from megatron_mixcpt.data.mixture.manifest import MixtureManifest
    from megatron_mixcpt.data.mixture.plan import plan_mixture

    manifest = MixtureManifest.load(mixture)
    config = engine_dataset_config(create_attention_mask=False, inter_document_masking=True)
    plan = plan_mixture(manifest, sequence_length=SEQ_LENGTH)
    dataset, _ = build_mixture_datasets(manifest, plan, config, num_valid_sequences=0)
    sample = max((dataset[index] for index in range(20)), key=lambda sample: len(sample["cu_seqlens"].unique()))
    del sample["dataset_id"]
    return sample | {"sample_index": 0}


ROWS, LENGTH = 2, 64
# Three int64 fields and the float32 loss mask.
FIELD_BYTES = ROWS * LENGTH * (3 * 8 + 4)


def test_only_what_was_read_goes_to_the_device_and_from_pinned_memory() -> None:
    run_distributed(check_crossing, 1, cpu_emulation=True)


def check_crossing() -> None:
    # The boundaries, int32; a byte for each sample's choice; int64 kinds. Packed: without the repeated end.
    check_what_crosses(packed_attention=False, more_bytes=ROWS * 4 * 4 + ROWS + ROWS * 8)
    check_what_crosses(packed_attention=True, more_bytes=3 * 4 + 1 + 8)
    check_rows()


def check_what_crosses(packed_attention: bool, more_bytes: int) -> None:
    """The device is ``meta``: whatever reads a value from it, or makes on the host what belongs there, fails."""
    from megatron_mixcpt.training.batch import get_batch

    rows = 1 if packed_attention else ROWS
    sample = {name: torch.zeros(rows, LENGTH, dtype=torch.int64) for name in ("tokens", "labels", "position_ids")}
    sample["loss_mask"] = torch.ones(rows, LENGTH)
    sample["cu_seqlens"] = torch.tensor([[0, 20, LENGTH, LENGTH]] * rows, dtype=torch.int32)
    sample |= {"max_seqlen": torch.tensor([44] * rows), "sample_index": torch.arange(rows)}
    sample["dataset_id"] = torch.zeros(rows, dtype=torch.int64)
    options = {"packed_attention": packed_attention, "mask_dtype": torch.bfloat16}
    with meta_device() as crossed:
        batch = get_batch(iter([sample]), fraction=1.0, seed=0, cp_group=torch.distributed.group.WORLD, **options)
    assert sum(crossed) == FIELD_BYTES // ROWS * rows + more_bytes
    tensors = [value for value in batch if isinstance(value, torch.Tensor)]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.num_tokens == rows * LENGTH
    if packed_attention:
        assert batch.packed_seq_params.cu_seqlens_q.device.type == "meta" and batch.attention_mask is None
    else:
        assert batch.attention_mask.shape == (rows, 1, LENGTH, LENGTH) and batch.attention_mask.dtype == torch.bfloat16


def check_rows() -> None:
    """Of format alignment."""
    from megatron_mixcpt.training.alignment.run import get_rows

    item = {name: torch.zeros(ROWS, LENGTH, dtype=torch.int64) for name in ("tokens", "labels", "position_ids")}
    item |= {"loss_mask": torch.ones(ROWS, LENGTH), "document": torch.zeros(ROWS, LENGTH, dtype=torch.int64)}
    item["cu_seqlens"] = torch.tensor([[0, 20, LENGTH]] * ROWS, dtype=torch.int32)
    item |= {"max_seqlen": torch.tensor([44] * ROWS), "sample_index": torch.arange(ROWS)}
    item["sample"] = torch.zeros(ROWS, 2, dtype=torch.int64)
    options = {"packed_attention": False, "mask_dtype": torch.float32}
    with meta_device() as crossed:
        rows = get_rows(iter([item]), cp_group=torch.distributed.group.WORLD, **options)
    assert sum(crossed) == FIELD_BYTES + ROWS * LENGTH * 8 + ROWS * 3 * 4
    assert rows.document.device.type == rows.batch.attention_mask.device.type == "meta"
    assert rows.sample.device.type == "cpu"  # the reference's sums are looked up on the host


@contextmanager
def meta_device() -> Iterator[list[int]]:
    """``Tensor.cuda`` moves to ``meta``; yields the bytes of each tensor that it moved, all of pinned memory."""
    crossed: list[int] = []
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    def move(tensor: torch.Tensor, *, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking and any(tensor is other for other in pinned), "a copy that the host waits for"
        crossed.append(tensor.nbytes)
        return tensor.to("meta")

    with patch.object(torch.Tensor, "cuda", move), patch.object(torch.Tensor, "pin_memory", pin):
        yield crossed

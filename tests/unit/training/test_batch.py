"""Document boundaries: the dense mask against one written down token by token, and what the model makes of it."""

from pathlib import Path

import torch

from megatron_mixcpt.testing import run_distributed
from tests.distributed.dense_iteration import engine_dataset_config
from tests.distributed.tiny_run import SEQ_LENGTH, make_world


def test_document_mask() -> None:
    run_distributed(check_document_mask, 1, cpu_emulation=True)


def check_document_mask() -> None:
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
    assert torch.equal(document_mask(boundaries, seq_length), expected.unsqueeze(1))


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
    batch = get_batch(loader, fraction=0.0, seed=0, packed_attention=False, cp_group=torch.distributed.group.WORLD)
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

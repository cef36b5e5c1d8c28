"""The gated delta rule, a recurrence over the tokens of a sequence with a matrix as its state.

"Gated Delta Networks" (arXiv 2412.06464), equation 10, for one head with query q, key k, value v, decay g and strength
beta at each token t::

    S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T        o_t = S_t q_t / sqrt(channels of a key)

It is computed in chunks, as in transformers' ``torch_chunk_gated_delta_rule``: within a chunk the updates of all tokens
come from one triangular system, and the state passes from chunk to chunk. flash-linear-attention has kernels for it,
which are used where they apply (:func:`gated_delta_rule`).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

try:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
except ImportError:
    chunk_gated_delta_rule = None

CHUNK = 64
"""Tokens that are computed together."""


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    starts: Tensor | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """The rule for every head, over a whole sequence; queries and keys are brought to length 1 first.

    flash-linear-attention's kernel computes it where that is installed, on GPUs, for 16-bit values of sequences without
    documents, unless it has to be ``deterministic``, which the kernel is not.

    Args:
        query, key: [b, s, heads of keys, k]; each serves the same number of consecutive heads of values.
        value: [b, s, heads of values, v].
        decay: float32 [b, s, heads of values], g in the equation, at most 0.
        beta: [b, s, heads of values].
        starts: int64 [b, s], the position of the first token of each token's document, where the state starts from 0;
            None: a sequence is one document.

    Returns:
        [b, s, heads of values, v], of the value's dtype; all but the kernel's products are computed in float32.
    """
    repeats = value.size(2) // key.size(2)
    query, key = (tensor.repeat_interleave(repeats, dim=2) for tensor in (query, key))
    if chunk_gated_delta_rule is not None and starts is None and _suits_kernel(value) and not deterministic:
        output, _ = chunk_gated_delta_rule(query, key, value, g=decay, beta=beta, use_qk_l2norm_in_kernel=True)
        return output
    return _in_chunks(query, key, value, decay, beta, starts).type_as(value)


def _suits_kernel(value: Tensor) -> bool:
    return value.device.type == "cuda" and value.dtype in (torch.bfloat16, torch.float16)


def _in_chunks(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, starts: Tensor | None) -> Tensor:
    """As :func:`gated_delta_rule`, in float32 and with as many heads of queries and keys as of values."""
    length = value.size(1)
    query, key, value, decay, beta = (
        tensor.float().transpose(1, 2) for tensor in (query, key, value, decay[..., None], beta[..., None])
    )
    query, key = _normed(query) * query.size(-1) ** -0.5, _normed(key)
    # [b, heads, chunks, tokens of a chunk, channels]
    query, key, value, decay, beta = (_chunks(tensor) for tensor in (query, key, value, decay, beta))
    total = decay.cumsum(dim=-2)  # the logarithm of the decay since the chunk began
    between, reads, writes, keeps = _decays(total, starts)
    system = (beta * key) @ key.transpose(-1, -2) * between
    right_sides = torch.cat([beta * value, beta * key * reads], dim=-1)
    solved = torch.linalg.solve_triangular(system, right_sides, upper=False, unitriangular=True)
    new_values, read_keys = solved.split([value.size(-1), key.size(-1)], dim=-1)
    inner, query, key = query @ key.transpose(-1, -2) * between, query * reads, key * writes
    state, outputs = value.new_zeros(*value.shape[:2], key.size(-1), value.size(-1)), []
    for values, keys, read, write, within, keep in zip(
        *(tensor.unbind(2) for tensor in (new_values, read_keys, query, key, inner, keeps)), strict=True
    ):
        values = values - keys @ state
        outputs.append(read @ state + within @ values)
        state = state * keep + write.transpose(-1, -2) @ values
    return torch.cat(outputs, dim=2)[:, :, :length].transpose(1, 2)


def _decays(total: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left at token i of what was written at token j, and of the state: 0 where a document lies between them.

    Args:
        total: [b, heads, chunks, c, 1], the logarithm of the decay since the chunk began.
        starts: as in :func:`gated_delta_rule`.

    Returns:
        Of token j at token i, [b, heads, chunks, c, c], 0 for later ones; of the chunk's first state at each token and
        of each token in its last state, [..., c, 1] both; of the first state in the last, [..., 1, 1].
    """
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=total.device).triu(1)
    last, between = total[..., -1:, :], total - total.transpose(-1, -2)
    if starts is None:
        return between.masked_fill(later, -torch.inf).exp(), total.exp(), (last - total).exp(), last.exp()
    starts = pad(starts, (0, -starts.size(1) % CHUNK), value=-1).unflatten(1, (-1, CHUNK))[:, None, ..., None]
    first = torch.arange(starts.size(2), device=starts.device).view(-1, 1, 1) * CHUNK
    reads = total.masked_fill(starts >= first, -torch.inf).exp()
    writes = (last - total).masked_fill(starts != starts[..., -1:, :], -torch.inf).exp()
    others = later | (starts != starts.transpose(-1, -2))
    return between.masked_fill(others, -torch.inf).exp(), reads, writes, reads[..., -1:, :]


def _chunks(tensor: Tensor) -> Tensor:
    """[b, heads, s, channels] -> [b, heads, chunks, tokens of a chunk, channels], the last chunk filled up with 0."""
    return pad(tensor, (0, 0, 0, -tensor.size(2) % CHUNK)).unflatten(2, (-1, CHUNK))


def _normed(tensor: Tensor) -> Tensor:
    """Of length 1 over the last dimension, as transformers and flash-linear-attention have it."""
    return tensor * torch.rsqrt(tensor.square().sum(-1, keepdim=True) + 1e-6)

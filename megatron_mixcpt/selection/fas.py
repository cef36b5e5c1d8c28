"""The format alignment score of a sample (Mix-CPT, Eq. 8 and 9) from the log-probabilities of its responses' tokens.

L is the mean of next-token prediction over a response's tokens, its end of turn included; q^ is the query in the chat
template, with its generation prompt. An instruction sample has L(r | q^) / L(r), a preference sample
L(r+ | q^) / L(r- | q^): high is hard. L(r) conditions on the end of sequence alone, which is how a document starts in
training. Both losses of an instruction sample are over the same response tokens.
"""

import math

import numpy as np

from megatron_mixcpt.data.chat.encoding import EncodedPair, EncodedResponse
from megatron_mixcpt.inference.batches import ScoredSequence

Encoded = EncodedResponse | EncodedPair


def sequences_of(encoded: Encoded, eos_id: int) -> tuple[ScoredSequence, ScoredSequence]:
    """The two sequences whose losses make the score: numerator and denominator."""
    if isinstance(encoded, EncodedPair):
        return (
            _after(encoded.prompt_tokens, encoded.chosen_tokens),
            _after(encoded.prompt_tokens, encoded.rejected_tokens),
        )
    alone = np.array([eos_id], np.int32)
    return _after(encoded.query_tokens, encoded.response_tokens), _after(alone, encoded.response_tokens)


def _after(context: np.ndarray, response: np.ndarray) -> ScoredSequence:
    return ScoredSequence(np.concatenate([context, response]), len(response))


def figures(encoded: Encoded, first_log_prob: float, second_log_prob: float) -> dict[str, float | int] | None:
    """The score, losses (nats per token), perplexity of the (chosen) response after its query, and token counts.

    Args:
        encoded: the sample.
        first_log_prob, second_log_prob: sums over the responses of :func:`sequences_of`, in nats.

    Returns:
        By the names of the scores file; None where the figures are not finite numbers.
    """
    first, second = sequences_of(encoded, 0)
    losses = -first_log_prob / first.num_scored, -second_log_prob / second.num_scored
    if not all(math.isfinite(loss) for loss in losses) or losses[1] <= 0.0:
        return None
    is_pair = isinstance(encoded, EncodedPair)
    names = ("loss_chosen", "loss_rejected") if is_pair else ("loss_given_query", "loss_alone")
    counts = {
        "num_query_tokens": len(first.tokens) - first.num_scored,
        "num_response_tokens": first.num_scored,
    }
    if is_pair:
        counts["num_rejected_tokens"] = second.num_scored
    scores = {"fas": losses[0] / losses[1], **dict(zip(names, losses, strict=True))}
    return scores | {"perplexity": math.exp(min(losses[0], 700.0))} | counts

"""The format alignment score of a sample (Mix-CPT, Eq. 8 and 9) from the log-probabilities of its responses' tokens.

L is the mean of next-token prediction over the response's own tokens, the paper's r: the end of turn belongs to the
template and is left out. q^ is the query in the chat template, with its generation prompt. An instruction sample has
L(r | q^) / L(r), a preference sample L(r+ | q^) / L(r- | q^): high is hard. L(r) conditions on what a
document starts after in training: the BOS token of a tokenizer that puts one before a text, else the end of sequence.
Both losses of an instruction sample are over the same tokens.
"""

import math

import numpy as np

from megatron_mixcpt.data.chat.encoding import EncodedPair, EncodedResponse
from megatron_mixcpt.inference.batches import ScoredSequence

Encoded = EncodedResponse | EncodedPair


def sequences_of(encoded: Encoded, start_id: int) -> tuple[ScoredSequence, ScoredSequence]:
    """The two sequences whose losses make the score: numerator and denominator.

    ``start_id`` is what a document's first token is predicted from (``data/tokens/document_start.py``).
    """
    if isinstance(encoded, EncodedPair):
        responses = (encoded.chosen_tokens, encoded.rejected_tokens)
        contexts = (encoded.prompt_tokens, encoded.prompt_tokens)
        num_end_tokens = encoded.num_end_tokens
    else:
        responses = (encoded.response_tokens, encoded.response_tokens)
        contexts = (encoded.query_tokens, np.array([start_id], np.int32))
        num_end_tokens = (encoded.num_end_tokens, encoded.num_end_tokens)
    first, second = map(_own_tokens, contexts, responses, num_end_tokens)
    return first, second


def _own_tokens(context: np.ndarray, response: np.ndarray, num_end_tokens: int) -> ScoredSequence:
    own = response[: len(response) - num_end_tokens]
    return ScoredSequence(np.concatenate([context, own]), len(own))


def figures(encoded: Encoded, first_log_prob: float, second_log_prob: float) -> dict[str, float | int] | None:
    """The score, losses (nats per token), perplexity of the (chosen) response after its query, and token counts.

    The end of turn counts in none of them.

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

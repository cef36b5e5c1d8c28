"""What stands before a document: the beginning of sequence, for models that were trained with one.

Some tokenizers put a BOS token before every text (Llama 3's <|begin_of_text|>, Llama 2's and Mistral's <s>), because
their models saw one before every document; others (Qwen's, SmolLM2's, GPT-2's) put none, and a document of their models
follows the end of the one before. All stages go by the tokenizer: whatever it writes before a text stands before a
document in training, and is what a document's first token is predicted from in perplexity and in scores of a response
alone. lm-eval encodes its prompts by the same rule.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


def bos_id_of(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of the BOS token that a tokenizer puts before a text; None where it puts none."""
    if tokenizer.bos_token_id is None:
        return None
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id if first == [tokenizer.bos_token_id] else None


def document_start_id(tokenizer: "PreTrainedTokenizerBase", *, bos: bool = True) -> int:
    """What a document's first token is predicted from: BOS where the tokenizer puts one, else the end of sequence.

    Args:
        tokenizer: the model's.
        bos: whether documents begin with that BOS; False for a model that was trained on a mixture without.
    """
    bos_id = bos_id_of(tokenizer) if bos else None
    return tokenizer.eos_token_id if bos_id is None else bos_id

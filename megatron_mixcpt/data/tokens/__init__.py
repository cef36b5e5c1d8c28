"""Tokenizers without transformers: what a folder says, texts to token ids, long texts cut where that is exact."""

"""Safetensors files of a model folder: headers that are checked, slices that are read, shards that are written."""

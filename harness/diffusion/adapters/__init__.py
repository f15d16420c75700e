"""Adapters: their types, initialization, row-wise application, merging and files."""

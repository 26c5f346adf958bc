"""The authors' checkpoints: their layouts, and `load_original`, which reads them."""

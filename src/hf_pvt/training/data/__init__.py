"""From labelled files, tables and the Hub to batches: sources, decoding, checks, sampling, loaders."""

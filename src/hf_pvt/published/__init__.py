"""What the papers and their repositories say: variants, detectors, label names. Nothing here is measured."""

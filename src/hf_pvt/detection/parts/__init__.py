"""What detectors are built of, each file one part. Legend: see `detection`."""

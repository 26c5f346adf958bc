"""What stands on a pyramid's maps: feature pyramids, Semantic FPN, and their layers."""

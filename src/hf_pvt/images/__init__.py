"""From files to `pixel_values`, and from logits to labels: reading, resampling, image processors, pipelines."""

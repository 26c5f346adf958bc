"""What `embed_images.py` is made of: units of images, what is computed of them, and shards of the results."""

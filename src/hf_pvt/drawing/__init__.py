"""Pictures: labels, objects, attention and feature maps on an image."""

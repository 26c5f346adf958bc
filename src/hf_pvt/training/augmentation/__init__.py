"""What is done to images and their labels by chance, a file for each task."""

"""What a model scores on labelled data, a file for each task, and the pictures of it."""

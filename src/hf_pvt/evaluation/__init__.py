"""What `evaluate_model.py` is made of: each head's task, its labelled data, units of samples, and the card's entry."""

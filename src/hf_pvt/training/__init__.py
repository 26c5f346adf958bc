"""What the scripts in examples/ share: data, order, optimisation, checkpoints, the loop, results."""

"""Kernels for the CPU: the same numbers, faster and in less memory. They know no model."""

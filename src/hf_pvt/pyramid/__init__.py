"""The three pyramids: configurations, models, and the layers they are built of.

Legend, used in every file: see `layers`.
"""

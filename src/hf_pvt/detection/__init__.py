"""The papers' detectors on any pyramid: backbone -> neck -> head. Imports from the rest of the package, never back.

Legend, used in every file: B batch, L levels, A anchors of all levels, K labels, n boxes of an image, D detections.
Boxes (n, 4) are x1, y1, x2, y2 in pixels of the padded input, without "+1"; sizes are (height, width).
"""

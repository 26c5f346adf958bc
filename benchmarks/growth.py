"""How a forward's time grows with the pixels of an image: fitted exponents, and the plot of the README."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .machine import processor_text
from .models import CASES, MODELS
from .results import Results, case_name, limit, median
from .tables import header, line

PLOTTED = "packed"
FITTED = ("packed", "not packed", "timm channels-last")
SIZES = tuple(size for size, batch in CASES if batch == 1)


def times(results: Results, model: str, candidate: str) -> dict[int, float]:
    """Seconds of one image by its size."""
    cases = {size: results["cases"].get(model, {}).get(case_name(size, 1), {}) for size in SIZES}
    return {size: median(case, candidate) for size, case in cases.items() if candidate in case}


def exponent(times: dict[int, float]) -> float:
    """The power of the pixels that the time grows with: the slope of logarithms, by least squares."""
    pixels = np.log([float(size) ** 2 for size in times])
    return float(np.polyfit(pixels, np.log(list(times.values())), 1)[0])


def growth_table(results: Results) -> str:
    """Exponents over all sizes, and over the last two alone, where only the largest parts count."""
    first, *_, before, last = SIZES
    spans = ((first, last), (before, last))
    lines = header("model", *(f"{name}, {low} to {high}" for name in FITTED for low, high in spans))
    for model in MODELS:
        if not times(results, model, PLOTTED):
            continue
        cells = [exponent_cell(times(results, model, name), span) for name in FITTED for span in spans]
        lines.append(line(f"`{model}`", *cells))
    return "\n".join(lines)


def exponent_cell(times: dict[int, float], span: tuple[int, int]) -> str:
    within = {size: seconds for size, seconds in times.items() if span[0] <= size <= span[1]}
    return f"{exponent(within):.2f}" if {*span} <= {*within} else "–"


def plot(all_results: Sequence[Results], path: Path) -> None:
    """A log-log plot for each processor: a line for each model, and dashed its limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same numbers are the same file.
    pyplot.rcParams.update({"svg.hashsalt": "hf_pvt", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(1, len(all_results), figsize=(7 * len(all_results), 4.5), squeeze=False)
    for axis, results in zip(axes[0], all_results, strict=True):
        draw(axis, results)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw(axis: Any, results: Results) -> None:
    for model in MODELS:
        measured = times(results, model, PLOTTED)
        if not measured:
            continue
        limits = [limit(results, model, size, 1, "float32") for size in measured]
        (drawn,) = axis.loglog(list(measured), list(measured.values()), marker="o", markersize=4, label=model)
        axis.loglog(list(measured), limits, linestyle="--", linewidth=0.8, color=drawn.get_color())
    axis.set_xticks(SIZES, [f"{size}²" for size in SIZES])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("pixels of one image")
    axis.set_ylabel("seconds, float32, packed (dashed: the products at the best rate)")
    axis.set_title(processor_text(results["processor"]), fontsize=8)
    axis.grid(True, which="major", linewidth=0.3)
    axis.legend(frameon=False)

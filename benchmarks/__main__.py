"""All forwards on the CPU: this package against its peers.

    python -m benchmarks
    python -m benchmarks --models pvt-v2-b2 --sizes 224 512 --only packed onnxruntime --rounds 5

Every measurement runs in a fresh process, so that none inherits another's heap; candidates alternate, round after
round. All have random weights and as many threads as there are cores, on an otherwise idle machine. What is measured is
merged, case after case, into benchmarks/results/speed, in a file for this processor: a run can be made in pieces, and
be cut off. `python -m benchmarks.onnx_exports` makes what ONNX Runtime reads beforehand, on a machine that is not idle.
"""

import argparse
import time
from datetime import UTC, datetime

from .candidates import CANDIDATES, missing, runs_here
from .fresh_process import in_fresh_process
from .machine import best_product_rate, processor, processor_text, versions
from .measuring import measure
from .models import CASES, MODELS, gmacs
from .onnx_exports import export_missing
from .results import case_name, case_of, load, median, record, save

SIZES = tuple(dict.fromkeys(size for size, _ in CASES))


def run_case(
    model: str, size: int, batch: int, candidates: list[str], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """The samples of all candidates that compute this case, alternating."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in candidates if not missing(name, model, size)}
    for _ in range(rounds):
        for candidate, measured in samples.items():
            measured.append(in_fresh_process(measure, candidate, model, size, batch))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=SIZES, help="Pixels of a side.")
    parser.add_argument(
        "--only", nargs="+", choices=CANDIDATES, default=list(filter(runs_here, CANDIDATES)), metavar="CANDIDATE"
    )
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()

    results, run = load(processor()), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    rates = {dtype: in_fresh_process(best_product_rate, dtype) for dtype in ("float32", "bfloat16")}
    results["runs"][run] = {"versions": versions(), "rounds": arguments.rounds, "rates": rates}
    print(processor_text(results["processor"]))
    for model in arguments.models:
        for size, batch in CASES:
            if size not in arguments.sizes:
                continue
            if any(name.startswith("onnxruntime") for name in arguments.only):
                export_missing(model, size, batch)
            start = time.perf_counter()
            results["gmacs"].setdefault(model, {})[str(size)] = in_fresh_process(gmacs, model, size)
            case = case_of(results, model, size, batch)
            for candidate, samples in run_case(model, size, batch, arguments.only, arguments.rounds).items():
                record(case, candidate, run, samples)
            save(results)
            times = ", ".join(f"{name} {1e3 * median(case, name):.0f}" for name in arguments.only if name in case)
            print(
                f"{model}, {case_name(size, batch)}: {times} ms; took {time.perf_counter() - start:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()

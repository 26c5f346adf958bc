"""A page to try models on: scores, labels of pixels, objects, feature maps, and what a point attends to.

    python examples/space/app.py [--model FOLDER_OR_HUB_ID ...]

Opens on this machine alone (127.0.0.1), needs no network for models of folders, and runs no code of a model.
"""

import argparse
import os
import sys
from pathlib import Path

import gradio as gr
from opened_models import open_model
from page import Page
from same_host import SameHost
from starlette.middleware import Middleware
from transformers.utils import logging
from uploads import MAX_BYTES

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEMO = Path("out/demo")  # where `make demo` leaves its models
MODELS = "MODELS"  # of the environment: the models of a Space
WAITING = 16  # visitors' questions; more are sent away


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="a folder or a Hub id; several may be given (default: demo's)")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", LOOPBACK[0]))
    parser.add_argument("--port", type=int, help="default: a free one from 7860")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    models = arguments.model or os.environ.get(MODELS, "").split() or trained_by_demo()
    if not models:
        sys.exit(f"there is no model in {DEMO}; run `make demo`, or name one: --model FOLDER.")
    try:
        open_model(models[0])
    except ValueError as error:
        sys.exit(str(error))
    page = Page(models, any_model=arguments.host in LOOPBACK)
    page.blocks.queue(max_size=WAITING).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_BYTES,
        state_session_capacity=100,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        app_kwargs={"middleware": [Middleware(SameHost)]},
    )


def trained_by_demo() -> list[str]:
    """Of `make demo`: the segmenter first, which has the most to show."""
    folders = sorted(DEMO.glob("*/config.json"), key=lambda file: ("scenes-p2t" not in str(file), str(file)))
    return [str(file.parent) for file in folders]


if __name__ == "__main__":
    main()

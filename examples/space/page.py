"""The page: a model and a photograph on the left, what the model says of it and what it looks at on the right."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import gradio as gr
import torch
from answers import Segmentation, detections_of, scores_of, segmentation_of
from opened_models import OpenedModel, open_model
from PIL import Image
from uploads import FORMATS, at_screen_size, read_photograph

import hf_pvt
from hf_pvt.drawing.whole_image import pyramid_of

logger = logging.getLogger(__name__)

TITLE = "PVT, PVTv2 and P2T"
CACHE_AGE = (600, 3600)  # seconds: how often uploads are looked through, and how old they grow
MEAN = "mean of all"  # heads
DRAWN: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
WRONG = "This did not work; the log of the server says why."

Update = dict[Any, Any]  # of some components


class Page:
    """The components and what happens between them.

    Whoever visits has a photograph and a segmentation of their own; models are shared, and one event at a time uses
    them. Every error becomes one sentence in `message`, and what it concerns is emptied.

    Args:
        models: folders or Hub ids, of which the first is open.
        any_model: whether visitors may name others: folders are the server's.
    """

    def __init__(self, models: Sequence[str], any_model: bool) -> None:
        self.models, self.any_model = list(models), any_model
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_AGE, fill_width=True) as self.blocks:
            gr.Markdown(f"# {TITLE}")
            with gr.Row():
                with gr.Column(scale=1):
                    self.build_questions()
                with gr.Column(scale=3):
                    self.build_answers()
            self.connect()

    def build_questions(self) -> None:
        choose = "Model (a folder or a Hub id)" if self.any_model else "Model"
        self.model = gr.Dropdown(
            self.models, value=self.models[0], label=choose, allow_custom_value=self.any_model, elem_id="model"
        )
        endings = [f".{name.lower()}" for name in (*FORMATS, "jpg", "tif")]
        self.file = gr.File(label="Photograph", file_types=endings, height=140, elem_id="file")
        self.threshold = gr.Slider(0.05, 0.95, value=0.3, step=0.05, label="Least score", visible=False)
        self.message = gr.Textbox(label="Message", lines=2, interactive=False, elem_id="message")

    def build_answers(self) -> None:
        self.screen, self.segmentation, self.point = gr.State(), gr.State(), gr.State()
        with gr.Tab("Answer"):
            self.scores = gr.Label(label="Scores", num_top_classes=5, visible=False, elem_id="scores")
            self.overlay = gr.AnnotatedImage(
                label="Labels: click one of the legend to see it alone", format="png", visible=False, elem_id="overlay"
            )
            self.objects = gr.Image(label="Objects", visible=False, elem_id="objects", **DRAWN)
            self.table = gr.Dataframe(headers=["label", "score"], interactive=False, visible=False, elem_id="table")
        with gr.Tab("Feature maps"):
            gr.Markdown("The maps of the four stages; similar colours of one map are similar vectors.")
            self.features = gr.Image(show_label=False, elem_id="features", **DRAWN)
        with gr.Tab("Attention"):
            gr.Markdown("Click on the photograph: what does that point attend to?")
            with gr.Row():
                self.stage = gr.Radio([1, 2, 3, 4], value=4, label="Stage")
                self.block = gr.Dropdown([1], value=1, label="Block")
                self.head = gr.Dropdown([MEAN], value=MEAN, label="Head")
            self.clicked = gr.Image(label="Photograph", elem_id="clicked", height=360, **DRAWN)
            self.attention = gr.Image(show_label=False, elem_id="attention", **DRAWN)

    def connect(self) -> None:
        answers = [self.scores, self.overlay, self.objects, self.table, self.segmentation, self.threshold]
        inside = [self.screen, self.clicked, self.features, self.attention, self.point, self.block, self.head]
        question = [self.model, self.file, self.threshold, self.stage]
        for event in (self.model.change, self.file.upload, self.file.clear, self.threshold.release):
            self.on(event, self.answer, question, [*answers, *inside]).then(
                self.safely(self.draw_features, [self.features]),
                [self.model, self.screen],
                [self.features, self.message],
                **ONE_AT_A_TIME,
            )
        self.on(self.overlay.select, self.isolate, [self.segmentation], [self.overlay, self.segmentation])
        looked_at = [self.model, self.screen, self.stage, self.block, self.head]
        # Drawn as an event of its own: what is looked at is read when the choice before it, of a stage, has arrived.
        for choice in (
            self.on(self.clicked.select, self.choose_point, [], [self.point]),
            self.on(self.stage.input, self.choose_stage, [self.model, self.stage], [self.block, self.head]),
        ):
            self.on(choice.then, self.attend, [*looked_at, self.point], [self.attention])
        for choice in (self.block, self.head):
            self.on(choice.input, self.attend, [*looked_at, self.point], [self.attention])
        self.on(self.blocks.load, self.answer, question, [*answers, *inside])

    def on(self, event: Any, handler: Callable[..., Update], inputs: list[Any], outputs: list[Any]) -> Any:
        return event(self.safely(handler, outputs), inputs, [*outputs, self.message], **ONE_AT_A_TIME)

    def safely(self, handler: Callable[..., Update], outputs: list[Any]) -> Callable[..., Update]:
        """The handler; where it fails, its outputs but the choices are emptied, and the message says why."""

        @wraps(handler)
        def run(*arguments: Any) -> Update:
            try:
                return handler(*arguments)
            except ValueError as error:
                message = str(error)
            except Exception:
                logger.exception("while answering")
                message = WRONG
            kept = (self.block, self.head, self.threshold)
            return {output: None for output in outputs if output not in kept} | {self.message: message}

        return run

    def open(self, name: str | None) -> OpenedModel:
        if not name:
            raise ValueError("There is no model; name a folder or a Hub id.")
        if not (self.any_model or name in self.models):
            raise ValueError(f"{name} is not among the models of this page.")
        return open_model(name)

    def answer(self, name: str, path: str | None, threshold: float, stage: int) -> Update:
        """Everything about a new photograph or model."""
        opened = self.open(name)
        update = self.nothing(opened) | self.choose_stage(name, stage)
        if path is None:
            return update | {self.message: "Send a photograph."}
        photograph = read_photograph(path)
        screen = at_screen_size(photograph)
        start = time.perf_counter()
        if opened.detects:
            picture, rows = detections_of(opened, photograph, screen, threshold)
            update |= {self.objects: gr.Image(picture, visible=True), self.table: gr.Dataframe(rows, visible=True)}
        elif opened.kind == "ForSemanticSegmentation":
            segmentation = segmentation_of(opened, photograph, screen)
            update |= {self.segmentation: segmentation, self.overlay: drawn(segmentation)}
        else:
            update[self.scores] = gr.Label(scores_of(opened, photograph), visible=True)
        seconds = time.perf_counter() - start
        size, threads = f"{photograph.width}x{photograph.height}", torch.get_num_threads()
        took = (
            f"{seconds:.2f} s for {size} pixels on {threads} thread{'s' * (threads > 1)}, from the image to the answer."
        )
        return update | {self.screen: screen, self.clicked: screen, self.message: took}

    def nothing(self, opened: OpenedModel) -> Update:
        """No answer, and the components of the model's kind."""
        is_classifier, is_segmenter = (
            opened.kind == f"For{kind}" for kind in ("ImageClassification", "SemanticSegmentation")
        )
        return {
            self.scores: gr.Label(None, visible=is_classifier),
            self.overlay: gr.AnnotatedImage(None, visible=is_segmenter),
            self.objects: gr.Image(None, visible=opened.detects),
            self.table: gr.Dataframe([], visible=opened.detects),
            self.threshold: gr.Slider(visible=opened.detects),
        } | dict.fromkeys((self.segmentation, self.screen, self.clicked, self.features, self.attention, self.point))

    def isolate(self, segmentation: Segmentation, event: gr.SelectData) -> Update:
        segmentation = segmentation.toggled(event.index)
        return {self.segmentation: segmentation, self.overlay: drawn(segmentation)}

    def draw_features(self, name: str, screen: Image.Image | None) -> Update:
        if screen is None:
            return {self.features: None}
        opened = self.open(name)
        return {self.features: hf_pvt.draw_features(opened.model, screen, opened.processor)}

    def choose_stage(self, name: str, stage: int) -> Update:
        """The stage's blocks and heads, the last block and all heads chosen."""
        pyramid: Any = pyramid_of(self.open(name).model)
        blocks = len(pyramid.encoder.layers[stage - 1].blocks)
        heads = pyramid.config.num_attention_heads[stage - 1]
        return {
            self.block: gr.Dropdown([*range(1, blocks + 1)], value=blocks),
            self.head: gr.Dropdown([MEAN, *range(1, heads + 1)], value=MEAN),
        }

    def choose_point(self, event: gr.SelectData) -> Update:
        return {self.point: tuple(event.index)}

    def attend(self, name: str, screen: Image.Image | None, stage: int, block: int, head: Any, point: Any) -> Update:
        """The attention of a point of the photograph at the screen's size."""
        if screen is None or point is None:
            return {self.attention: None}
        opened = self.open(name)
        chosen = None if head == MEAN else head - 1
        picture = hf_pvt.draw_attention(opened.model, screen, point, stage - 1, block - 1, chosen, opened.processor)
        return {self.attention: picture}


# The models are shared, and drawing watches them from inside.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}


def drawn(segmentation: Segmentation) -> Any:
    value = (segmentation.photograph, segmentation.sections())
    return gr.AnnotatedImage(value, color_map=segmentation.colours(), visible=True)

"""The loop: steps, looks at the loss, evaluations and checkpoints. What is learnt, the task knows.

Steps count from 1 in messages and names: `checkpoint-10` is the state after ten steps.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from . import checkpoints
from .arguments import CHANGEABLE, UNDECAYED, OptimizationArguments, RunArguments, every
from .data.samples import Sample
from .data.sampling import Purpose, derived_seed
from .evaluators.evaluator import Evaluation, scores, together
from .launch import TrainingError
from .optimization import Schedule, moving_average, parameter_groups, set_learning_rate
from .progress import ProgressBar

logger = get_logger(__name__)


class Task(Protocol):
    """What is trained, and how it is scored."""

    evaluation: Evaluation
    validation: Iterable[Sample] | None  # this process's batches, with `counted`; equally many in every process

    def loss(self, model: nn.Module, batch: Sample) -> Tensor:
        """The mean loss of a batch on the device, or its terms (T,). It may draw from PyTorch's generators."""

    def shares(self, batches: Sequence[Sample]) -> Iterable[float | Tensor]:
        """What each of a step's batches, or each of its loss's terms (T,), weighs in the mean over all of them and all
        processes: 1 where all are alike.

        The batches are not on the device yet.
        """


class Loop:
    """One run, from the first step or a checkpoint to the last step.

    Args:
        schedule: its `total_steps` is the length of the run.
        steps_per_epoch: None of a stream.
        identity: arguments that a run has to share with the checkpoint that it resumes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        schedule: Schedule,
        steps_per_epoch: int | None,
        optimization: OptimizationArguments,
        run: RunArguments,
        identity: dict[str, Any],
    ) -> None:
        self.accelerator, self.task, self.schedule = accelerator, task, schedule
        self.optimization, self.run, self.identity = optimization, run, identity
        self.output_dir = Path(run.output_dir)
        self.checkpoint_every = every(run.checkpointing_steps, steps_per_epoch, "checkpointing_steps")
        self.evaluate_every = every(run.eval_steps, steps_per_epoch, "eval_steps")
        self.average = moving_average(model, optimization.ema_decay, accelerator)
        self.model, self.optimizer = self._prepare(model)
        # Trackers take plain values only.
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in identity.items()}
        accelerator.init_trackers(self.output_dir.absolute().name, config=plain)
        self.step, self.seconds = 0, 0.0
        self.losses: list[Tensor] = []  # of the steps since the last look, on the device
        self.bad: dict[str, str] = {}
        self.metrics: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []  # of the arguments, on the way

    def _prepare(self, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        run, optimization = self.run, self.optimization
        if run.gradient_checkpointing:
            # Transformers 6 drops the old name, 5.17 lacks the new one.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # type: ignore[operator]
        if run.channels_last:
            model.to(memory_format=torch.channels_last)
        if run.compile:
            model.compile()  # in place: the names of the weights stay
        decay, layer_decay = optimization.weight_decay or 0.0, optimization.layer_decay or 1.0
        without_decay, backbone_rate = optimization.without_decay or UNDECAYED, optimization.backbone_rate or 1.0
        groups = parameter_groups(model, decay, layer_decay, without_decay, backbone_rate)
        # One pass over the weights; on a GPU PyTorch's own choice has few more.
        fused = True if self.accelerator.device.type == "cpu" else None
        optimizer = torch.optim.AdamW(groups, lr=self.schedule.peak, fused=fused)
        return self.accelerator.prepare(model.train(), optimizer)

    def train(self, batches: Callable[[int], Iterable[Sample]]) -> None:
        """Train on `batches(step)`, this process's batches after so many steps, of which accumulation takes several."""
        self._resume()
        total = self.schedule.total_steps
        bar = ProgressBar(
            total=total, initial=self.step, unit="step", disable=not self.accelerator.is_local_main_process
        )
        iterator = iter(batches(self.step)) if self.step < total else iter(())
        self.looked_at, self.looked_from = time.perf_counter(), self.step
        evaluated = None
        while self.step < total:
            self._one_step(iterator)
            self.step += 1
            bar.update()
            last = self.step == total
            if self.step % self.run.logging_steps == 0 or last:
                self._log(bar)
            if self.checkpoint_every and (self.step % self.checkpoint_every == 0 or last):
                self.save()
            if self.evaluate_every and self.step % self.evaluate_every == 0:
                evaluated = self.step
                self.evaluate()
        bar.close()
        self._check_weights()
        if evaluated != total:
            self.evaluate()
        self._gather_bad()

    def _one_step(self, batches: Iterator[Sample]) -> None:
        set_learning_rate(self.optimizer, self.schedule(self.step))
        accumulation = self.run.gradient_accumulation_steps
        parts = [self._next(batches) for _ in range(accumulation)]
        losses = []
        for micro, (batch, share) in enumerate(zip(parts, self.task.shares(parts), strict=True)):
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            # Drop path, dropout and mixing: a function of the place, as all randomness.
            place = (self.step * accumulation + micro, self.accelerator.process_index)
            torch.manual_seed(derived_seed(self.optimization.seed, Purpose.STEP, *place))
            with self.accelerator.accumulate(self.model):
                loss = (share * self.task.loss(self.model, batch)).sum()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.optimization.max_grad_norm:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimization.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach().float())
        self.losses.append(torch.stack(losses).mean())
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))

    def _next(self, batches: Iterator[Sample]) -> Sample:
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(f"the data ended in step {self.step + 1} of {self.schedule.total_steps}.")
        self.bad |= batch.pop("bad")
        return batch

    def look_at_losses(self) -> float | None:
        """The last step's loss over all processes; waits for the device.

        Raises:
            TrainingError: one since the last look was NaN or infinite.
        """
        if not self.losses:
            return None
        first = self.step - len(self.losses)
        losses = self.accelerator.reduce(torch.stack(self.losses), "mean").tolist()
        self.losses.clear()
        for step, loss in enumerate(losses, start=first):
            if not torch.tensor(loss).isfinite():
                raise self._not_finite(f"the loss is {loss}", step)
        return losses[-1]

    def _not_finite(self, what: str, step: int) -> TrainingError:
        found = checkpoints.latest(self.output_dir)
        last = f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint"
        return TrainingError(
            f"{what} in step {step + 1}, at learning rate {self.schedule(step):.3g}; {last}. Lower --learning_rate, "
            "clip with --max_grad_norm, or train in bf16 in place of fp16"
            + (", and continue from there or earlier with --resume_changed." if found else ".")
        )

    def _log(self, bar: ProgressBar) -> None:
        loss = self.look_at_losses()
        now = time.perf_counter()
        steps, seconds = self.step - self.looked_from, now - self.looked_at
        self.looked_at, self.looked_from = now, self.step
        self.seconds += seconds
        rate = self.schedule(self.step - 1)
        speed = steps * self.images_per_step / seconds
        memory = f"{self.memory():.1f}"
        bar.set_postfix({"loss": f"{loss:.4f}", "lr": f"{rate:.2e}", "images/s": f"{speed:.0f}", "GiB": memory})
        self.accelerator.log({"loss": loss, "learning_rate": rate, "images_per_second": speed}, step=self.step)

    @property
    def images_per_step(self) -> int:
        run = self.run
        return self.accelerator.num_processes * run.per_device_train_batch_size * run.gradient_accumulation_steps

    def memory(self) -> float:
        """GiB: the device's peak of this process, or what the process has of the machine's."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return psutil.Process().memory_info().rss / 2**30

    def evaluate(self) -> None:
        """Score the moving average where there is one, else the model, on every sample of all processes once."""
        if self.task.validation is None:
            return
        with self._off_the_clock():
            self.metrics = self._scores(self.model if self.average is None else self.average.module)
            self.task.evaluation.save_pictures(self.output_dir / "overlays" / f"step-{self.step}")
        numbers = numbers_of(self.metrics)
        remarks = {name: f" ({remark})" for name, remark in self.metrics.get("remarks", {}).items()}
        found = ", ".join(f"{name} {value:.4f}{remarks.get(name, '')}" for name, value in numbers.items())
        logger.info(f"step {self.step}: {found}")
        self.accelerator.log(numbers, step=self.step)

    @torch.no_grad()
    def _scores(self, model: nn.Module) -> dict[str, Any]:
        examples, evidence = 0, None
        model.eval()
        for batch in self.task.validation or ():
            self.bad |= batch.pop("bad")
            examples += int(batch["counted"].sum())
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            with self.accelerator.autocast():
                evidence = together(evidence, self.task.evaluation.count(model, batch))
        model.train()
        return scores(self.task.evaluation, evidence, examples, self.accelerator)

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """What happens inside is no time of training."""
        started = time.perf_counter()
        yield
        self.looked_at += time.perf_counter() - started

    def save(self) -> None:
        """A checkpoint of finite weights."""
        self.look_at_losses()
        self._check_weights()
        self._gather_bad()
        state = {"identity": self.identity, "changes": self.changes, "seconds": self.seconds}
        state |= {"bad_images": self.bad, "metrics": self.metrics}
        keep = self.run.checkpoints_total_limit
        with self._off_the_clock():
            checkpoints.save(self.accelerator, self.output_dir, self.step, state, keep, self._more_weights())

    def _more_weights(self) -> dict[str, nn.Module]:
        return {} if self.average is None else {"average": self.average}

    def _check_weights(self) -> None:
        """Raises TrainingError for one that is NaN or infinite, in any process."""
        weights = [p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        if self.accelerator.reduce(finite.float(), "mean") != 1:
            raise self._not_finite("the weights are no longer finite after an update", self.step - 1)

    def _gather_bad(self) -> None:
        self.bad = {file: reason for bad in gather_object([self.bad]) for file, reason in bad.items()}

    def _resume(self) -> None:
        run = self.run
        chosen = Path(run.resume_from_checkpoint) if run.resume_from_checkpoint else None
        if not run.resume and chosen is None:
            if next(self.output_dir.glob("checkpoint-*[0-9]"), None):
                raise ValueError(
                    f"{self.output_dir} has checkpoints; continue with --resume, or choose another folder."
                )
            if (self.output_dir / "model").exists():
                raise ValueError(f"{self.output_dir} has the model of another run; choose another folder.")
            return
        found = checkpoints.agreed(self.accelerator, self.output_dir, chosen)
        if found is None:
            logger.info(f"no checkpoint in {self.output_dir}: starting at the first step")
            return
        path, manifest = found
        changes = checkpoints.changes(manifest, self.identity, path, CHANGEABLE if run.resume_changed else set())
        checkpoints.load(self.accelerator, path, self._more_weights())
        self.accelerator.step = 0  # micro-batches since the last step of the optimizer
        self.step, self.seconds = manifest["step"], manifest["seconds"]
        self.bad, self.metrics, self.changes = manifest["bad_images"], manifest["metrics"], manifest["changes"]
        if changes:
            self.changes.append({"after_step": self.step, "was_and_is": changes})
            logger.warning(f"going on with changes: {', '.join(f'{n} {a} -> {b}' for n, (a, b) in changes.items())}")
        logger.info(f"continuing after step {self.step}, from {path}")

    def final_weights(self) -> dict[str, Tensor]:
        """The weights to publish, whole. Every process has to call this; sharded ones come to the main process."""
        if self.average is not None:
            return dict(self.average.module.state_dict())
        return self.accelerator.get_state_dict(self.model)


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    """The scores that are a single number, without those of nothing, which are NaN."""
    return {name: value for name, value in metrics.items() if isinstance(value, float) and not math.isnan(value)}

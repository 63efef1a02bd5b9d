"""A training run, whatever it trains: optimisers, steps that are not finite, checkpoints."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim

from gebm import clipping
from gebm.errors import TrainingDiverged
from gebm.fingerprint import describe
from gebm.training import BAD_STEPS, PATIENCE
from pyro_gebm.processes import ALONE, Processes
from pyro_gebm.training.checkpoints import get_rng_state, set_rng_state

__all__ = ["Optimizer", "Run", "is_frozen", "random_stream", "trained_parameters"]


def is_frozen(module: object) -> bool:
    """Whether it is a module with parameters of which none requires a gradient, as those of a result or a file."""
    parameters = list(module.parameters()) if isinstance(module, torch.nn.Module) else []
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def trained_parameters(
    prefix: str, module: object, trainable: Callable[[str], bool] | None
) -> list[torch.nn.Parameter]:
    """Parameters that are trained, by the rule `trainable(name)`."""
    if not isinstance(module, torch.nn.Module):
        return []
    named = ((f"{prefix}.{name}", p) for name, p in module.named_parameters() if p.requires_grad)
    return [p for name, p in named if trainable is None or trainable(name)]


class Optimizer:
    """An optimiser from a factory, with its learning-rate schedule, that clips gradients and leaves out bad steps.

    Args:
        name: of the argument, for messages.
        factory: callable from a list of parameters to a `torch.optim.Optimizer`, or to a pair of it and a scheduler,
            which is then stepped after every step.
        parameters: the parameters.
        max_grad_norm: norm that gradients are clipped at; None for twice a running quantile, inf for no such thing.
        processes: that each have a part of the loss, whose gradients are added up.

    Attributes:
        rate_scale: a factor of the learning rate, at most 1.

    Raises:
        TypeError: if it is not a factory (a `pyro.optim` object, or a built optimiser).
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[list], Any],
        parameters: list[torch.nn.Parameter],
        max_grad_norm: float | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if isinstance(factory, (PyroOptim, torch.optim.Optimizer)) or not callable(factory):
            kind = f"{type(factory).__module__.rsplit('.', 1)[0]}.{type(factory).__name__}"
            raise TypeError(
                f"Expected a factory or None for {name}; got {kind}. "
                "Write `lambda parameters: torch.optim.Adam(parameters, 1e-4)`."
            )
        self.processes = processes
        built = factory(parameters)
        self.parameters, self.max_grad_norm = parameters, max_grad_norm
        self.log_quantile, self.count = math.nan, 0  # of the norms, see `gebm.clipping`
        self.rate_scale = 1.0
        self.optim, self.scheduler = built if isinstance(built, tuple) else (built, None)
        self.skipped_in_row, self.description = 0, _describe(self.optim, self.scheduler)

    def apply(
        self,
        loss: torch.Tensor,
        watched: Sequence[torch.Tensor] = (),
        judge: Callable[..., tuple[bool, bool]] = lambda: (False, False),
    ) -> tuple[bool, torch.Tensor, bool]:
        """One step, unless loss or gradient is not finite or far above what is usual.

        Only the gradients of the parameters are computed. What decides is read off the device at once.

        Args:
            loss: of the step.
            watched: other numbers that are read.
            judge: from these, whether the step is to be left out, and whether its batch is an outlier for another
                reason than its gradient.

        Returns:
            `(applied, gradient norm, outlier)`.
        """
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        *grads, loss = self.processes.sum([*grads, loss])
        present = [grad for grad in grads if grad is not None]
        norm = torch.stack(torch._foreach_norm(present)).norm()  # pyright: ignore[reportPrivateImportUsage]
        value, size, *others = torch.stack([loss.detach(), norm, *watched]).tolist()
        left_out, outlier = judge(*others)
        scale, fine = self._scale(math.nan if left_out else value, size, outlier)
        ok = scale > 0
        self.skipped_in_row = 0 if fine else self.skipped_in_row + 1
        if ok:
            if scale < 1:
                torch._foreach_mul_(present, scale)  # pyright: ignore[reportPrivateImportUsage]
            before = [p.detach().clone() for p in self.parameters] if self.rate_scale < 1 else []
            for parameter, grad in zip(self.parameters, grads):
                parameter.grad = grad
            self.optim.step()
            self.optim.zero_grad()
            for parameter, old in zip(self.parameters, before):
                parameter.data.copy_(old.lerp(parameter.detach(), self.rate_scale))
            if self.scheduler is not None:
                self.scheduler.step()
        return ok, norm, outlier

    def _scale(self, loss, norm, outlier):
        """What a gradient is multiplied by, 0 to leave it out; and whether the step is fine."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return 0.0, False
        if self.max_grad_norm == math.inf or norm == 0.0:
            return 1.0, True
        log_norm = math.log(norm)
        log_quantile, count = (self.log_quantile, self.count) if self.count else (log_norm, 0)
        self.log_quantile, self.count = clipping.next_log_quantile(log_quantile, count, log_norm), count + 1
        outlier |= count >= clipping.MIN_STEPS and log_norm > log_quantile + clipping.LOG_OUTLIER
        if outlier and self.skipped_in_row < clipping.MAX_OUTLIERS:
            return 0.0, False
        bound = clipping.largest_log_norm(self.max_grad_norm, log_quantile)
        return math.exp(min(bound - log_norm, 0.0)), not outlier

    def state_dict(self) -> dict[str, Any]:
        """State of optimiser and scheduler."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optim": self.optim.state_dict(), "scheduler": scheduler, **{n: getattr(self, n) for n in _KEPT}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state from `state_dict`."""
        self.optim.load_state_dict(state["optim"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for name in _KEPT:
            setattr(self, name, state.get(name, getattr(self, name)))  # an older file lacks some


#: What an `Optimizer` keeps besides.
_KEPT = ("log_quantile", "count", "rate_scale", "skipped_in_row")


def _describe(optim, scheduler):
    """Settings of an optimiser and its scheduler, as made."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optim.param_groups]
    settings = {} if scheduler is None else {n: v for n, v in scheduler.state_dict().items() if not n.startswith("_")}
    return describe([type(optim), groups, type(scheduler), settings])


@contextlib.contextmanager
def random_stream(step: int, device: torch.device) -> Iterator[None]:
    """Random numbers of a step's own for a while; those that training draws are as if there had been none."""
    before = get_rng_state(device)
    seed = hash((torch.initial_seed(), step)) % 2**63  # of integers, the same in every process
    try:
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        set_rng_state(before, device)


class Run:
    """A run of training, as `gebm.training.drive` moves it along.

    Args:
        training: what has `state_dict`, `load_state_dict`, and the counters `base_steps_taken`, `num_skipped` and
            `skipped_in_row`.
        take_step: trains it on a batch: `batch -> losses`.
        batches: see `batches`.
        losses: the type of losses, a `NamedTuple` whose last field is of the base step.
        device: that of the training.
        explain: from the training, why it stopped and what to do about it; None for steps that were all bad.
        advice: how to go on where the result could not be made.
    """

    def __init__(
        self,
        training: Any,
        take_step: Callable[[torch.Tensor], Any],
        batches: Any,
        losses: type,
        device: torch.device,
        explain: Callable[[Any], tuple[str, str] | None] = lambda training: None,
        advice: str = "The modules of base and energy are trained in place; `run(0, data)` makes the result again.",
    ) -> None:
        self._explain, self._advice = explain, advice
        self.training, self.take_step, self.batches, self.device = training, take_step, batches, device
        self.first, self.curves, self._losses = training.base_steps_taken, torch.zeros(0, len(losses._fields)), losses
        self._start()

    def _start(self):
        self.good, self.skipped_before = copy.deepcopy(self.training.state_dict()), self.training.num_skipped

    @property
    def step(self) -> int:
        return self.training.base_steps_taken - self.first

    @property
    def skipped(self) -> int:
        return self.training.num_skipped - self.skipped_before

    @property
    def kept(self) -> tuple[dict[str, Any], str]:
        return self.training.state_dict(), self._advice

    def advance(self, count: int) -> Any:
        """`count` base steps; their losses.

        Raises:
            TrainingDiverged: if the last steps were all bad; the training is put back to an earlier look.
        """
        chunk = torch.stack([self._cycle() for _ in range(count)]).cpu()
        self.good = self.good if self.training.skipped_in_row else copy.deepcopy(self.training.state_dict())
        self.curves = torch.cat([self.curves.to(chunk), chunk])
        return self._losses(*chunk.unbind(1))

    @property
    def losses(self) -> Any:
        """Curves of the run so far."""
        return self._losses(*self.curves.unbind(1))

    def _cycle(self):
        """One base step after its energy steps; the mean of their losses."""
        rows, before = [], self.training.base_steps_taken
        losses: Any = None
        while self.training.base_steps_taken == before:
            losses = self.take_step(self.batches.next())
            rows.append(torch.stack(losses[:-1]))
            if self.training.skipped_in_row >= PATIENCE:
                self._diverged()
        return torch.cat([torch.stack(rows).mean(0), losses[-1][None]])

    def _diverged(self):
        stopped = self.training.base_steps_taken
        found, advice = self._explain(self.training) or BAD_STEPS
        self.training.load_state_dict(self.good)
        raise TrainingDiverged(
            f"Training stopped at base step {stopped}: {found} The last good state, of base step "
            f"{self.training.base_steps_taken}, is restored (and is `error.state`). {advice}",
            self.good,
        )

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the run needs to go on."""
        return {
            "training": self.training.state_dict(),
            "batches": self.batches.state_dict(),
            "rng": get_rng_state(self.device),
            "first": self.first,
            "losses": self.curves,
        }

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.training.load_state_dict(checkpoint["training"])
        self.batches.load_state_dict(checkpoint["batches"])
        set_rng_state(checkpoint["rng"], self.device)
        self.first = checkpoint["first"]
        if checkpoint["losses"] is not None:  # a file of before 0.1, of a run without a step
            self.curves = checkpoint["losses"].cpu()
        self._start()

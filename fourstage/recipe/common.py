"""What recipes of every task hold. A value that can change a reported number stands here or with its task."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


def _check_length(text: object) -> object:
    if not isinstance(text, str) or not re.fullmatch(r"\d+(\.\d+)?ep|\d+it", text):
        raise ValueError(f"a length is epochs such as '300ep' or optimiser steps such as '160000it'; got {text!r}")
    return text


def _check_some(text: str) -> str:
    if not float(text[:-2]):
        raise ValueError(f"it must be at least one step; got {text!r}")
    return text


Length = Annotated[str, BeforeValidator(_check_length)]
SomeLength = Annotated[Length, AfterValidator(_check_some)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def steps(length: str, steps_per_epoch: int) -> int:
    """Optimiser steps in a length: "2ep" is twice `steps_per_epoch`, "160000it" is 160,000."""
    value, unit = float(length[:-2]), length[-2:]
    return round(value * steps_per_epoch) if unit == "ep" else int(value)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads yes and on as true, and Python takes true for 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"{info.field_name} is not a yes-or-no value; got {str(value).lower()}")
        return value


class Optimisation(Section):
    """One update after another."""

    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    batch_size: int = Field(gt=0)  # images per update, all devices and accumulated parts together
    accumulation: int = Field(default=1, gt=0)  # parts that a device works through before it updates
    length: SomeLength  # the whole training
    lr: float = Field(gt=0)  # the peak, at this batch_size
    lr_scaling: Literal["none", "peak", "all"] = "none"  # which rates follow when a run changes batch_size
    schedule: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    schedule_spans: Literal["rest", "whole", "behind"] = "rest"  # what the curve covers, see engine/schedule.py
    schedule_every: SomeLength = "1it"  # the rate is set anew each so often: "1ep" in loops like DeiT's
    schedule_lag: Length = "0it"  # the rate is that of so much earlier: of loops that set it after the step
    warmup: Length = "0it"  # linear, from warmup_lr
    warmup_lr: float = Field(default=0.0, ge=0)
    warmup_inclusive: bool = False  # True: the last step of warm-up has the peak, not the first one after it
    min_lr: float = Field(default=0.0, ge=0)
    milestones: tuple[Length, ...] = ()  # of schedule "step"
    gamma: float = Field(default=0.1, gt=0)  # factor at each milestone
    power: float = Field(default=1.0, gt=0)  # of schedule "poly"
    weight_decay: float = Field(default=0.05, ge=0)
    weight_decay_end: float | None = Field(default=None, ge=0)  # where a cosine over all steps takes it
    decay_norms_and_biases: bool = False  # True where a source decays every parameter, whatever the network says
    decay_backbone_norms: bool = True  # False where such a source spares the gains and biases of the backbone's norms
    no_decay: tuple[str, ...] = ()  # parts of parameter names that are spared, beside those the network names itself
    lr_multipliers: dict[str, float] = {}  # beginning of a parameter name -> factor on the rate; the longest wins
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # factor on the rate for each layer further from the head
    layer_groups: Literal["blocks", "convnext"] = "blocks"  # what a layer is: a block, or ConvNeXt's twelve groups
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of sgd
    grad_clip: float | None = Field(default=None, gt=0)  # global L2 norm

    @model_validator(mode="after")
    def _consistent(self) -> "Optimisation":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not split into accumulation={self.accumulation} equal parts; "
                f"choose a multiple"
            )
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule=step needs milestones, such as milestones=[8ep,11ep]")
        if self.schedule != "step" and self.milestones:
            raise ValueError(f"milestones belong to schedule=step, and the schedule is {self.schedule}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie from 0 to below 1; got {list(self.betas)}")
        if self.min_lr > self.lr or self.warmup_lr > self.lr:
            raise ValueError(f"min_lr and warmup_lr lie below the peak lr={self.lr}")
        return self


class Recipe(Section):
    """What every task has."""

    METRICS: ClassVar[tuple[str, ...]] = ()  # what `expect` may name

    name: str = Field(pattern=r"^\w[\w.-]*$")  # also that of the run folder
    task: str
    imports: tuple[str, ...] = ()  # a user's own Python files, run before the model is built
    data: str | None = None  # used where no --data is given
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"  # 64: to check, not to train fast
    loss_scale: float = Field(default=65536.0, gt=0)  # the first one, of float16
    channels_last: bool = False
    compile: bool = False
    grad_checkpointing: bool = False  # keep less for the backward pass and compute it again: no other number
    parallel: Literal["ddp", "fsdp"] = "ddp"  # each process holds the whole network, or its share of it (FSDP2)
    sync_batchnorm: bool = False  # over all processes; of a dense network what is around its backbone
    frozen_stages: int = Field(default=0, ge=0)  # stem and so many stages stay as they are
    deterministic: bool = False  # only GPU kernels that give the same bits twice; on CPU they always do
    workers: int = Field(default=2, ge=0)  # loader processes; without effect on any number
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay per update; the average is evaluated beside the model
    optimisation: Optimisation
    evaluate_every: SomeLength = "1ep"
    evaluation_batch_size: int | None = Field(default=None, gt=0)  # None: that of one training part
    checkpoint_every: SomeLength = "1ep"
    log_every: int = Field(default=50, gt=0)  # updates per line of log.jsonl
    tracker: Literal["none", "wandb", "trackio"] = "none"  # beside log.jsonl and TensorBoard
    skip_bad_images: bool = False
    weights: str | None = None  # a checkpoint to start from
    expect: dict[str, float] = {}  # metric -> the number that was published
    reconstructed: bool = False  # True where the source publishes a number but no configuration
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels from 0 to 1, red, green, blue: ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def subject(self) -> str:
        """What is trained, in a word or two."""
        return self.task

    @field_validator("expect")
    @classmethod
    def _known_metrics(cls, expect: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in expect if name not in cls.METRICS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no metric of this task; its metrics are {', '.join(cls.METRICS)}")
        return expect

    @model_validator(mode="after")
    def _pixels_can_be_divided(self) -> "Recipe":
        if not all(self.std):
            raise ValueError("std divides the pixels, so none of its three numbers may be zero")
        return self


# Values that change no number of a run: it may be continued with others.
FREE = frozenset({"name", "workers", "checkpoint_every", "device", "data", "expect", "tracker", "parallel"})

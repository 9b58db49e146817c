"""The values that recipes of every task have. A value that can change a reported number is here or with its task.

The docstring below a field is its description: `fourstage recipes --keys` and docs/recipe-keys.md print it.
"""

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
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?ep|[0-9]{1,12}it", text):
        number = re.fullmatch(r"[0-9]{1,12}", str(text))
        hint = f", write {text}ep for epochs or {text}it for steps" if number else ""
        raise ValueError(
            f"a length is a number of epochs, such as '300ep', or of optimiser steps, such as '160000it'; got "
            f"{text!r:.60}{hint}"
        )
    return text


def _check_positive(text: str) -> str:
    if not float(text[:-2]):
        raise ValueError(f"it must be at least one step; got {text!r}")
    return text


Length = Annotated[str, BeforeValidator(_check_length)]
PositiveLength = Annotated[Length, AfterValidator(_check_positive)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0)]
Images = Annotated[int, Field(gt=0, le=1_000_000)]  # more than that in a batch is a mistake of typing
Side = Annotated[int, Field(gt=0, le=2**14)]  # pixels
PLACES = (("device", "device"), ("dtype", "precision"))  # arguments of networks -> keys of a recipe


def steps(length: str, steps_per_epoch: int) -> int:
    """Return a length in optimiser steps: "2ep" is twice `steps_per_epoch`, "160000it" is 160,000."""
    value, unit = float(length[:-2]), length[-2:]
    return round(value * steps_per_epoch) if unit == "ep" else int(value)


class Section(BaseModel):
    """A group of keys. Unknown keys are errors, and values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Raise ValueError for a bool elsewhere: YAML reads `yes` and `on` as true, and Python takes true for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError(f"{info.field_name} is not a yes-or-no value; got {str(value).lower()}")
        return value


class Optimisation(Section):
    """Optimiser, learning rate and length of the training."""

    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    """Optimiser."""
    batch_size: Images
    """Images per update, over all devices and accumulated micro-batches."""
    accumulation: Images = 1
    """Micro-batches per device and update."""
    length: PositiveLength
    """Length of the training."""
    lr: float = Field(gt=0)
    """Peak learning rate, at the recipe's batch_size."""
    lr_scaling: Literal["none", "peak", "all"] = "none"
    """Rates that scale with batch_size when a run changes it: none, lr alone, or lr, warmup_lr and min_lr."""
    schedule: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    """Curve of the learning rate after warm-up."""
    schedule_spans: Literal["rest", "whole", "behind"] = "rest"
    """Steps that the curve covers. rest: those after warm-up; whole: all, and warm-up is a factor on the curve; behind:
    all, and warm-up replaces the first steps of the curve. See engine/schedule.py."""
    schedule_every: PositiveLength = "1it"
    """Interval between changes of the rate: 1ep in training loops like DeiT's."""
    schedule_lag: Length = "0it"
    """Delay of the rate: 1it in loops that set the rate after the step."""
    warmup: Length = "0it"
    """Length of the linear warm-up from warmup_lr."""
    warmup_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the start of warm-up."""
    warmup_inclusive: bool = False
    """Whether the last step of warm-up has the peak rate; otherwise the first step after it does."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the curve."""
    milestones: tuple[Length, ...] = ()
    """Points of the training at which schedule=step multiplies the rate by gamma."""
    gamma: float = Field(default=0.1, gt=0)
    """Factor on the rate at each milestone."""
    power: float = Field(default=1.0, gt=0)
    """Exponent of schedule=poly."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay. It is not applied to norms, biases and the parameters that the network lists."""
    weight_decay_end: float | None = Field(default=None, ge=0)
    """Weight decay at the end, reached by a cosine over all steps; null: constant."""
    decay_norms_and_biases: bool = False
    """Whether weight decay applies to every parameter, including norms, biases and those that the network lists."""
    decay_backbone_norms: bool = True
    """Whether decay_norms_and_biases also covers the gains and biases of the backbone's norms."""
    decayed_norms: tuple[str, ...] = ()
    """Substrings of names of backbone norms that always have weight decay, whatever decay_backbone_norms and no_decay
    say. A run lists those of its recipe that another backbone lacks."""
    no_decay: tuple[str, ...] = ()
    """Substrings of names of further parameters without weight decay."""
    lr_multipliers: dict[str, Factor] = {}
    """Prefix of a parameter name -> factor on the rate; the longest prefix wins."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate for each layer of distance from the head."""
    layer_groups: Literal["blocks", "convnext"] = "blocks"
    """Layers for layer_decay: blocks, or the twelve groups of ConvNeXt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Coefficients of the running averages of adamw and lamb."""
    eps: float = Field(default=1e-8, gt=0)
    """Term added to the denominator of adamw and lamb."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest global L2 norm of the gradient; null: no clipping."""

    @model_validator(mode="after")
    def _consistent(self) -> "Optimisation":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not split into accumulation={self.accumulation} equal "
                f"micro-batches; choose a multiple of {self.accumulation}"
            )
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule=step needs milestones, such as milestones=[8ep,11ep]")
        if self.schedule != "step" and self.milestones:
            raise ValueError(
                f"milestones work only with schedule=step, but the schedule is {self.schedule}; leave one of them out"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and less than 1; got {list(self.betas)}")
        if self.min_lr > self.lr or self.warmup_lr > self.lr:
            raise ValueError(f"min_lr and warmup_lr must not be above the peak lr={self.lr}")
        return self


class Recipe(Section):
    """The keys that recipes of every task have."""

    METRICS: ClassVar[tuple[str, ...]] = ()  # the metrics that `expect` may name

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the recipe, and by default of the run folder: letters, digits, `_`, `-` and `.`."""
    task: str
    """Task, which decides the other keys."""
    imports: tuple[str, ...] = ()
    """Python files of your own that are run before the model is built."""
    data: str | None = None
    """Data set where no --data is given: a folder, an address, digits or digit_scenes."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights and of all random draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto takes a GPU where there is one."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of the computation; float64 is for checks."""
    loss_scale: float = Field(default=65536.0, gt=0, le=1e12)
    """First loss scale of precision=float16."""
    channels_last: bool = False
    """Whether weights and images have the channels-last memory format."""
    compile: bool = False
    """Whether torch.compile compiles the training step's forward; of a detector, its backbone and neck."""
    grad_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass to save memory; results are equal."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether each process holds the complete network (ddp) or its share of it (fsdp, FSDP2)."""
    sync_batchnorm: bool = False
    """Whether batch norms use statistics of all processes; in detectors and segmentors, all but the backbone's."""
    frozen_stages: int = Field(default=0, ge=0, le=1000)
    """Number of stages, with the stem, whose weights are frozen."""
    deterministic: bool = False
    """Whether only deterministic GPU kernels are used; CPU kernels always are."""
    workers: int | None = Field(default=None, ge=0, le=1024)
    """Loader processes; null: as many as the cores allow; without effect on results."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per update of an average of the weights, which is evaluated beside the model; null: no average."""
    optimisation: Optimisation
    evaluate_every: PositiveLength | None = "1ep"
    """Interval between evaluations; null: one, at the end."""
    evaluation_batch_size: Images | None = None
    """Images per evaluation batch of a process; null: those of a training micro-batch."""
    checkpoint_every: PositiveLength = "1ep"
    """Interval between checkpoints."""
    log_every: int = Field(default=50, gt=0)
    """Updates per line of log.jsonl; fewer in a short training, so that there are 20 lines."""
    tracker: Literal["none", "wandb", "trackio"] = "none"
    """Experiment tracker beside log.jsonl and TensorBoard."""
    skip_bad_images: bool = False
    """Whether images that cannot be read are left out; otherwise they are an error."""
    weights: str | None = None
    """Weights to start from: a checkpoint, pretrained for the published ones, the name of published ones such as
    smt_tiny.in1k, or none; null: random weights."""
    sizing: Literal["none", "small_data", "fine_tuning"] = "small_data"
    """Values that are fitted to the data when a run begins, unless you set them. small_data: batch_size and warmup,
    where the data is too small for them; fine_tuning: batch_size, lr, warmup and length; none: no value."""
    expect: dict[str, float] = {}
    """Metric -> published number, for comparison."""
    reconstructed: bool = False
    """Whether the source publishes the number without its configuration, so that values are reconstructed."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, for pixels from 0 to 1, which is subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, which divides the pixels."""

    @property
    def network_name(self) -> str:
        """The name of the network that is trained, in a word or two."""
        return self.task

    @field_validator("expect")
    @classmethod
    def _known_metrics(cls, expect: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in expect if name not in cls.METRICS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a metric of this task; its metrics are {', '.join(cls.METRICS)}")
        return expect

    @model_validator(mode="after")
    def _std_is_not_zero(self) -> "Recipe":
        if not all(self.std):
            raise ValueError("std divides the pixels, so none of its three numbers may be zero")
        return self


# Keys that change no result: a run may continue with other values of them.
FREE = frozenset(
    {
        *("name", "workers", "checkpoint_every", "device", "data", "expect", "tracker", "parallel"),
        *("grad_checkpointing", "skip_bad_images"),
    }
)

"""Stage-1 methods: the options of each, one class a method. The method itself is `btm_core/methods/<name>.py`.

C classes, n_c training images of class c.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from btm_core.config.section import Section
from btm_core.errors import ConfigError

__all__ = [
    "BalancedSoftmaxOptions",
    "CrossEntropyOptions",
    "GPaCoOptions",
    "OTmixOptions",
    "PASCLOptions",
    "PaCoOptions",
    "Stage1Method",
    "as_tabs",
    "check_processes",
]


def _as_a_tab(schema: dict[str, Any]) -> None:
    """Describe a method so that a form (Prefect's) can draw it: a tab goes by its title, and sends no defaults."""
    name = schema["properties"]["name"]
    constant = name.pop("const")
    schema |= {"title": constant, "required": ["name"]}
    name |= {"enum": [constant], "description": "the method"}


class _Method(Section):
    """What every method states of itself."""

    model_config = ConfigDict(json_schema_extra=_as_a_tab)

    several_gpus: ClassVar[bool] = False
    """Whether its loss is a mean over images shown in the standard view, so that processes may share a batch. Queues,
    momentum encoders, contrasts within a batch and second streams would need more than averaged gradients."""


class CrossEntropyOptions(_Method):
    """Cross-entropy; with `pretrain.mixup_alpha` it is stage 1 of MiSLAS and of H2T."""

    several_gpus: ClassVar[bool] = True
    name: Literal["cross_entropy"] = "cross_entropy"


class BalancedSoftmaxOptions(_Method):
    """Balanced softmax, BSCE (Ren et al., NeurIPS 2020): cross-entropy of logits + ln n_c. Handles imbalance."""

    several_gpus: ClassVar[bool] = True
    name: Literal["balanced_softmax"] = "balanced_softmax"


class _Contrast(_Method):
    """What PaCo and GPaCo share."""

    alpha: float = Field(0.05, gt=0, description="weight of a positive pair against the class centre")
    temperature: float = Field(0.2, gt=0, description="of the contrast between images")
    queue: int = Field(8192, ge=0, description="embeddings of past images to contrast with")
    dim: int = Field(128, ge=2, description="of the embeddings")
    view: Literal["standard", "randaugment", "autoaugment"] = Field(
        "randaugment", description="first view; the second is SimCLR's (see btm_core.data.views)"
    )


class PaCoOptions(_Contrast):
    """PaCo: parametric contrastive learning with a momentum encoder (Cui et al., ICCV 2021). Handles imbalance."""

    name: Literal["paco"] = "paco"
    momentum: float = Field(0.999, ge=0, lt=1, description="of the encoder that fills the queue")


class GPaCoOptions(_Contrast):
    """GPaCo: PaCo without the momentum encoder (Cui et al., TPAMI 2023). Handles imbalance."""

    name: Literal["gpaco"] = "gpaco"
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the class centres")


class OTmixOptions(_Method):
    """OTmix: mixing pairs matched by optimal transport (Gao et al., NeurIPS 2023). Handles imbalance."""

    name: Literal["otmix"] = "otmix"
    probability: float = Field(0.5, ge=0, le=1, description="share of batches that are mixed")
    plain_epochs: int = Field(3, ge=0, description="first (and one more) and last epochs without mixing")
    growth: float = Field(1.0, gt=0, description="matching in epoch e of E has probability (e / E) ** growth")
    beta: float = Field(4.0, gt=0, description="Beta(beta, beta) of the background's share")
    feature_weight: float = Field(0.05, ge=0, le=1, description="of features in the cost, against confusions")
    regularisation: float = Field(0.01, gt=0, description="entropic, of the optimal transport")
    balance: float = Field(1.0, ge=0, description="foregrounds of a class are drawn in proportion to n_c ** (1 - this)")
    reweight_from: int | None = Field(
        160, ge=0, description="epoch from which the loss is weighted by effective numbers (DRW); None: never"
    )


class PASCLOptions(_Method):
    """PASCL's classification part: contrast among tail classes (Wang et al., ICML 2022)."""

    name: Literal["pascl"] = "pascl"
    weight: float = Field(0.1, ge=0, description="of the contrast: 0.1 on CIFAR, 0.02 on ImageNet-LT")
    temperature: float = Field(0.07, gt=0, description="of the contrast between images")
    tail_share: float = Field(0.4, gt=0, le=1, description="share of classes, the rarest, that are contrasted")
    dim: int = Field(128, ge=2, description="of the embeddings")


Stage1Method = Annotated[
    CrossEntropyOptions | BalancedSoftmaxOptions | PaCoOptions | GPaCoOptions | OTmixOptions | PASCLOptions,
    Field(discriminator="name"),
]


def as_tabs(schema: dict[str, Any]) -> None:
    """Describe a choice of methods so that a form can draw it: forms know `anyOf`, and no discriminator."""
    schema.pop("discriminator", None)
    schema["anyOf"] = schema.pop("oneOf")


def check_processes(method: Stage1Method, processes: int) -> None:
    """Raise ConfigError if so many processes cannot train by this method."""
    if processes > 1 and not method.several_gpus:
        raise ConfigError(f"pretrain.method {method.name} trains on one GPU; set BTM_PRETRAIN_GPUS=1")

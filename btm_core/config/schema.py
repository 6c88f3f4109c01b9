"""The experiment: one frozen class a stage of Algorithm 1. It determines the result, and nothing else does.

How an experiment is run (store, workers, device, tracking) is no part of it; see `tasks.settings`.
Paper sections refer to "Reviving Undersampling for Long-tailed Learning"; `MiSLAS` to Zhong et al., CVPR 2021.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from btm_core.config.data import DataConfig
from btm_core.config.methods import CrossEntropyOptions, Stage1Method, as_tabs
from btm_core.config.promotion import PromotionRules
from btm_core.config.section import NOT_IDENTITY, Probability, Section
from btm_core.urls import Location

__all__ = [
    "BACKBONES",
    "EvaluationConfig",
    "ExperimentConfig",
    "FcConfig",
    "FinetuneConfig",
    "MergeConfig",
    "ModelConfig",
    "PostTrainConfig",
    "PretrainConfig",
    "SamplingConfig",
    "TrainConfig",
]

Backbone = Literal[
    "small_cnn",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "cifar_resnet18",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
]
BACKBONES: tuple[str, ...] = get_args(Backbone)
"""20, 32, 44 and 56 layers are the CIFAR ResNets; the others are torchvision's, `cifar_resnet18` with a first layer for
images of 32 pixels."""

Part = Literal["all", "backbone", "head", "last_block_and_head", "last_block_head_and_norms"]

Epochs = Annotated[int, Field(ge=1, description="passes over the stage's data")]
BatchSize = Annotated[int, Field(ge=2, description="images a step; batch normalisation needs two")]
LearningRate = Annotated[float, Field(gt=0, description="peak learning rate")]


class ModelConfig(Section):
    """The network: a backbone and a linear head."""

    backbone: Backbone = Field("resnet50", description="architecture")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of training; bfloat16 is autocast with channels_last memory"
    )


class TrainConfig(Section):
    """The optimizer and its schedule, shared by all training stages."""

    epochs: Epochs
    batch_size: BatchSize
    lr: LearningRate
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="adam leaves momentum and nesterov aside")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(False, description="Nesterov's momentum")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, of all parameters that train")
    schedule: Literal["constant", "cosine", "step"] = Field(
        "cosine", description="by epoch; cosine is lr/2 * (1 + cos(pi * epoch / epochs))"
    )
    milestones: tuple[int, ...] = Field((), description="step schedule: epochs after which lr is multiplied by gamma")
    gamma: float = Field(0.1, gt=0, le=1, description="step schedule: factor on lr at each milestone")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up")
    mixup_alpha: float = Field(0.0, ge=0, description="Beta(alpha, alpha) of mixup; 0 switches it off")

    @model_validator(mode="after")
    def _momentum_fits(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class PretrainConfig(TrainConfig):
    """Stage 1: train, best without handling imbalance (Algorithm 1, line 1), or start from a checkpoint."""

    checkpoint: Location | None = Field(
        None,
        json_schema_extra=NOT_IDENTITY,
        description="safetensors file to take instead of training; its content is its identity",
    )
    initial: Location | None = Field(
        None,
        json_schema_extra=NOT_IDENTITY,
        description="safetensors file of a backbone to start training from; its content is its identity",
    )
    fresh_last_block: bool = Field(
        False, description="initial: leave the last block as it is drawn, as MiSLAS does on Places-LT"
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="of stage 1; default: the run's. Set it to repeat BTM from one stage 1",
    )
    method: Stage1Method = Field(
        CrossEntropyOptions(),
        json_schema_extra=as_tabs,
        description="the loss and what it needs; see btm_core.methods",
    )
    train: Part = Field("all", description="which parameters train")
    epochs: Epochs = 200
    batch_size: BatchSize = 128
    lr: LearningRate = 0.1

    @property
    def needs_trained_backbone(self) -> bool:
        """Whether a part stays as it is drawn unless a file is given to start from."""
        starts_from_nothing = self.initial is None and self.checkpoint is None
        return starts_from_nothing and (self.fresh_last_block or self.train != "all")

    @field_validator("method", mode="before")
    @classmethod
    def _name_alone_means_its_defaults(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one_of_two_starts(self) -> Self:
        if self.checkpoint is not None and self.initial is not None:
            raise ValueError("checkpoint replaces stage 1, initial starts it: set one of them")
        if self.mixup_alpha and self.method.name not in ("cross_entropy", "balanced_softmax"):
            raise ValueError(
                f"mixup_alpha belongs to cross_entropy and balanced_softmax, not to {self.method.name}: set it to 0"
            )
        if self.train != "all" and self.method.name == "paco":
            raise ValueError("paco trains the whole network: its momentum encoder follows all of it")
        return self


class FcConfig(TrainConfig):
    """The `FC` stage (section 3.3): re-train only the head, cross-entropy, on all (imbalanced) training data."""

    epochs: Epochs = 10
    batch_size: BatchSize = 128
    lr: LearningRate = 0.1


class SamplingConfig(Section):
    """Few-shot balanced subsets (Algorithm 1, line 2)."""

    num_subsets: int = Field(10, ge=1, le=1000, description="N_D, section 4.3, Table 7")
    shots: int = Field(10, ge=1, description="N_C, images a class, section 4.3, Table 7")
    lists: tuple[Location, ...] = Field(
        (),
        json_schema_extra=NOT_IDENTITY,
        description="published subsets to take instead of drawing: one `path label` file a subset, by content",
    )
    when_short: Literal["take-all", "error"] = Field(
        "take-all", description="a class with fewer images than shots: take what it has, or stop"
    )

    @model_validator(mode="after")
    def _one_list_a_subset(self) -> Self:
        if self.lists and len(self.lists) != self.num_subsets:
            raise ValueError(f"{len(self.lists)} lists, but num_subsets is {self.num_subsets}; give one list a subset")
        return self


class FinetuneConfig(TrainConfig):
    """Balanced training of the whole network on one subset (Algorithm 1, line 3; section 4.1)."""

    epochs: Epochs = 30
    batch_size: BatchSize = 256
    lr: LearningRate = 5e-3
    mixup_alpha: float = Field(0.0, ge=0, description="default: that of pretrain (section 4.1)")
    train: Part = Field("all", description="which parameters train (Table 8)")
    start: Literal["stage1", "post_trained"] = Field(
        "stage1", description="fine-tune before post-training, as the paper, or after it (Table 8)"
    )
    quorum: int | None = Field(
        None,
        ge=1,
        json_schema_extra=NOT_IDENTITY,
        description="go on with at least this many of the N_D ingredients if the others are lost; default: all",
    )


class MergeConfig(Section):
    """Weight averaging of the N_D ingredients (Algorithm 1, line 3)."""

    strategy: Literal["uniform", "adaptive_h_mean", "adaptive_g_mean", "greedy_h_mean", "greedy_g_mean"] = Field(
        "uniform", description="1 / N_D each; in proportion to each one's mean recall; or a greedy soup (Table 6)"
    )
    criterion: Literal["balanced", "validation"] = Field(
        "balanced",
        description="where adaptive and greedy strategies score: the balanced subsets, as the paper, or the validation "
        "split; never the test split",
    )

    @field_validator("criterion", mode="before")
    @classmethod
    def _never_on_test(cls, value: Any) -> Any:
        if value == "test":
            raise ValueError("nothing may be chosen on the test split; choose on balanced or validation")
        return value


class PostTrainConfig(TrainConfig):
    """Freeze the backbone and re-train the head, with balanced sampling or a balanced loss (Algorithm 1, line 4)."""

    method: Literal["mislas", "crt", "lws", "balanced_softmax", "gml", "h2t"] = Field(
        "mislas", description="see btm_core.post_training"
    )
    epochs: Epochs = 10
    batch_size: BatchSize = 128
    lr: LearningRate = 0.1
    head_lr_factor: float = Field(0.2, gt=0, description="the head's lr over the scaling's lr (MiSLAS)")
    sampler: Literal["class-aware", "instance"] | None = Field(
        None, description="default: what the method was published with"
    )
    samples_per_class: int = Field(4, ge=1, description="consecutive draws of one class by the class-aware sampler")
    shift_batchnorm: bool = Field(True, description="let BN statistics follow the batches (MiSLAS)")
    smoothing_head: Probability = Field(0.4, description="mislas: label-aware smoothing of the most frequent class")
    smoothing_tail: Probability = Field(0.1, description="mislas: label-aware smoothing of the rarest class")
    tau: float = Field(1.0, gt=0, description="balanced_softmax: factor on ln n_c; 1 is the published one")
    gml_power: float = Field(1.0, gt=0, description="gml: exponent of the power mean over classes")
    h2t_ratio: Probability = Field(0.25, description="h2t: rho, share of feature maps taken from the second stream")
    reweight: Literal["none", "inverse", "effective"] = Field(
        "none",
        description="class weights in the loss of mislas, crt, lws and h2t: none, 1 / n_c, or 1 / effective number of "
        "images (Cui et al., CVPR 2019, beta 0.999); for bases of one stage (section 4.1)",
    )

    @model_validator(mode="after")
    def _weights_a_loss_that_has_weights(self) -> Self:
        if self.reweight != "none" and self.method in ("balanced_softmax", "gml"):
            raise ValueError(
                f"reweight is {self.reweight}, but the loss of {self.method} takes the class counts itself and has no "
                "class weights; set post_train.reweight to none"
            )
        return self


class EvaluationConfig(Section):
    """What is measured besides the models on the way."""

    baseline: bool = Field(True, description="also post-train stage 1 alone: the row that BTM must beat (Table 12)")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of predictions; bfloat16 is faster, and moves some images to another class"
    )
    thumbnails: int = Field(
        6,
        ge=0,
        le=12,
        json_schema_extra=NOT_IDENTITY,
        description="so many training images, and mistakes, of each of the lowest classes are in the report; 0: none",
    )


class ExperimentConfig(Section):
    """Everything that determines the result of one BTM run."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        json_schema_extra=NOT_IDENTITY,
        description="what runs and registered models are called: letters, digits, . _ -",
    )
    seed: int = Field(0, ge=0, strict=True, description="of all that is random, but not of the data's split")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    fc: FcConfig | None = Field(None, description="set it for a base that already handled imbalance (section 3.3)")
    sampling: SamplingConfig = SamplingConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    merge: MergeConfig = MergeConfig()
    post_train: PostTrainConfig = PostTrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionRules = Field(
        PromotionRules(), json_schema_extra=NOT_IDENTITY, description="what `btm promote` asks of the final model"
    )
    source: str | None = Field(None, json_schema_extra=NOT_IDENTITY, description="where the recipe comes from")
    hardware: str | None = Field(
        None, json_schema_extra=NOT_IDENTITY, description="what to run it on, and how long that takes"
    )
    published: dict[str, float] | None = Field(
        None, json_schema_extra=NOT_IDENTITY, description="percentages published for this recipe, by metric"
    )
    licence: str | None = Field(
        None, json_schema_extra=NOT_IDENTITY, description="licence note of data and model, for the model card"
    )

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Self:
        if self.finetune.quorum is not None and self.finetune.quorum > self.sampling.num_subsets:
            raise ValueError(
                f"finetune.quorum is {self.finetune.quorum}, but sampling.num_subsets is {self.sampling.num_subsets}: "
                "lower one, or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_chooses_on(self) -> Self:
        chooses = self.merge.strategy != "uniform" and self.merge.criterion == "validation"
        if chooses and not (self.data.validation or self.data.validation_per_class):
            raise ValueError(
                "merge.criterion is validation, but there is no validation split; set data.validation or "
                "data.validation_per_class, or merge.criterion to balanced"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _finetune_augments_as_pretrain_does(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("pretrain", {}), Mapping):
            return raw
        finetune = raw.get("finetune", {})
        if isinstance(finetune, Mapping) and "mixup_alpha" not in finetune:
            alpha = raw.get("pretrain", {}).get("mixup_alpha", 0.0)
            return {**raw, "finetune": {**finetune, "mixup_alpha": alpha}}
        return raw

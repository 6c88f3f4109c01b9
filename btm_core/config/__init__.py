"""The configuration of an experiment, and how it is read."""

from btm_core.config.data import DataConfig, InputConfig
from btm_core.config.loading import (
    load_experiment,
    preset_behind,
    preset_names,
    preset_text,
    with_absolute_paths,
    with_overrides,
)
from btm_core.config.methods import Stage1Method
from btm_core.config.promotion import PromotionRules
from btm_core.config.schema import (
    BACKBONES,
    EvaluationConfig,
    ExperimentConfig,
    FcConfig,
    FinetuneConfig,
    MergeConfig,
    ModelConfig,
    PostTrainConfig,
    PretrainConfig,
    SamplingConfig,
    TrainConfig,
)
from btm_core.config.section import NOT_IDENTITY, Section, canonical_digest

__all__ = [
    "BACKBONES",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FcConfig",
    "FinetuneConfig",
    "InputConfig",
    "MergeConfig",
    "ModelConfig",
    "NOT_IDENTITY",
    "PostTrainConfig",
    "PretrainConfig",
    "PromotionRules",
    "SamplingConfig",
    "Section",
    "Stage1Method",
    "TrainConfig",
    "canonical_digest",
    "load_experiment",
    "preset_behind",
    "preset_names",
    "preset_text",
    "with_absolute_paths",
    "with_overrides",
]

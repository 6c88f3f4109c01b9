"""The configuration of an experiment, and how it is read."""

from btm_core.config.loading import load_experiment, preset_names, preset_text
from btm_core.config.schema import (
    BACKBONES,
    NOT_IDENTITY,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    FcConfig,
    FinetuneConfig,
    InputConfig,
    MergeConfig,
    ModelConfig,
    PostTrainConfig,
    PretrainConfig,
    SamplingConfig,
    Section,
    TrainConfig,
    canonical_digest,
)

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
    "SamplingConfig",
    "Section",
    "TrainConfig",
    "canonical_digest",
    "load_experiment",
    "preset_names",
    "preset_text",
]

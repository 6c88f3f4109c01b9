"""Networks with backbone and head kept apart."""

from btm_core.models.build import Classifier, build_model, needs_torchvision, trainable_modules

__all__ = ["Classifier", "build_model", "needs_torchvision", "trainable_modules"]

"""What an experiment will do, before any of it is done: work, estimates from what was measured, storage, cautions."""

from btm_core.planning.cautions import Caution, cautions, repeats
from btm_core.planning.estimates import Conditions, Measurement, Rate, conditions_of, makespan, rate_of
from btm_core.planning.network import NetworkSize, network_size
from btm_core.planning.workload import Workload, forward, post_training, subset_images, training

__all__ = [
    "Caution",
    "Conditions",
    "Measurement",
    "NetworkSize",
    "Rate",
    "Workload",
    "cautions",
    "conditions_of",
    "forward",
    "makespan",
    "network_size",
    "post_training",
    "rate_of",
    "repeats",
    "subset_images",
    "training",
]

"""Data sets: readers, the long-tail cut, checks, decoding, augmentation."""

from btm_core.data.catalog import Catalog, Split
from btm_core.data.long_tail import LongTailProfile, class_counts, long_tail_indices, profile
from btm_core.data.readers import scan
from btm_core.data.sources import read_list

__all__ = [
    "Catalog",
    "LongTailProfile",
    "Split",
    "class_counts",
    "long_tail_indices",
    "profile",
    "read_list",
    "scan",
]

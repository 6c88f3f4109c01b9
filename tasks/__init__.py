"""The steps of the algorithm as units of work: each reads artifacts, calls `btm_core`, and writes one artifact."""

"""The final model as others use it: images as they come in requests, labels and probabilities as they go out.

All of `btm_core` travels with a served model, and this package must run on its short list of requirements: it imports
nothing that needs a store, nor MLflow, which `tasks.serving` knows.
"""

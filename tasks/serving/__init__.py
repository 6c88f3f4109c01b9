"""The final model as an MLflow model: models from code over safetensors, with card, evidence and exports; no pickle."""

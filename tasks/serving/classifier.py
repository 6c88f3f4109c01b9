"""The served model. MLflow copies this file into the model and runs it there: it may import `btm_core`, which travels
with it, and nothing of `tasks`.
"""

import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import btm_core
from btm_core.errors import BTMError
from btm_core.serving.predictor import Predictor, ServingFacts

log = logging.getLogger(__name__)


class BTMClassifier(PythonModel):  # type: ignore[misc]
    """Images in base64, one a row of the column `image`, to label, probability, top_k and probabilities."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network. Raises CheckpointError if a file of the model is damaged."""
        facts = ServingFacts.model_validate_json(Path(context.artifacts["serving"]).read_text())
        if facts.btm_version != btm_core.__version__:  # imported before the model's own copy could be
            log.warning(
                "the model was packaged with btm_core %s and runs on %s", facts.btm_version, btm_core.__version__
            )
        device = os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
        self.predictor = Predictor.load(Path(context.artifacts["checkpoint"]), facts, torch.device(device))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return one record a row; see `Predictor.predict`. What is wrong with a request is told with HTTP 400."""
        try:
            return self.predictor.predict(list(model_input["image"]), (params or {}).get("top_k"))
        except BTMError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(BTMClassifier())

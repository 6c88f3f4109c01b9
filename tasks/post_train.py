"""Post-training of the head with a frozen backbone (Algorithm 1, line 4)."""

from typing import ClassVar, Literal

from btm_core.config import PostTrainConfig
from btm_core.storage import Artifact
from tasks.stages import TrainingStep
from tasks.workspace import Workspace

__all__ = ["PostTrain"]


class PostTrain(TrainingStep):
    """Re-train the head of `base`: of the soup for BTM, of stage 1 for the baseline."""

    kind: Literal["post_train"] = "post_train"
    stage: ClassVar[str] = "post_train"
    runs_beside_others: ClassVar[bool] = True

    base: Artifact
    config: PostTrainConfig

    @property
    def readable(self) -> str:
        """Method and what it starts from."""
        return f"{self.config.method}-on-{self.base.stage}"

    def run(self, work: Workspace) -> None:
        """Train the head, fold the learnt scaling into it, and write the classifier."""
        from btm_core.post_training import post_trainer

        dataset = self.dataset(work)
        model = self.load_model(work, dataset, self.base)
        wrapped, trainer = post_trainer(
            model,
            dataset.train,
            dataset.train_counts,
            self.config,
            seed=("post_train", self.seed),
            precision=self.model.precision,
            device=work.device,
        )
        work.train(trainer)
        self.save_model(work, dataset, wrapped.folded(), base=self.base.digest)

import torch

from m2kit.training.recipes.averaged_module import AveragedModule
from m2kit.training.recipes.batches import in_order, shuffled
from m2kit.training.recipes.loop import fit
from m2kit.training.recipes.metrics import read_metrics


class ScriptedModule(AveragedModule):
    """Logs a scripted held-out measure per epoch."""

    measures = (5.0, 1.0, 3.0, 2.0)

    def __init__(self):
        super().__init__(torch.nn.Linear(2, 1), 0.0, seed=0)

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()

    def validation_step(self, *_):
        self.log("measure", torch.tensor(self.measures[self.current_epoch]))

    def optimizer(self):
        optimizer = torch.optim.SGD(self.net.parameters(), 1e-3)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)


def test_the_best_model_of_before_a_resume_is_kept(tmp_path):
    data = torch.arange(16.0).view(8, 2)
    for epochs in (2, 4):
        resume = tmp_path / "resume.ckpt"
        fit(
            ScriptedModule(), shuffled(data, batch=4, seed=0), in_order(data), epochs=epochs,
            folder=tmp_path, resume_from=resume if resume.exists() else None,
            panels={"measure": ["measure"]}, choose_by="measure", progress=False,
        )  # fmt: skip
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1
    assert [row["measure"] for row in read_metrics(tmp_path / "metrics.csv", ["measure"])] == [
        5,
        1,
        3,
        2,
    ]

import pytest
import torch

from m2kit.errors import M2KitError
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


NAN = float("nan")


class Diverging(ScriptedModule):
    """In its third epoch a part of the loss, or the measure, becomes NaN."""

    def __init__(self, part=0.0, measure=3.0):
        super().__init__()
        self.part, self.measures = part, (5.0, 1.0, measure)

    def training_step(self, batch, index):
        square = self.net(batch[0]).square().mean()
        odd = torch.tensor(self.part if (self.current_epoch, index) == (2, 1) else 0.0)
        return {"loss": square + odd, "square": square, "odd": odd}


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Diverging(part=NAN), "epoch 3, step 2: loss is nan, odd is nan"),
        (Diverging(part=-float("inf")), "epoch 3, step 2: loss is -inf, odd is -inf"),
        (Diverging(measure=NAN), "epoch 3: measure is nan"),
    ],
    ids=["a loss is NaN", "a loss is infinite", "the measure is NaN"],
)
def test_a_training_that_diverges_is_one_line_and_keeps_the_epochs_before(tmp_path, module, told):
    def train(module, epochs):
        data, resume = torch.arange(16.0).view(8, 2), tmp_path / "resume.ckpt"
        fit(
            module, shuffled(data, batch=4, seed=0), in_order(data), epochs=epochs,
            folder=tmp_path, resume_from=resume if resume.exists() else None,
            panels={"measure": ["measure"]}, choose_by="measure", progress=False,
        )  # fmt: skip

    train(Diverging(), 2)
    (tmp_path / "curves.png").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"metrics.csv", "best.ckpt", "resume.ckpt"}
    with pytest.raises(M2KitError) as caught:
        train(module, 4)
    assert str(caught.value) == (
        f"training diverged in {told}; {tmp_path / 'resume.ckpt'} is as it was after epoch 2; "
        "start again with a lower learning rate in another folder"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

"""What tokenizer and discriminator make of the discriminator's logits: (B, 1, h, w) of pictures,
(B, 1, t, h, w) of clips.

Formulas from TencentARC/SEED-Voken, modules/losses/vqperceptual.py: hinge loss over patches, a
non-saturating generator term of each image's mean logit, and LeCam regularisation (arXiv
2104.03310), whose averages are updated before they are used.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


def generator_loss(fake: Tensor) -> Tensor:
    """Mean over images, or clips, of softplus(-mean logit of its patches)."""
    return functional.softplus(-fake.flatten(1).mean(1)).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the mean margins to +1 of real and to -1 of fake patches."""
    return (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()) / 2


class LeCam(nn.Module):
    """Keeps the logits of one kind near the moving average of the other's.

    The averages start at 0 and are part of the state, unlike upstream, so that a resumed run goes
    on as it was.

    Args:
        decay: Of the averages, per step.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self._decay = decay
        self.register_buffer("real", torch.zeros((), dtype=torch.float64))
        self.register_buffer("fake", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor, *, over_processes: bool = False) -> None:
        """Take mean logits of a step into the averages, of this process or of all of a run."""
        means = torch.stack([real.mean(), fake.mean()]).to(self.real.dtype)
        if over_processes and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(means)
            means /= distributed.get_world_size()
        for average, mean in zip((self.real, self.fake), means, strict=True):
            average.mul_(self._decay).add_(mean, alpha=1 - self._decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Mean square of how far real logits exceed the average fake one, and fake ones fall short
        of the average real one."""
        above = functional.relu(real - self.fake.to(real.dtype))
        below = functional.relu(self.real.to(fake.dtype) - fake)
        return above.square().mean() + below.square().mean()

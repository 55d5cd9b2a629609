"""One function builds all that a trial needs, where names of arguments are not enough:

$ python build.py
"""

from itertools import pairwise

import torch
from torch.utils.data import DataLoader, TensorDataset

import sweep


def build(t: dict) -> tuple:
    """Module, data and Trainer arguments of the parameters `t`."""
    import lightning
    from torch import nn

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            widths = [8, *[t["width"]] * t["depth"], 1]
            layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
            self.net = nn.Sequential(*[part for one in layers for part in (one, nn.Tanh())][:-1])

        def training_step(self, batch: list, batch_idx: int) -> torch.Tensor:
            return nn.functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1])

        def validation_step(self, batch: list, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    x = torch.rand(400, 8, generator=torch.Generator().manual_seed(0))
    rows = TensorDataset(x, x.sin().sum(1))
    train, val = (
        torch.utils.data.Subset(rows, range(300)),
        torch.utils.data.Subset(rows, range(300, 400)),
    )
    data = {"train": DataLoader(train, t["batch_size"], shuffle=True), "val": DataLoader(val, 100)}
    return Net(), data, {"gradient_clip_val": t["clip"]}


if __name__ == "__main__":
    sweep.run(
        build=build,
        vary={
            "width": [8, 16, 32], "depth": sweep.ints(1, 3), "batch_size": [16, 32],
            "clip": sweep.floats(0.1, 10.0, log=True),
        },
        metric="val_loss", trials=4, epochs=2, study="built",
    )  # fmt: skip
    print(sweep.best("built"))

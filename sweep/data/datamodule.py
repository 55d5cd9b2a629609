"""SweepData: the project's data sets as a LightningDataModule, for LightningCLI and notebooks."""

from __future__ import annotations

from typing import Any

import lightning

from sweep.data.tensors import load_search_data


class SweepData(lightning.LightningDataModule):
    """Train and validation splits as a search sees them; the test split stays sealed.

    Args:
        name: A data set of `sweep data`, or package.module:function.
        batch_size: Minibatch size.
        seed: Decides split and order, as in a search with this seed.
        data_dir: Folder of the files; None: the user's cache.
    """

    def __init__(
        self,
        name: str = "digits",
        batch_size: int = 64,
        seed: int = 0,
        data_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.data_name, self.data_dir = name, data_dir
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        """Load the tensors."""
        self._data = load_search_data(self.data_name, self.data_dir, self.seed)

    def train_dataloader(self) -> Any:
        """Minibatches in seeded order."""
        return self._data.fit_arguments(self.batch_size)["train_dataloaders"]

    def val_dataloader(self) -> Any:
        """Validation minibatches in order."""
        return self._data.fit_arguments(self.batch_size)["val_dataloaders"]

"""One Lightning Trainer per trial, for any LightningModule."""

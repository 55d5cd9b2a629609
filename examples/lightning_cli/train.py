"""A LightningCLI project, as it is:

$ sweep run --lightning config.yaml --metric val_acc --trials 4 \
    --vary model.optimizer.lr=1e-3..1e-1:log --vary model.net.width=8,16,32
$ sweep best --format lightning-cli > best.yaml
$ python train.py fit --config best.yaml
"""

from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI()

"""A Ray cluster whose nodes have folders of their own, in a process of its own.

A head without CPUs, and nodes of one CPU that join and are killed on demand. With a `hidden`
folder, none of them sees what is in it (a mount namespace, so this needs root).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from searches import environment

EPOCHS = "epochs.txt"
"""Below the scratch folder: "NODE LR EPOCH" of each epoch that `Counted` trained."""
COUNTED = '''
import os, time
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset

class Counted(lightning.LightningModule):
    """A line whose epochs take 0.3 s and are written down."""

    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.line = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.mse_loss(self.line(x), y)

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_loss", torch.nn.functional.mse_loss(self.line(x), y))

    def on_train_epoch_end(self):
        time.sleep(0.3)
        with open(os.environ["EPOCHS_LOG"], "a") as log:
            log.write(f"{os.environ['NODE']} {self.hparams.lr} {self.current_epoch}\\n")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def _loader(self):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16)

    train_dataloader = val_dataloader = _loader
'''
"""A module of one's own."""


class Nodes:
    """A cluster with `n_nodes`, from outside."""

    def __init__(self, scratch: Path, n_nodes: int, hidden: Path | None = None) -> None:
        own = [sys.executable, __file__, str(scratch), str(hidden or "")]
        self._process = subprocess.Popen(
            [*(["unshare", "-m"] if hidden else []), *own], env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._scratch = scratch
        self.address = self._line()
        for _ in range(n_nodes):
            self.tell("add")

    def tell(self, word: str) -> None:
        """add, or kill the oldest."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def workers(self) -> list[int]:
        """Worker processes on the nodes."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_worker = b"sweep.executors.worker" in (folder / "cmdline").read_bytes()
                if is_worker and str(self._scratch).encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def epochs(self) -> list[list[str]]:
        """[node, learning rate, epoch] of each epoch that `Counted` trained."""
        file = self._scratch / EPOCHS
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def forget(self) -> None:
        """`epochs` begins anew."""
        (self._scratch / EPOCHS).unlink(missing_ok=True)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main(scratch: Path, hidden: str) -> None:
    """The cluster; obeys the words of its input until that ends."""
    from ray.cluster_utils import Cluster

    if hidden:
        subprocess.run(["mount", "-t", "tmpfs", "none", hidden], check=True)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes, n_nodes, own_folders = [], 0, []
    print(cluster.address, flush=True)
    for word in sys.stdin:
        if word.strip() == "add":
            own = scratch / f"n{n_nodes}"
            own.mkdir()
            told = {"TMPDIR": str(own), "EPOCHS_LOG": str(scratch / EPOCHS), "NODE": str(n_nodes)}
            own_folders.append(tempfile.mkdtemp(prefix="r"))  # a socket's path must be short
            nodes.append(cluster.add_node(num_cpus=1, env_vars=told, temp_dir=own_folders[-1]))
            n_nodes += 1
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()
    for folder in own_folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

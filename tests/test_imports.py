"""Large libraries in less time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(code: str, *arguments: str | Path) -> list[str]:
    """What a new Python prints."""
    code = textwrap.dedent(code)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


def test_a_worker_loads_lightning_without_scipy_signal() -> None:
    """It is looked at by torchmetrics alone; who imports it later gets all of it."""
    said = run(
        """
        import sys
        from pathlib import Path
        from sweep.testing import example_task
        from sweep.training import make_trainer

        make_trainer(example_task(Path("."), data="digits"))
        print("lightning" in sys.modules, "scipy.signal" in sys.modules)
        import scipy.signal
        print(len(scipy.signal.windows.hann(3)), "scipy.stats" in sys.modules)
        """
    )
    assert said == ["True", "False", "3", "True"]


TRAIN = """
import math, sys
from pathlib import Path
from sweep.testing import example_task
from sweep.training import make_trainer
from sweep.trial import EpochReport, Orders, TrialResult, TrialSpec

heard = []

def exchange(reports, n_free):
    is_first = not heard
    heard.extend(reports)
    shape = {"optimizer": "Adam", "lr": 1e-3, "hidden": (20, 12)}
    specs = [TrialSpec(number, shape, number) for number in range(2)]
    return Orders((), tuple(specs) if is_first else (), is_last=True)

make_trainer(example_task(Path(sys.argv[1]), data="digits"), is_own_process=True).train(exchange)
print(*sorted(r.outcome for r in heard if isinstance(r, TrialResult)))
print("lightning" in sys.modules, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_a_worker_does_without_the_compiler(tmp_path: Path) -> None:
    """As soon as there are templates of what it exports; who imports it later gets all of it."""
    assert run(TRAIN, tmp_path)[:3] == ["finished", "finished", "True"]
    later = """
import lightning, torch
print(torch.compile(torch.nn.Linear(1, 1), backend="eager")(torch.ones(1)).shape == (1,))
print(torch._dynamo.OptimizedModule.__module__)
"""
    said = run(TRAIN + later, tmp_path)
    assert said == ["finished", "finished", "True", "False", "False",
                    "True", "torch._dynamo.eval_frame"]  # fmt: skip


def test_others_in_the_process_get_lightning_as_it_is() -> None:
    """Inline, the process is the user's, who may compile modules and train them."""
    said = run(
        """
        from pathlib import Path
        from sweep.testing import example_task
        from sweep.training import make_trainer

        make_trainer(example_task(Path("."), data="digits"))
        import lightning.fabric.wrappers, torch
        print(lightning.fabric.wrappers.OptimizedModule is torch._dynamo.OptimizedModule)
        """
    )
    assert said == ["True"]


@pytest.mark.parametrize(
    "use",
    [
        "from colorsys import rgb_to_hsv; rgb_to_hsv(0, 0, 0)",
        "import colorsys; colorsys.rgb_to_hsv(0, 0, 0)",
    ],
)
def test_what_is_asked_for_is_loaded(use: str) -> None:
    """Within, too; a look at a known name or at the file is no question."""
    said = run(
        f"""
        import sys
        from sweep.imports import deferred

        def is_loaded():
            return hasattr(sys.modules.get("colorsys"), "__file__")

        with deferred("colorsys", known=None):
            import colorsys
            print(hasattr(colorsys, "known"), hasattr(colorsys, "__file__"), is_loaded())
            {use}
            print(is_loaded())
        import colorsys
        print(is_loaded(), hasattr(colorsys, "known"))
        with deferred("colorsys", known=None):
            print(is_loaded())
        """
    )
    assert said == ["True", "False", "False", "True", "True", "False", "True"]


def test_what_was_not_asked_for_is_not_loaded() -> None:
    """Nothing stands in for it afterwards, and a package has its modules."""
    said = run(
        """
        import sys
        from sweep.imports import deferred

        with deferred("wsgiref"):
            import wsgiref
        print("wsgiref" in sys.modules)
        with deferred("wsgiref"):
            import wsgiref.util
            print(wsgiref.util.__name__, hasattr(sys.modules["wsgiref"], "__file__"))
        for name in ("wsgiref", "wsgiref.util"):
            sys.modules.pop(name)
        with deferred("wsgiref", util=3):
            from wsgiref import util
            print(util)
            try:
                import wsgiref.util
            except ModuleNotFoundError:
                print("refused")
        """
    )
    assert said == ["False", "wsgiref.util", "True", "3", "refused"]


def test_what_was_imported_counts_as_old() -> None:
    """The collector's next round does not begin with it; what was set aside stays so."""
    said = run(
        """
        import gc
        from sweep.imports import collector_paused

        with collector_paused():
            made = [[] for _ in range(50_000)]
            print(len(gc.get_objects(generation=0)) > 50_000)
        print(len(gc.get_objects(generation=0)) < 1000, gc.isenabled(), gc.get_freeze_count())
        print(any(kept is made for kept in gc.get_objects(generation=2)))
        gc.freeze()
        n_frozen = gc.get_freeze_count()
        with collector_paused():
            pass
        print(gc.get_freeze_count() == n_frozen)
        """
    )
    assert said == ["True", "True", "True", "0", "True", "True"]

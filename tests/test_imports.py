"""Large libraries in less time."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(code: str) -> list[str]:
    """What a new Python prints."""
    code = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
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

        with deferred("colorsys", "known"):
            import colorsys
            print(hasattr(colorsys, "known"), hasattr(colorsys, "__file__"), is_loaded())
            {use}
            print(is_loaded())
        import colorsys
        print(is_loaded(), hasattr(colorsys, "known"))
        with deferred("colorsys", "known"):
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
        """
    )
    assert said == ["False", "wsgiref.util", "True"]

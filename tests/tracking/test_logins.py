"""An MLflow server that asks who one is: one line says which variables to set."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from mlflow_proxy import proxy_of
from searches import Call

USER = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "s3cret"}
RUN = ("run", "--trials", "1", "--epochs", "1", "--executor", "inline", "--population", "1")


@pytest.mark.parametrize(
    ("status", "variables", "said"),
    [
        (401, {}, "asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                  "or MLFLOW_TRACKING_TOKEN"),
        (401, {"MLFLOW_TRACKING_USERNAME": "me"}, "only MLFLOW_TRACKING_USERNAME is set"),
        (401, USER, "take what MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say"),
        (401, {"MLFLOW_TRACKING_TOKEN": "s3cret"}, "take what MLFLOW_TRACKING_TOKEN says"),
        (403, USER, "does not let this user do that: ask for the permission"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_let_one_in_is_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, status: int, variables: Mapping[str, str],
    said: str,
) -> None:  # fmt: skip
    """Before trial 0, exit code 4, without the password."""
    for name in (*USER, "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with proxy_of("http://127.0.0.1:9") as proxy:
        proxy.rule = lambda _, body: (status, "You are not authenticated")
        code, out, err = call(*RUN, "--tracking-uri", proxy.address)
    assert (code, len(err)) == (4, 1)
    assert said in err[0]
    assert "s3cret" not in err[0]
    assert "trial=0" not in out

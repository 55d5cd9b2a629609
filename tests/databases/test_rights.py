"""PostgreSQL: a missing database is made; a right that lacks is named, with the remedy."""

from __future__ import annotations

import re

import pytest
from postgres import Postgres
from searches import Call

from sweep.databases.postgres import making_tables
from sweep.errors import NotFoundError, StoreError
from sweep.ledger.study import create_study, list_studies, open_study
from sweep.tracking.artifacts import model_uri_of, run_id_of

RUN = ("run", "--study", "new", "--trials", "1", "--epochs", "1", "--executor", "inline",
       "--population", "1", "--log-models", "none")  # fmt: skip


def guest(postgres: Postgres, name: str, *rights: str) -> None:
    """A role that may log in, with `rights`."""
    postgres.query("postgres", f"CREATE ROLE {name} LOGIN PASSWORD 'x' {' '.join(rights)}")


def address(postgres: Postgres, role: str, database: str) -> str:
    """Of a database, for a role of `guest`."""
    return f"postgresql://{role}:x@127.0.0.1:{postgres.port}/{database}"


def remedy(postgres: Postgres, database: str, message: str) -> None:
    """Run the statements at an error's end, as an administrator would."""
    found = re.search(r"An administrator runs[^:]*: (.*;)", message)
    assert found, message
    for statement in found[1].split(";")[:-1]:
        postgres.query(database, statement)


def test_missing_databases_are_made(postgres: Postgres, call: Call) -> None:
    """Both stores, by a role that may make them; reading makes none, and asks for no more."""
    guest(postgres, "maker", "CREATEDB")
    optuna = address(postgres, "maker", "made-optuna")
    mlflow = address(postgres, "maker", "made_mlflow")
    assert list_studies(optuna) == []
    with pytest.raises(NotFoundError, match="does not exist"):
        open_study(optuna, "new")
    assert run_id_of(mlflow, "new", 0) is None
    with pytest.raises(NotFoundError, match="there is no MLflow store at "):
        model_uri_of(mlflow, "0" * 32)
    assert postgres.query("postgres", "SELECT 1 FROM pg_database WHERE datname ~ '^made'") == []
    code, _, err = call(*RUN, "--storage", optuna, "--tracking-uri", mlflow)
    assert (code, err) == (0, [])
    assert [study.name for study in list_studies(optuna)] == ["new"]
    runs = postgres.query("made_mlflow", "SELECT status FROM runs")
    assert runs == [("FINISHED",), ("FINISHED",)]
    guest(postgres, "looker")
    postgres.query("made_mlflow", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker")
    looked = address(postgres, "looker", "made_mlflow")
    assert run_id_of(looked, "new", 0)
    code, out, err = call("doctor", "new", "--storage", optuna, "--tracking-uri", looked)
    assert (code, out, err) == (0, "new: 0 disagreements, 0 left\n", [])


@pytest.mark.usefixtures("ready_store")
@pytest.mark.parametrize("store", ["--storage", "--tracking-uri"])
def test_a_right_that_lacks_is_named(postgres: Postgres, call: Call, store: str) -> None:
    """CREATEDB, then CREATE in the schema, each with the statement that helps; exit code 4."""
    role = store.strip("-").partition("-")[0]
    guest(postgres, role)
    url = address(postgres, role, f"of_{role}")
    for right in ("CREATEDB", "CREATE in schema public"):
        code, out, err = call(*RUN, store, url)
        assert (code, len(err)) == (4, 1)
        assert f"lacks the right {right}" in err[0]
        assert "trial=0" not in out
        if right == "CREATEDB":
            postgres.query("postgres", f"CREATE DATABASE of_{role}")  # the administrator's own
    remedy(postgres, f"of_{role}", err[0])
    code, _, err = call(*RUN, store, url)
    assert (code, err) == (0, [])


def test_tables_of_somebody_else_need_rights_too(postgres: Postgres) -> None:
    """What another role made can be used once it is granted; the line says how, and where."""
    guest(postgres, "reader")
    made = postgres.new_database()
    create_study(made, "theirs", "maximize")[0].close()
    database = made.rpartition("/")[2]
    postgres.query(database, "CREATE SCHEMA reader AUTHORIZATION reader")  # first of its path
    url = address(postgres, "reader", database)
    with pytest.raises(StoreError, match="lacks a right on table") as caught:
        create_study(url, "mine", "maximize")
    remedy(postgres, database, str(caught.value))
    create_study(url, "mine", "maximize")[0].close()
    with making_tables(url, "optuna"):
        pass


def test_odd_names_are_quoted_once(postgres: Postgres) -> None:
    """A "%" or a quote in a name, the name in the query, the user not in the address."""
    guest(postgres, "plain")
    url = f"postgresql://127.0.0.1:{postgres.port}?user=plain&password=x&dbname=a%25b%22c"
    with pytest.raises(NotFoundError, match="does not exist"):
        open_study(url, "new")
    with pytest.raises(StoreError, match='CREATE DATABASE "a%b""c" OWNER "plain";') as caught:
        create_study(url, "new", "maximize")
    postgres.query("postgres", "ALTER ROLE plain CREATEDB")
    create_study(url, "new", "maximize")[0].close()
    assert [study.name for study in list_studies(url)] == ["new"]
    postgres.query("postgres", 'DROP DATABASE "a%b""c"')
    remedy(postgres, "postgres", str(caught.value))
    create_study(url, "new", "maximize")[0].close()

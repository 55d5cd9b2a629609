"""Do Optuna, MLflow and the files agree, and what MLflow should show."""

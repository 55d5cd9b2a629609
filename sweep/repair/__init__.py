"""Do Optuna, MLflow and the files agree? Comparison, repair, lost runs."""

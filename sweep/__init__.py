"""sweep: Lightning trains, Optuna proposes, MLflow remembers."""

__version__ = "0.1.0"

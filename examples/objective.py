"""Any function of parameters: here scikit-learn, which Lightning does not train:

$ sweep run --module objective.py:accuracy --kind objective --metric accuracy --pruner median \
    --trials 6 --epochs 5 --vary rate=0.01..1.0:log --vary depth=1..4
"""

from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split


def accuracy(params: dict, report) -> None:
    """Boosts in `report.epochs` rounds; each report may be the last, if a pruner says so."""
    x, y = load_digits(n_class=4, return_X_y=True)
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.3, random_state=report.seed % 2**32)
    model = HistGradientBoostingClassifier(
        learning_rate=params["rate"], max_depth=params["depth"], max_iter=0, warm_start=True
    )
    for epoch in range(report.epochs):
        model.set_params(max_iter=2 * (epoch + 1))
        model.fit(x, y)
        report(model.score(x_val, y_val), train_accuracy=model.score(x, y))

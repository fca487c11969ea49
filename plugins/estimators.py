"""The built-in estimators of a direction."""

from engrain.plugins.spec import RegisterEstimator, hookimpl


@hookimpl
def register_estimators(register: RegisterEstimator) -> None:
    """Mean difference, first principal axis, logistic probe, gradient of the margin."""
    # Imported when a vector is extracted: the command line starts without torch.
    from engrain.core.extract import MeanDifference, PrincipalDifference
    from engrain.core.gradient import MarginGradient
    from engrain.core.probe import LogisticProbe

    register("mean-difference", MeanDifference)
    register("pca", PrincipalDifference)
    register("probe", LogisticProbe)
    register("gradient", MarginGradient)

"""The built-in backends of compiling."""

from engrain.plugins.spec import RegisterCompiler, hookimpl


@hookimpl
def register_compilers(register: RegisterCompiler) -> None:
    """A bias, a readout of rank 1 or training for what is added, orthogonal matrices for what is ablated."""
    # Imported when something is compiled: the command line starts without torch.
    from engrain.core.compile.ablate import compile_ablate
    from engrain.core.compile.bias import compile_bias
    from engrain.core.compile.distill import compile_distill
    from engrain.core.compile.rank1 import compile_rank1

    register("ablate", compile_ablate, "faithful")
    register("bias", compile_bias, "faithful")
    register("distill", compile_distill)
    register("rank1", compile_rank1)

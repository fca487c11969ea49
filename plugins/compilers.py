"""The built-in backends of compiling."""

from engrain.plugins.spec import RegisterCompiler, hookimpl


@hookimpl
def register_compilers(register: RegisterCompiler) -> None:
    """A bias for what is added, orthogonal matrices for what is ablated."""
    # Imported when something is compiled: the command line starts without torch.
    from engrain.core.compile.ablate import compile_ablate
    from engrain.core.compile.bias import compile_bias

    register("ablate", compile_ablate)
    register("bias", compile_bias)

"""What ``import engrain`` costs and gives."""

import subprocess
import sys

import engrain


def test_importing_engrain_loads_neither_torch_nor_transformers() -> None:
    code = "import engrain, sys; print(sorted({'torch', 'transformers', 'omegaconf', 'click'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_apollo_loads_of_engrain_its_own_modules_alone_and_no_transformers() -> None:
    code = (
        "import sys; from engrain.core.apollo import Apollo\n"
        "print(sorted({'transformers', 'safetensors', 'torch.distributed.tensor'} & set(sys.modules)),"
        "sorted(name for name in sys.modules if name.startswith('engrain.core.')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ["apollo", "apollo_settings", "errors", "projection", "shards"]
    assert result.stdout.strip() == f"[] {[f'engrain.core.{name}' for name in names]}"


def test_starting_the_command_line_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from engrain.plugins.manager import build_manager; import engrain.cli.main\n"
        "build_manager().commands(); build_manager().behaviors()\n"
        "print(sorted({'torch', 'transformers', 'omegaconf'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    for name in engrain.__all__:
        assert getattr(engrain, name) is not None
    assert engrain.__all__ == sorted(engrain.__all__)
    assert dir(engrain) == engrain.__all__

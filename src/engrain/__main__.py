"""``python -m engrain``."""

from engrain.cli.main import main

if __name__ == "__main__":
    main()

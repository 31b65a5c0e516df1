"""``python -m gradlens``: the command without an installed script."""

from gradlens.cli import main

if __name__ == "__main__":
    main()

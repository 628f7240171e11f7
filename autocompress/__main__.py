"""Run the command line: ``python -m autocompress``."""

from autocompress.cli import main

if __name__ == "__main__":
    main()

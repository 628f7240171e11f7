"""Run the command line: ``python -m autocompress``."""

from autocompress.cli.app import main

if __name__ == "__main__":
    main()

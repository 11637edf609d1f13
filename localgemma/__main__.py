"""`python -m localgemma`."""

from localgemma.cli.main import main

if __name__ == "__main__":
    main()

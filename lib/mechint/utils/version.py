"""The version of the package, which pyproject.toml, the command line and every manifest take from here."""

__version__ = "0.1.0"

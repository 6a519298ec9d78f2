"""The glue between the Kconfig menus and the command-line runners; it needs kconfiglib and nothing of the library."""

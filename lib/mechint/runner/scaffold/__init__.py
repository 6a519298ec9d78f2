"""Writes new analyses: packages of their own that mechint finds by their entry points."""

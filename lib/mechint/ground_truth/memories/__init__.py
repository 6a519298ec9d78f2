"""Compiled models of the newer memories: Mamba-2, gated delta rules, and a hybrid of one with attention."""

"""Norms of networks over tasks."""

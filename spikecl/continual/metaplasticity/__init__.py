"""Metaplasticity: how much a synapse can change depends on what it has been through."""

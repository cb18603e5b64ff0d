"""Projection: methods that keep updates out of what old tasks used."""

"""Homeostasis: neurons and synapses that keep their activity where it is useful."""

"""Intel Loihi: the integer equations of its neurons and synapses."""

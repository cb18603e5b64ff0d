"""How much each parameter mattered to old experiences, and a pull back by it."""

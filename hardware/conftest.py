"""What doctests leave out: only a process that has Lava can import it."""

collect_ignore = ["spikecl_hardware/loihi/lava_processes/__init__.py"]

"""Where training happens: slime on a cluster, torch in this process."""

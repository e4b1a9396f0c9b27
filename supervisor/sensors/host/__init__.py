"""The machine: CPU, power, memory, heat, network, programs."""

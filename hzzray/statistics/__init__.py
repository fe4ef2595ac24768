"""From yields to numbers: what may stand side by side, and what it signifies."""

"""Speed and memory of LION, compared with InstructBLIP, with LION as its reference composes it, and with hardware
limits.

Reading order: `models` (sizes and inputs), `composed` (the reference's approach), `sides` (one interface for all
three), `measures` (clocks, medians, ratios), `sections` and `growth` (what is measured), `floors` (hardware limits),
`targets`, `report`, `plots`, and `__main__` (the command).
"""

"""Speed and memory of LION beside InstructBLIP, beside LION as its reference composes it, and beside the hardware.

Reading order: `models` (sizes and inputs), `composed` (the reference's way), `sides` (one interface for all three),
`measures` (clocks, medians, ratios), `sections` and `growth` (what is measured), `floors` (what the hardware allows),
`targets`, `report`, `plots`, and `__main__` (the command).
"""

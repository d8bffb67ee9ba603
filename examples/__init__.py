"""Programs to run from a checkout; they are not part of the installed package."""

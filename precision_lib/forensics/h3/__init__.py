"""H3, value-head instability: what large values cost a critic, and where it rounds."""

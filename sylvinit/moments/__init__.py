"""From activations to streaming moments: positions, rows, patches, sums."""

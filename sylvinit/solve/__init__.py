"""One layer: from moments and a code to weight and bias."""

"""The parts that layers are made of: norms, rotation, attention, feed-forward, convolution, recurrences."""

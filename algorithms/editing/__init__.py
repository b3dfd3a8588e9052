"""What is made of adapters after they were loaded: other sizes, methods, names, and sums of them."""

"""What tests share: small data, small models, small runs, and ways to look at them."""

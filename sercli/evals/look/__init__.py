"""What an encoder does, for people to look at."""

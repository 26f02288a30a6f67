"""Speed, memory and Dice of OASIS and of the usual registration programs on the same pairs and cases."""

"""Files of dictionaries that other libraries read and write."""

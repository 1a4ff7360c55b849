"""Weight files that others have published, read without running code in them."""

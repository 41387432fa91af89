"""What an image folder holds."""

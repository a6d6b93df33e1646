"""Drop-ins for other libraries, a file each, imported on demand."""

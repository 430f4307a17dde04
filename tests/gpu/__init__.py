"""What only a GPU can show, prepared: `bash tests/gpu/run.sh`."""

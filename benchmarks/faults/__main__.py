"""Inject the faults."""

# Worker processes import this module again as their main module, so it imports nothing else.
if __name__ == "__main__":
    from benchmarks.faults.rows import main

    main()

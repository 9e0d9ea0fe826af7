"""Who advances which session, and when: `local` in one process, `temporal` in many."""

"""What must hold in every run, each invariant by its letter and number."""

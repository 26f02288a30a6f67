"""What each command does: cross-validation, study, train, segment, library, check, bundle."""

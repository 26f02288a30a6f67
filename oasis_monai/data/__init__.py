"""From files to labelled volumes: types, formats, cases, folds, public data sets, the phantom."""

"""Network parts that more than one modality uses."""

"""One Lightning Trainer a trial: any module of the user's."""

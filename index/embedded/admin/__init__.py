"""Operations of an operator on a whole gallery: backup, restore, export, import, verify, repair."""

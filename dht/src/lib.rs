//! What peers agree on: replicated signed records and voter-granted epochs.

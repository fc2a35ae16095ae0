//! Which handlers want a record: routes compiled to an index that is swapped whole.

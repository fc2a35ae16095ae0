//! Live handlers: generations, instances, worker pools, restart and quarantine.

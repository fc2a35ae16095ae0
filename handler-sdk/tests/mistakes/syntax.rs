//! The export has another form.

struct Orders;

sluicegate_sdk::export_handler!(Orders);

fn main() {}

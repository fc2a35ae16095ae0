//! A type without the trait is exported.

struct Orders;

sluicegate_sdk::export_handler! {
    "orders" => Orders,
}

fn main() {}

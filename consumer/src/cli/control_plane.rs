//! `sluicegate control-plane accept`: takes over what stands in a store that was restored or replaced.

use super::admin_client::Admin;
use super::failure::Failure;
use super::output::Output;
use crate::admin::http::ControlPlaneAcceptance;

/// What to do with the control plane.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Apply what stands in the store although it looks like another store's or like a loss; each service is asked by itself
    Accept(Accept),
}

/// Arguments of `accept`.
#[derive(clap::Args, Debug)]
pub(super) struct Accept {
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    output: Output,
}

/// Asks the running service.
pub(super) fn run(command: &Command) -> Result<(), Failure> {
    let Command::Accept(accept) = command;
    let done: ControlPlaneAcceptance = accept.admin.post("/api/v1/control-plane/accept")?;
    accept.output.print(&done, |done| {
        match done.accepted {
            true => "accepted: what stands in the control plane is applied",
            false => "nothing is held back; what stands in the control plane is applied already",
        }
        .to_owned()
    })
}

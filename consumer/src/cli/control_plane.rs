//! `sluicegate control-plane accept`: accepts the content of a store that was restored or replaced.

use sluicegate_admin::http::ControlPlaneAcceptance;

use super::admin_client::Admin;
use super::failure::Failure;
use super::output::Output;

/// Subcommands of `control-plane`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Apply the store's content although it resembles another store or a data loss; run it for each service separately
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

/// Sends the request to the running service.
pub(super) fn run(command: &Command) -> Result<(), Failure> {
    let Command::Accept(accept) = command;
    let done: ControlPlaneAcceptance = accept.admin.post("/api/v1/control-plane/accept")?;
    accept.output.print(&done, |done| {
        match done.accepted {
            true => "accepted: the control plane's content is applied",
            false => "nothing is held back; the control plane's content is already applied",
        }
        .to_owned()
    })
}

//! One module for each command.

pub mod configure;
pub mod delete;
pub mod deploy;
pub mod describe;
pub mod doctor;
pub mod image;
pub mod instances;
pub mod invoke;
pub mod kernel;
pub mod list;
pub mod logs;
pub mod pager;
pub mod serve;
pub mod snapshots;
pub mod store;
pub mod tiers;
pub mod top;

use crate::client::api::Client;
use crate::client::endpoint::Endpoint;

/// What every command that talks to a node takes.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    /// The node's HTTP API
    #[arg(
        long,
        env = "ROUSE_ENDPOINT",
        default_value = "http://127.0.0.1:9000",
        value_name = "URL"
    )]
    pub endpoint: Endpoint,
    /// Print JSON on standard output
    #[arg(long)]
    pub json: bool,
}

impl NodeArgs {
    /// A client of the node.
    pub fn client(&self) -> Client {
        Client::new(self.endpoint.clone())
    }
}

//! The `rouse` command.

mod bench;
mod client;
mod commands;
mod host;
mod local;
mod output;
mod package;
mod quickstart;
mod settings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A serverless runtime in which every function sleeps as a snapshot
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(quickstart::QuickstartArgs),
    // Boxed: its settings are many.
    Serve(Box<commands::serve::ServeArgs>),
    Deploy(commands::deploy::DeployArgs),
    Configure(commands::configure::ConfigureArgs),
    Invoke(commands::invoke::InvokeArgs),
    Start(commands::instances::StartArgs),
    Fork(commands::instances::ForkArgs),
    Ps(commands::instances::PsArgs),
    End(commands::instances::EndArgs),
    List(commands::list::ListArgs),
    Describe(commands::describe::DescribeArgs),
    Logs(commands::logs::LogsArgs),
    Delete(commands::delete::DeleteArgs),
    Snapshots(commands::snapshots::SnapshotsArgs),
    Rollback(commands::snapshots::RollbackArgs),
    Tiers(commands::tiers::TiersArgs),
    Top(commands::top::TopArgs),
    Gc(commands::store::GcArgs),
    Fsck(commands::store::FsckArgs),
    Kernel(commands::kernel::KernelArgs),
    Image(commands::image::ImageArgs),
    Pager(commands::pager::PagerArgs),
    Doctor(commands::doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    /// A VMM that waits for orders, started by its node
    #[command(hide = true)]
    Vmm {
        /// User of the host
        uid: u32,
        /// Group of the host
        gid: u32,
    },
}

// No thread may be started before a command has started its spawner: the spawner forks this process.
fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Quickstart(args) => quickstart::run(args),
        Command::Serve(args) => commands::serve::run(*args),
        Command::Deploy(args) => commands::deploy::run(&args),
        Command::Configure(args) => commands::configure::run(&args),
        Command::Invoke(args) => commands::invoke::run(&args),
        Command::Start(args) => commands::instances::start(&args),
        Command::Fork(args) => commands::instances::fork(&args),
        Command::Ps(args) => commands::instances::list(&args),
        Command::End(args) => commands::instances::end(&args),
        Command::List(args) => commands::list::run(&args),
        Command::Describe(args) => commands::describe::run(&args),
        Command::Logs(args) => commands::logs::run(&args),
        Command::Delete(args) => commands::delete::run(&args),
        Command::Snapshots(args) => commands::snapshots::run(&args),
        Command::Rollback(args) => commands::snapshots::rollback(&args),
        Command::Tiers(args) => commands::tiers::run(&args),
        Command::Top(args) => commands::top::run(&args),
        Command::Gc(args) => commands::store::gc(&args),
        Command::Fsck(args) => commands::store::fsck(&args),
        Command::Kernel(args) => commands::kernel::run(&args),
        Command::Image(args) => commands::image::run(&args),
        Command::Pager(args) => commands::pager::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Vmm { uid, gid } => Ok(rouse_vmm::zygote::vmm_main(uid, gid)),
    };
    match outcome {
        Ok(code) => code,
        // Whoever read our output has had enough: no failure, as with any tool in a pipe.
        Err(failed) if failed.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failed) => {
            failed.print();
            ExitCode::from(failed.code)
        }
    }
}

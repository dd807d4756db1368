//! `rouse kernel`: the kernels that microVMs boot.

use std::path::PathBuf;
use std::process::ExitCode;

use rouse_vmm::kernel::import;

use crate::output::error::Outcome;
use crate::output::print_line;

/// Prepares kernels for microVMs
#[derive(Debug, clap::Args)]
pub struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, clap::Subcommand)]
enum KernelCommand {
    /// Prepares a kernel: unpacks it, and packs what it starts from
    Import {
        /// A Debian package of a kernel, a vmlinux or a bzImage
        file: PathBuf,
        /// The directory to make
        directory: PathBuf,
        /// Where a kernel that is no package has its modules, as /lib/modules/6.12.9-amd64
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
    },
}

/// Runs the command.
pub fn run(args: &KernelArgs) -> Outcome {
    let KernelCommand::Import {
        file,
        directory,
        modules,
    } = &args.command;
    let kernel = import::import(file, modules.as_deref(), directory)?;
    print_line(format_args!("{}: {:?}", directory.display(), kernel.format))?;
    Ok(ExitCode::SUCCESS)
}

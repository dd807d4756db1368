//! A virtual machine from the command line: prepares kernels, and boots them with their console on standard output.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rouse_vmm::kernel::{Kernel, import};
use rouse_vmm::{Config, Ended, Machine, MemorySize, VcpuCount, host};

/// Runs a Linux kernel and rouse-guest in a virtual machine
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells whether this host can run virtual machines
    Check,
    /// Prepares a kernel
    Import {
        /// A Debian package of a kernel, a vmlinux or a bzImage
        file: PathBuf,
        /// The directory to make
        directory: PathBuf,
    },
    /// Boots a prepared kernel, and ends with its machine
    Run {
        /// The directory that `import` made
        directory: PathBuf,
        /// Memory in MiB
        #[arg(long, default_value_t = 256)]
        memory: u32,
        /// Processors
        #[arg(long, default_value_t = 1)]
        cpus: u8,
        /// What is added to the kernel's command line
        #[arg(long, default_value = "quiet")]
        append: String,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rouse-vmm: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Check => {
            host::usable()?;
            println!("this host can run virtual machines");
        }
        Command::Import { file, directory } => {
            let kernel = import::import(&file, &directory)?;
            println!("{}: {:?}", directory.display(), kernel.format);
        }
        Command::Run {
            directory,
            memory,
            cpus,
            append,
        } => {
            let config = Config {
                memory: MemorySize::mib(memory)?,
                vcpus: VcpuCount::new(cpus)?,
                command_line: append,
            };
            let kernel = Kernel::open(&directory)?;
            let machine = Machine::boot(&config, &kernel, Box::new(std::io::stdout()))?;
            let ended = machine.run()?;
            if ended != Ended::Off {
                eprintln!("rouse-vmm: the machine was not switched off: {ended:?}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
